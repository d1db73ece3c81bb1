"""`runtasks`: runs what was enqueued with a backend of `carillon.tasks`, until told to stop (TERM, INT)."""

from __future__ import annotations

import logging
import os
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django_tasks import InvalidTaskBackendError, task_backends

from asgi_amqp import LayerError
from carillon.tasks.backend import DurableBackend
from carillon.tasks.running import Runner


class Command(BaseCommand):
    help = "Run tasks of django_tasks, until told to stop (TERM, INT)."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--backend", default="default", help="an alias of TASKS (default)")
        parser.add_argument("--queue", action="append", help="one of its queues, and others with more (all)")
        parser.add_argument("--concurrency", type=int, default=4, help="tasks at a time, of each queue (4)")
        parser.add_argument("--drain", type=float, default=20.0, help="seconds for them to end at TERM (20)")

    def handle(self, *args: Any, backend: str, queue: list[str] | None, **options: Any) -> None:
        try:
            found = task_backends[backend]
        except InvalidTaskBackendError as error:
            raise CommandError(str(error)) from None
        if not isinstance(found, DurableBackend):
            raise CommandError(f"TASKS[{backend!r}] is no carillon.tasks.backend.DurableBackend")
        queues = sorted(set(queue or found.queues))
        if unknown := sorted(set(queues) - found.queues):
            raise CommandError(f"TASKS[{backend!r}] has no queue {', '.join(unknown)}: add it to its QUEUES")
        if options["concurrency"] < 1:
            raise CommandError("--concurrency: at least 1")
        if problems := list(found.check()):
            raise CommandError(f"{problems[0].msg} {problems[0].hint}")
        try:
            ended = Runner(found, queues, options["concurrency"], options["drain"]).run()
        except LayerError as error:
            raise CommandError(str(error)) from None
        if not ended:
            # Threads cannot be stopped: an ordinary end would wait for tasks that others run by now.
            logging.shutdown()
            os._exit(1)
