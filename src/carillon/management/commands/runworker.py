"""`runworker`: takes events off the durable queue and appends them to the event stream that every daphne
process tails.

In place of the command of the same name in Channels, which takes messages without acknowledging them. With
names of channels it is that one: a project's own workers.
"""

from __future__ import annotations

import asyncio
from typing import Any

from channels.management.commands.runworker import Command as ChannelsCommand
from django.core.management.base import BaseCommand, CommandError, CommandParser

from carillon import retention, tracing
from carillon.conf import conf
from carillon.metrics import names, shared
from carillon.relay.runworker import STOP_DEADLINE, serve


class Command(BaseCommand):
    help = "Relay events from the durable queue to the event stream, until told to stop (TERM, INT)."
    # Checks and migrations are the launcher's to wait for.
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--layer", default="default", help="With channels: the channel layer's alias.")
        parser.add_argument("channels", nargs="*", help="Listen on these, as Channels' command does.")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["channels"]:
            ChannelsCommand().handle(**options)
            return
        shared.start(conf.METRICS_DIRECTORY, names.RUNWORKER)
        tracing.start(names.RUNWORKER)
        if not asyncio.run(serve(retention.measure())):
            raise CommandError(f"runworker did not stop within {STOP_DEADLINE:g} s and was cut off.")
