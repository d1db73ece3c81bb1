"""`TASKS = {"default": {"BACKEND": "carillon.tasks.backend.DurableBackend"}}`: what enqueues, and what
tells of results.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import partial, reduce
from operator import or_
from typing import Any

from channels.layers import get_channel_layer
from django.apps import apps
from django.core import checks
from django.db import Error, router, transaction
from django.db.models import Q
from django.utils import timezone
from django.utils.module_loading import import_string
from django_tasks.backends.base import BaseTaskBackend
from django_tasks.base import Task, TaskError, TaskResult, TaskResultStatus
from django_tasks.exceptions import TaskResultDoesNotExist
from django_tasks.signals import task_enqueued
from django_tasks.utils import get_random_id, normalize_json

from asgi_amqp import AMQPChannelLayer, ChannelFull, LayerError

logger = logging.getLogger(__name__)

AGAIN = 1.0
"""Seconds for which nobody waits for the broker again, once it took nothing: workers announce the rest."""

_QUEUE = re.compile(r"[A-Za-z0-9._-]{1,40}")
_OPTIONS = {"attempts": 1, "pause": 10.0, "result_bytes": 64 * 1024}


class DurableBackend(BaseTaskBackend):
    """OPTIONS: `attempts`, how often a task that raises is run at most; `pause`, seconds before the second
    time, twice as many before each that follows; `result_bytes`, the most JSON that a task may return."""

    supports_defer = True
    supports_async_task = True
    supports_get_result = True
    supports_priority = True

    _failed = float("-inf")  # when the broker last took nothing, by the monotonic clock

    def __init__(self, alias: str, params: dict[str, Any]) -> None:
        super().__init__(alias, params)
        known = {name: self.options.get(name, default) for name, default in _OPTIONS.items()}
        self.attempts: int = known["attempts"]
        self.pause: float = known["pause"]
        self.result_bytes: int = known["result_bytes"]

    def enqueue(self, task: Task, args: Sequence[Any], kwargs: dict[str, Any]) -> TaskResult:
        """A row in the current transaction. Raises django.db.Error; the broker may be away."""
        self.validate_task(task)
        model = table()
        now = timezone.now()
        row = model(
            id=get_random_id(),
            backend=self.alias,
            queue=task.queue_name,
            path=task.module_path,
            priority=task.priority,
            run_after=task.run_after,
            args=normalize_json(args),
            kwargs=normalize_json(kwargs),
            enqueued=now,
            due=max(now, task.run_after or now),
        )
        using = router.db_for_write(model)
        row.save(using=using, force_insert=True)
        result = result_of(row, task)
        task_enqueued.send(type(self), task_result=result)
        if row.due <= now:
            # Robust: what other code does after the commit is none of our affair, nor ours of its.
            transaction.on_commit(partial(self._announce, row), using=using, robust=True)
        return result

    def get_result(self, result_id: str) -> TaskResult:
        row = table().objects.filter(backend=self.alias, pk=result_id).first()
        if row is None:
            raise TaskResultDoesNotExist(result_id)
        try:
            return result_of(row, self.task_of(row))
        except (ImportError, TypeError) as error:
            raise TaskResultDoesNotExist(f"{result_id}: {error}") from error

    def task_of(self, row: Any) -> Task:
        """As it was enqueued. Raises ImportError, TypeError where the code has no such task."""
        task = import_string(row.path)
        if not isinstance(task, Task):
            raise TypeError(f"{row.path} is no task any more")
        return task.using(
            priority=row.priority, queue_name=row.queue, run_after=row.run_after, backend=self.alias
        )

    def channel(self, queue: str) -> str:
        return f"carillon.tasks.{self.alias}.{queue}"

    def announce(self, rows: Sequence[Any]) -> None:
        """Put a message for each on its channel. Raises LayerError, ChannelFull, django.db.Error."""
        get_channel_layer().publisher.send_many(
            [(self.channel(row.queue), {"type": "carillon.task"}) for row in rows]
        )
        # Not before: of what is sent twice, the second finds nothing to do. Not what was begun meanwhile: of
        # its next run nobody has told.
        told = same((row.pk, row.attempted) for row in rows)
        table().objects.filter(told).update(announced=True)

    def _announce(self, row: Any) -> None:
        if time.monotonic() - self._failed < AGAIN:
            return
        try:
            self.announce([row])
        except (LayerError, ChannelFull, Error) as error:
            DurableBackend._failed = time.monotonic()
            logger.warning("Tasks wait for a worker to announce them: %s", type(error).__name__)

    def check(self, **kwargs: Any) -> Iterable[checks.CheckMessage]:
        problems = []
        if not apps.is_installed("carillon.tasks"):
            problems.append(("carillon.tasks is not in INSTALLED_APPS", "Add it, and run migrate."))
        for name in sorted(self.options.keys() - _OPTIONS.keys()):
            problems.append((f"OPTIONS has no {name!r}", f"There are {', '.join(_OPTIONS)}."))
        if not isinstance(self.attempts, int) or self.attempts < 1:
            problems.append((f"attempts is {self.attempts!r}", "It is a whole number of at least 1."))
        layer = get_channel_layer()
        for queue in sorted(self.queues):
            if not _QUEUE.fullmatch(queue):
                problems.append(
                    (f"the queue {queue!r} has no name of a channel", "Letters, digits, . _ - will do.")
                )
            elif not _is_durable(layer, self.channel(queue)):
                problems.append(
                    (
                        f"the channel {self.channel(queue)!r} is not durable",
                        'Say "durable": {"carillon.tasks.*": {"batch": 1, "delivery_limit": None}} in the '
                        "CONFIG of asgi_amqp.AMQPChannelLayer in CHANNEL_LAYERS.",
                    )
                )
        for number, (problem, hint) in enumerate(problems, 1):
            yield checks.Error(
                f"TASKS[{self.alias!r}]: {problem}.", hint=hint, id=f"carillon.tasks.E{number:03}"
            )


def _is_durable(layer: Any, channel: str) -> bool:
    if not isinstance(layer, AMQPChannelLayer):
        return False
    queue = layer.destination(channel).queue
    return queue is not None and bool(queue.dead)


def same(runs: Iterable[tuple[str, datetime | None]]) -> Q:
    """Tasks by their id and when they were last begun: begun since, they are another's."""
    return reduce(or_, (Q(pk=id, attempted=attempted) for id, attempted in runs))


def table() -> Any:
    # Not imported: a module of tasks may be imported before Django's models may be.
    return apps.get_model("carillon_tasks", "QueuedTask")


def result_of(row: Any, task: Task) -> TaskResult:
    result: TaskResult = TaskResult(
        task=task,
        id=row.pk,
        status=TaskResultStatus[row.status],
        enqueued_at=row.enqueued,
        started_at=row.started,
        finished_at=row.finished,
        last_attempted_at=row.attempted,
        args=row.args,
        kwargs=row.kwargs,
        backend=row.backend,
        errors=[TaskError(**error) for error in row.errors],
        worker_ids=list(row.workers),
    )
    object.__setattr__(result, "_return_value", row.value)  # as the field of the dataclass asks
    return result
