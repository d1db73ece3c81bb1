"""`emit <group> <json>`: send one notification by hand."""

from __future__ import annotations

import json
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from carillon.events import NotificationsUnavailable, emit_channel_notification
from carillon.events.families import registry


class Command(BaseCommand):
    help = 'Emit one notification: emit job_events-42 \'{"group_name": "job_events", "job": 42}\''

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("group", help="<family>-<key>, e.g. jobs-status_changed")
        parser.add_argument("payload", help="a JSON object")

    def handle(self, *args: Any, group: str, payload: str, **options: Any) -> None:
        if registry.parse_group(group) is None:
            raise CommandError(f"{group!r} is no group: families are {', '.join(registry.names())}")
        try:
            content = json.loads(payload)
        except ValueError as error:
            raise CommandError(f"The payload is no JSON: {error}") from None
        if not isinstance(content, dict):
            raise CommandError("The payload must be a JSON object")
        try:
            if not emit_channel_notification(group, content):
                raise CommandError("The payload cannot be sent as JSON (NaN or Infinity in it?)")
        except NotificationsUnavailable as error:
            raise CommandError(str(error)) from None
