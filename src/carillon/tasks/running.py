"""What `runtasks` does: takes tasks, runs them in threads, and looks after what nobody runs."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from channels.layers import get_channel_layer
from django.db import DataError, Error, IntegrityError, close_old_connections, connections
from django.db.models import F, Q, QuerySet
from django.db.models.functions import Now
from django.utils import timezone
from django_tasks import TaskResultStatus
from django_tasks.base import Task, TaskContext
from django_tasks.signals import task_finished, task_started
from django_tasks.utils import get_exception_traceback, get_module_path, get_random_id, normalize_json

from asgi_amqp import ChannelFull, LayerError
from asgi_amqp.worker import Worker
from carillon.tasks.backend import DurableBackend, result_of, same
from carillon.tasks.models import QueuedTask
from carillon.text import storable

logger = logging.getLogger(__name__)

READY, RUNNING = TaskResultStatus.READY, TaskResultStatus.RUNNING

LOOK = 1.0
"""Seconds between looks at what is due and not announced."""

SAY = 5.0
"""Seconds between two words that a task runs."""

LEASE = 30.0
"""Seconds without one, after which it does not."""

IDLE = 60.0
"""Seconds for which a worker had room for more while tasks waited: their messages are lost."""

LIVES = 5
"""So often a task may be begun and not end: then it has failed, for it may be what ends its workers."""

LONGEST_PAUSE = 3600.0

SOME = 500
"""Rows looked at together."""

TRACEBACK = 16 * 1024
"""The last characters of one are kept."""


DUE = Q(due__lte=Now()) | Q(due=F("enqueued"))
"""By the database's clock. A task that was never deferred is due at once, whatever its host's clock says."""


class TooLarge(ValueError):
    """A task returned more than is kept."""


class Unkept(ValueError):
    """What a task returned cannot be kept."""


class WorkerLost(RuntimeError):
    """The workers that ran a task ended before it did."""


# The decision: pure ----------------------------------------------------------------------------------------


def pause_after(errors: int, attempts: int, pause: float) -> float | None:
    """Seconds until a task that has raised so often is run again; None: it has failed."""
    return None if errors >= attempts else min(pause * 2 ** (errors - 1), LONGEST_PAUSE)


def is_given_up(begun: int, errors: int) -> bool:
    """Whether a task that was begun so often, and has raised so often, is begun no more."""
    return begun - errors >= LIVES


# Taking, running -------------------------------------------------------------------------------------------


def take(backend: DurableBackend, queue: str, worker: str) -> QueuedTask | None:
    """The most urgent task that is due, which is this worker's from now on. Raises django.db.Error.

    The clock is the database's, as for who announces it: this host's may be behind.
    """
    while True:
        now = timezone.now()
        waiting = QueuedTask.objects.filter(DUE, backend=backend.alias, queue=queue, status=READY)
        row = waiting.order_by("-priority", "due", "pk").first()
        if row is None:
            return None
        changes = {
            "status": RUNNING,
            "started": row.started or now,
            "attempted": now,
            "workers": [*row.workers, worker],
        }
        # Of two workers who saw it, one finds it as it was.
        seen = QueuedTask.objects.filter(pk=row.pk, status=READY, attempted=row.attempted)
        if seen.update(**changes, seen=Now()):
            for name, value in changes.items():
                setattr(row, name, value)
            return row


def run(backend: DurableBackend, row: QueuedTask) -> None:
    """Call the task, and keep what came of it. Raises django.db.Error."""
    try:
        task = backend.task_of(row)
    except (ImportError, TypeError) as error:
        # While a release takes the place of another, its older workers meet tasks that they do not have.
        _keep(row, None, error, pause_after(len(row.errors) + 1, LIVES, backend.pause))
        return
    result = result_of(row, task)
    task_started.send_robust(type(backend), task_result=result)
    try:
        context = [TaskContext(task_result=result)] if task.takes_context else []
        value = task.call(*context, *result.args, **result.kwargs)
    except BaseException as error:  # one that exits has failed as well
        again = pause_after(len(row.errors) + 1, backend.attempts, backend.pause)
        _end(backend, row, task, None, error, again)
        return
    # It is done: a value that cannot be kept is no reason to do it again.
    try:
        value = normalize_json(value)
        if (size := len(json.dumps(value, allow_nan=False))) > backend.result_bytes:
            raise TooLarge(f"it returned {size} bytes of JSON: result_bytes is {backend.result_bytes}")
    except Exception as error:
        _end(backend, row, task, None, error, None)
    else:
        _end(backend, row, task, value, None, None)


def _end(
    backend: DurableBackend,
    row: QueuedTask,
    task: Task,
    value: Any,
    raised: BaseException | None,
    again: float | None,
) -> None:
    try:
        kept = _keep(row, value, raised, again)
    except (DataError, IntegrityError) as error:  # such as of a NUL in what it returned
        again, kept = None, _keep(row, None, Unkept(f"the database does not take it: {error}"), None)
    if kept and again is None:
        task_finished.send_robust(type(backend), task_result=result_of(row, task))


def _keep(row: QueuedTask, value: Any, raised: BaseException | None, again: float | None) -> bool:
    """Whether it was still ours. A database that is away is waited for, until the process ends: else what is
    done were done twice."""
    changes, waits = _outcome(row, value, raised, again), False
    ours = QueuedTask.objects.filter(pk=row.pk, attempted=row.attempted)
    mark = "finished" if again is None else "errors"
    while True:
        try:
            kept = bool(ours.filter(status=RUNNING).update(**changes))
            if waits and not kept:  # or it was before, and the answer was lost with the connection
                kept = ours.filter(**{mark: changes[mark]}).exists()
            break
        except (DataError, IntegrityError):  # it is not away
            raise
        except Error as error:
            if not waits:
                logger.warning(
                    "Task id=%s path=%s has ended, which cannot be kept yet: %s", row.pk, row.path, error
                )
            waits = True
            time.sleep(1)
            close_old_connections()
    if not kept:
        logger.warning(
            "Task id=%s path=%s went to another worker: its end here is not kept", row.pk, row.path
        )
    for name, changed in changes.items():
        setattr(row, name, changed)
    return kept


def _outcome(
    row: QueuedTask, value: Any, raised: BaseException | None, again: float | None
) -> dict[str, Any]:
    """What of its row changes when it has ended."""
    changes: dict[str, Any] = {}
    if raised is not None:
        path, said = get_module_path(type(raised)), storable(get_exception_traceback(raised)[-TRACEBACK:])
        changes["errors"] = [*row.errors, {"exception_class_path": path, "traceback": said}]
    if again is not None:
        changes |= {"status": READY, "due": Now() + timedelta(seconds=again), "announced": False}
        logger.warning("Task id=%s path=%s raised %s: again in %g s", row.pk, row.path, path, again)
    else:
        status = TaskResultStatus.SUCCESSFUL if raised is None else TaskResultStatus.FAILED
        changes |= {"status": status, "value": value, "finished": timezone.now()}
    return changes


# What nobody runs ------------------------------------------------------------------------------------------


def announce_due(backend: DurableBackend) -> int:
    """Messages for tasks that are due and have none: deferred, to be run again, or enqueued while the broker
    was away. How many. Raises django.db.Error, LayerError, ChannelFull."""
    rows = QueuedTask.objects.filter(DUE, backend=backend.alias, announced=False, status=READY)
    some = list(rows.only("queue", "attempted").order_by("due")[:SOME])  # without what each is given: MiB
    if some:
        backend.announce(some)
    return len(some)


def recover(backend: DurableBackend, could_say: Callable[[], bool] = lambda: True) -> int:
    """Tasks whose worker has said nothing for long are to be run again, or have failed. How many.
    `could_say`: whether a worker that lives could have said so. Raises django.db.Error."""
    lapsed = QueuedTask.objects.filter(
        backend=backend.alias, status=RUNNING, seen__lt=Now() - timedelta(seconds=LEASE)
    )
    found = list(lapsed.defer("args", "kwargs", "value").order_by("seen")[:SOME])
    if not could_say():  # asked after the look, which may be what the database held up
        return 0
    for row in found:
        logger.warning("Task id=%s path=%s has lost its worker %s", row.pk, row.path, row.workers[-1])
        still = lapsed.filter(pk=row.pk, attempted=row.attempted)  # it may have said something meanwhile
        if is_given_up(len(row.workers), len(row.errors)):
            error = WorkerLost(f"{LIVES} workers ended while it ran")
            changes = _outcome(row, None, error, None)
            if still.update(**changes):
                for name, changed in changes.items():
                    setattr(row, name, changed)
                _tell_aside(backend, row, error)
        else:
            put_back(still)
    return len(found)


def _tell_aside(backend: DurableBackend, row: QueuedTask, error: WorkerLost) -> None:
    """In a thread of its own: who listens may take long, and nobody else says that tasks run here."""
    try:
        result = result_of(row, backend.task_of(row))
    except (ImportError, TypeError):  # a result is one of a task, which the code no longer has
        return

    def tell() -> None:
        try:
            raise error  # whoever reports errors asks for the one at hand
        except WorkerLost:
            task_finished.send_robust(type(backend), task_result=result)
        finally:
            connections.close_all()

    threading.Thread(target=tell, name="carillon tasks: finished", daemon=True).start()


def put_back(rows: QuerySet[QueuedTask]) -> None:
    """As if they had not been begun, but for the workers that have. Raises django.db.Error."""
    rows.filter(status=RUNNING).update(status=READY, announced=False)


def announce_again(backend: DurableBackend, queues: Sequence[str]) -> int:
    """Tasks of these queues have waited for long while a worker had room for more. Raises django.db.Error."""
    long = Q(due__lt=Now() - timedelta(seconds=IDLE)) | Q(due=F("enqueued"), due__gt=Now())
    waiting = QueuedTask.objects.filter(
        long, backend=backend.alias, queue__in=queues, status=READY, announced=True
    )
    ids = list(waiting.order_by("due").values_list("pk", flat=True)[:SOME])
    return QueuedTask.objects.filter(pk__in=ids, status=READY).update(announced=False)


# The process -----------------------------------------------------------------------------------------------


class Runner:
    """The workers of some queues of a backend, until TERM or INT. `concurrency`: tasks at a time, of each
    queue; `drain`: seconds for them to end."""

    def __init__(
        self, backend: DurableBackend, queues: Sequence[str], concurrency: int, drain: float
    ) -> None:
        self._backend = backend
        self._queues = queues
        self._concurrency = concurrency
        self._drain = drain
        self._name = f"{os.uname().nodename}-{os.getpid()}-{get_random_id()[:8]}"[:64]
        self._running: dict[str, datetime | None] = {}  # and when it was begun: later, another has it
        self._busy = dict.fromkeys(queues, 0)  # messages in hand
        self._full = dict.fromkeys(queues, time.monotonic())  # when there was last no room for another
        self._answered = self._since = time.monotonic()  # the database: when last, and since when steadily
        self._ended = threading.Event()
        self._pool = ThreadPoolExecutor(concurrency * len(queues), "task")

    def run(self) -> bool:
        """False when tasks had to be cut off, whatever it ended with; others run them. Else raises
        LayerError."""
        try:
            asyncio.run(self._serve())
        except Exception:
            if not self._running:
                raise
            logger.exception("runtasks ends")
        self._pool.shutdown(wait=False, cancel_futures=True)
        cut_off = dict(self._running)
        if cut_off:
            logger.warning("Cut off, to be run again: tasks %s", ", ".join(cut_off))
            close_old_connections()
            try:
                put_back(QueuedTask.objects.filter(same(cut_off.items())))
            except Error as error:
                logger.warning("They are run again %g s after the database is back: %s", LEASE, error)
        return not cut_off

    async def _serve(self) -> None:
        layer = get_channel_layer()
        workers = [
            Worker(
                layer,
                partial(self._handle, queue),
                self._backend.channel(queue),
                self._concurrency,
                drain_timeout=self._drain,
                handle_signals=False,
            )
            for queue in self._queues
        ]

        def stop() -> None:
            for worker in workers:
                worker.stop()

        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop)
        looking = threading.Thread(target=self._look, name="carillon tasks", daemon=True)
        looking.start()
        logger.info("runtasks is ready: %s", ", ".join(self._queues))
        runs = [asyncio.create_task(worker.run()) for worker in workers]
        try:
            await asyncio.wait(runs, return_when=asyncio.FIRST_EXCEPTION)
            stop()  # all, when one has failed: while the others' tasks end somebody says that they run
            await asyncio.wait(runs)
            await asyncio.gather(*runs)
        finally:
            self._ended.set()
            await asyncio.to_thread(looking.join, SAY)  # no longer: a database may hold it up without end
            await layer.close()

    async def _handle(self, queue: str, message: dict[str, Any]) -> None:
        self._busy[queue] += 1
        try:
            await asyncio.get_running_loop().run_in_executor(self._pool, self._work, queue)
        finally:
            if self._busy[queue] >= self._concurrency:
                self._full[queue] = time.monotonic()
            self._busy[queue] -= 1

    def _work(self, queue: str) -> None:
        """A message came: one task."""
        close_old_connections()
        try:
            row = take(self._backend, queue, self._name)
            if row is None:
                return
            self._running[row.pk] = row.attempted
            try:
                if self._ended.is_set():  # whoever ended this has not seen it, and says no more that it runs
                    put_back(QueuedTask.objects.filter(same([(row.pk, row.attempted)])))
                else:
                    run(self._backend, row)
            finally:
                if self._running.get(row.pk) == row.attempted:  # else another run of it has begun here
                    del self._running[row.pk]
        finally:
            close_old_connections()

    def _look(self) -> None:
        said = 0.0
        while not self._ended.wait(LOOK):
            close_old_connections()
            try:
                if (running := list(self._running.items())) and time.monotonic() - said >= SAY:
                    QueuedTask.objects.filter(same(running), status=RUNNING).update(seen=Now())
                    said = time.monotonic()
                if hungry := self._hungry():
                    if lost := announce_again(self._backend, hungry):
                        logger.warning("%s tasks waited, and no message told of them: announced anew", lost)
                    self._full |= dict.fromkeys(hungry, time.monotonic())
                recover(self._backend, self._steady)
                announce_due(self._backend)
            except (LayerError, ChannelFull, Error) as error:  # later
                logger.warning("What waits cannot be looked after: %s", type(error).__name__)
            except Exception:  # a mistake here must not let every task lose its worker
                logger.exception("What waits cannot be looked after")
            finally:
                close_old_connections()

    def _hungry(self) -> list[str]:
        """Queues that had room for more for IDLE: a message that waited for so long would have come. One that
        is full may have many, and is not announced anew."""
        then = time.monotonic() - IDLE
        return [
            queue
            for queue in self._queues
            if self._busy[queue] < self._concurrency and self._full[queue] <= then
        ]

    def _steady(self) -> bool:
        """The database has answered. Whether it has done so for LEASE without a long pause: in one, others
        could no more say that they run than we."""
        now = time.monotonic()
        if now - self._answered > LEASE / 2:
            self._since = now
        self._answered = now
        return now - self._since >= LEASE
