"""The backend of `django_tasks`: what the interface asks, as its own backend answers; then what is ours."""

from __future__ import annotations

import asyncio
import os
import threading
import traceback
from datetime import timedelta
from signal import SIGTERM
from types import SimpleNamespace

import pytest
from django.db import DataError, Error, IntegrityError, connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from django_tasks import TaskResultStatus, task_backends
from django_tasks.base import Task
from django_tasks.exceptions import InvalidTaskError, TaskResultDoesNotExist, TaskResultMismatch
from django_tasks.signals import task_enqueued, task_finished, task_started

from asgi_amqp import AMQPChannelLayer, LayerError
from carillon.retention import Run, kinds
from carillon.tasks import backend as backends
from carillon.tasks import running
from carillon.tasks.models import QueuedTask
from tests.unit.support.fakes import FakeLayer
from tests.unit.tasks import samples

OURS = "carillon.tasks.backend.DurableBackend"
QUEUES = ["default", "slow"]
TASKS = {
    "default": {"BACKEND": OURS, "QUEUES": QUEUES},
    "stubborn": {"BACKEND": OURS, "QUEUES": QUEUES, "OPTIONS": {"attempts": 3, "pause": 10}},
    "brief": {"BACKEND": OURS, "QUEUES": QUEUES, "OPTIONS": {"result_bytes": 100}},
    # What answers as the interface has it, for whatever ends at once.
    "reference": {"BACKEND": "django_tasks.backends.immediate.ImmediateBackend", "QUEUES": QUEUES},
}


@pytest.fixture(autouse=True)
def project(settings, db, monkeypatch):
    settings.TASKS = TASKS
    # On PostgreSQL it would end the transaction that a test is.
    monkeypatch.setattr(running, "close_old_connections", lambda: None)
    backends.DurableBackend._failed = float("-inf")
    samples.done.clear()


def work(alias="default", worker="worker"):
    """Everything that is due, as one worker does it."""
    backend = task_backends[alias]
    if alias != "reference":
        for queue in QUEUES:
            while row := running.take(backend, queue, worker):
                running.run(backend, row)


@pytest.fixture(params=["default", "reference"])
def alias(request):
    return request.param


@pytest.fixture
def call(alias):
    """The result of a task once it has ended."""

    def call(task, *args, **kwargs):
        result = task.using(backend=alias).enqueue(*args, **kwargs)
        work(alias)
        if alias != "reference":  # which has no results to ask for
            result.refresh()
        return result

    return call


class Steps:
    """In place of the event that ends a runner's looks: one step before each look, by a clock of its own."""

    def __init__(self, monkeypatch):
        self.clock = 1000.0
        self.steps = []
        monkeypatch.setattr(running, "time", SimpleNamespace(monotonic=lambda: self.clock, sleep=self.sleep))

    def sleep(self, seconds):
        self.clock += seconds

    def wait(self, seconds):
        self.clock += seconds
        if self.steps:
            self.steps.pop(0)()
            return False
        return True

    def __call__(self, runner, *steps):
        self.steps[:] = steps
        runner._ended = self
        runner._look()


@pytest.fixture
def looks(monkeypatch):
    return Steps(monkeypatch)


# What the interface asks -----------------------------------------------------------------------------------


def test_what_a_task_returns(call, alias):
    result = call(samples.add, 2, second=3)
    assert (result.status, result.is_finished) == (TaskResultStatus.SUCCESSFUL, True)
    assert (result.return_value, result.attempts, result.errors) == (5, 1, [])
    assert (result.args, result.kwargs, result.backend) == ([2], {"second": 3}, alias)
    assert result.enqueued_at <= result.started_at == result.last_attempted_at <= result.finished_at
    assert len(result.id) == 32
    assert result.task == samples.add.using(backend=alias)


def test_a_coroutine(call):
    assert call(samples.add_later, 2, 3).return_value == 5


def test_a_task_that_asks_for_its_context(call):
    result = call(samples.tell, "word")
    assert result.return_value == ["word", 1, result.id]


def test_a_task_that_raises(call):
    result = call(samples.fail, "no such bell")
    assert (result.status, result.is_finished) == (TaskResultStatus.FAILED, True)
    (error,) = result.errors
    assert error.exception_class is LookupError
    assert "no such bell" in error.traceback
    with pytest.raises(ValueError, match="failed"):
        _ = result.return_value


def test_a_task_that_exits_ends_nothing_else(call):
    assert call(samples.leave).errors[0].exception_class is SystemExit


def test_a_value_that_is_no_json(call):
    assert call(samples.give_a_set).errors[0].exception_class is TypeError


def test_a_queue_and_a_priority_of_its_own(call):
    task = call(samples.declared).task
    assert (task.queue_name, task.priority) == ("slow", 7)


@pytest.mark.parametrize(
    "changes",
    [
        {"queue_name": "unknown"},
        {"priority": 101},
        {"priority": -101},
        {"priority": 1.5},
        {"run_after": timezone.now().replace(tzinfo=None)},
    ],
)
def test_what_cannot_be_is_refused_at_once(alias, changes):
    with pytest.raises(InvalidTaskError):
        samples.add.using(backend=alias, **changes)


def test_a_function_that_nobody_else_can_import_is_refused(alias):
    with pytest.raises(InvalidTaskError):
        Task(func=lambda: None, backend=alias)
    with pytest.raises(InvalidTaskError):
        Task(func=samples.ordinary, backend=alias, takes_context=True)


def test_arguments_that_are_no_json_are_refused_at_once(alias):
    with pytest.raises(TypeError):
        samples.add.using(backend=alias).enqueue({1})
    assert not QueuedTask.objects.exists()


@pytest.mark.parametrize("task", [samples.add, samples.fail])
def test_who_is_told(call, alias, task):
    told = []

    def receiver(sender, task_result, signal, **more):
        assert sender is type(task_backends[alias])
        # Whoever reports errors asks for the one at hand.
        told.append((signal, str(task_result.status), "LookupError" in traceback.format_exc()))

    signals = (task_enqueued, task_started, task_finished)
    for signal in signals:
        signal.connect(receiver)
    try:
        call(task, 1)
    finally:
        for signal in signals:
            signal.disconnect(receiver)
    said = {(signal, status) for signal, status, _ in told}
    ended = "SUCCESSFUL" if task is samples.add else "FAILED"
    assert {(task_started, "RUNNING"), (task_finished, ended)} <= said
    # Only the one that has enqueued it and nothing more says so.
    assert alias == "reference" or told[0][:2] == (task_enqueued, "READY")
    assert alias == "reference" or told[-1][2] is (task is samples.fail)


def test_results_are_had_by_their_id():
    result = samples.add.enqueue(1)
    assert samples.add.get_result(result.id).status == TaskResultStatus.READY
    with pytest.raises(ValueError, match="not finished"):
        _ = result.return_value
    work()
    assert samples.add.get_result(result.id).return_value == 2
    with pytest.raises(TaskResultMismatch):
        samples.fail.get_result(result.id)
    with pytest.raises(TaskResultDoesNotExist):
        samples.add.get_result("unknown")
    with pytest.raises(TaskResultDoesNotExist):
        samples.add.using(backend="stubborn").get_result(result.id)


@pytest.mark.django_db(transaction=True)
async def test_the_same_from_coroutines():
    result = await samples.add.aenqueue(1)
    assert (await samples.add.aget_result(result.id)).status == TaskResultStatus.READY
    await QueuedTask.objects.filter(pk=result.id).aupdate(status="SUCCESSFUL", value=2)
    await result.arefresh()
    assert result.return_value == 2


def test_it_says_what_it_can():
    backend = task_backends["default"]
    assert backend.supports_defer
    assert backend.supports_async_task
    assert backend.supports_get_result
    assert backend.supports_priority


# Transactions, and the broker ------------------------------------------------------------------------------


def test_a_task_is_announced_when_its_transaction_has_committed(commits, sent):
    with commits():
        result = samples.add.using(queue_name="slow").enqueue(1)
        assert sent.messages == []
    (batch,) = sent.publisher.batches
    assert [channel for channel, _ in batch] == ["carillon.tasks.default.slow"]
    assert QueuedTask.objects.get(pk=result.id).announced


@pytest.mark.django_db(transaction=True)
def test_a_task_of_a_transaction_that_is_rolled_back_never_was(sent):
    with transaction.atomic():
        samples.add.enqueue(1)
        transaction.set_rollback(True)
    assert (QueuedTask.objects.count(), sent.messages) == (0, [])


def test_a_broker_that_is_away_is_waited_for_once_and_workers_announce(commits, sent, monkeypatch):
    tried = []
    monkeypatch.setattr(backends.DurableBackend, "announce", counted(tried, backends.DurableBackend.announce))
    sent.publisher.away = True
    with commits():
        for number in range(3):
            samples.add.enqueue(number)
    assert len(tried) == 1
    sent.publisher.away = False
    assert running.announce_due(task_backends["default"]) == 3
    assert len(sent.messages) == 3
    assert running.announce_due(task_backends["default"]) == 0


def counted(tried, announce):
    def counting(self, rows):
        tried.append(rows)
        announce(self, rows)

    return counting


def test_messages_that_were_lost_are_sent_anew(commits, sent):
    with commits():
        samples.add.enqueue(1)
        samples.add.using(queue_name="slow").enqueue(2)
    sent.clear()
    backend = task_backends["default"]
    assert running.announce_again(backend, QUEUES) == 0  # they have just come
    QueuedTask.objects.update(due=timezone.now() - timedelta(seconds=running.IDLE + 1))
    assert running.announce_again(backend, ["slow"]) == 1
    assert running.announce_due(backend) == 1
    assert len(sent.messages) == 1


@pytest.fixture
def lost(commits, sent):
    """A task of each queue has waited for long, and the broker has lost the messages."""
    with commits():
        for queue in QUEUES:
            samples.add.using(queue_name=queue).enqueue(1)
    sent.clear()
    QueuedTask.objects.update(due=timezone.now() - timedelta(hours=1))


def told(sent):
    return [channel.rpartition(".")[2] for batch in sent.publisher.batches for channel, _ in batch]


@pytest.fixture
def runner(looks, monkeypatch):
    """Its tasks are in hand until a test says that they have ended: `end(queue)`."""
    runner = running.Runner(task_backends["default"], QUEUES, 2, 1)
    hands, loop = {queue: [] for queue in QUEUES}, asyncio.new_event_loop()

    def begin(queue):
        hand = loop.create_future()
        handling = loop.create_task(runner._handle(queue, {}))
        hands[queue].append((hand, handling))
        monkeypatch.setattr(loop, "run_in_executor", lambda *given: hand)
        loop.run_until_complete(asyncio.sleep(0))

    def end(queue):
        hand, handling = hands[queue].pop()
        hand.set_result(None)
        loop.run_until_complete(handling)

    runner.begin, runner.end = begin, end
    yield runner
    for queue in QUEUES:
        while hands[queue]:
            end(queue)
    loop.close()


def seconds(count):
    return [lambda: None] * int(count)


def test_messages_that_were_lost_are_sent_anew_while_another_task_runs(lost, sent, looks, runner):
    """For as long as one of four slots had a long task, nobody looked."""
    runner.begin("default")
    runner._running["a long one"] = timezone.now()
    looks(runner, *seconds(running.IDLE - 2))
    assert told(sent) == []
    looks(runner, *seconds(4))
    assert sorted(told(sent)) == QUEUES
    looks(runner, *seconds(3))
    assert len(told(sent)) == 2


def test_messages_that_were_lost_are_sent_anew_while_others_come(lost, sent, looks, runner):
    """Each of them took the oldest task, so that as many waited as ever."""

    def short():
        runner.begin("default")
        runner.end("default")

    looks(runner, *[short] * int(running.IDLE + 2))
    assert sorted(told(sent)) == QUEUES


def test_a_queue_that_is_full_is_not_announced_anew(lost, sent, looks, runner):
    """Its messages wait at the broker: more of them each minute would have no end."""
    runner.begin("default")
    runner.begin("default")
    looks(runner, *seconds(10 * running.IDLE))
    assert set(told(sent)) == {"slow"}
    sent.clear()
    runner.end("default")  # a message that waits would come now
    looks(runner, *seconds(running.IDLE - 2))
    assert "default" not in told(sent)
    looks(runner, *seconds(4))
    assert "default" in told(sent)


# Which, and when -------------------------------------------------------------------------------------------


def test_the_most_urgent_is_next_and_of_equals_the_oldest():
    for number, priority in enumerate((0, -100, 5, 0, 100, 5)):
        samples.add.using(priority=priority).enqueue(number)
    work()
    assert samples.done == [4, 2, 5, 0, 3, 1]


def test_a_queue_is_not_held_up_by_another():
    samples.add.using(queue_name="slow", priority=100).enqueue(1)
    assert running.take(task_backends["default"], "default", "worker") is None


def test_nothing_is_run_before_its_time(commits, sent):
    with commits():
        result = samples.add.using(run_after=timezone.now() + timedelta(hours=1)).enqueue(1)
    work()
    assert (samples.done, sent.messages) == ([], [])
    assert running.announce_due(task_backends["default"]) == 0
    QueuedTask.objects.update(due=timezone.now() - timedelta(seconds=1))
    assert running.announce_due(task_backends["default"]) == 1
    work()
    assert samples.add.get_result(result.id).return_value == 2


def test_a_task_that_was_not_deferred_is_due_whatever_the_clock_of_its_worker_says(monkeypatch):
    """It is another host's, or it was read before another worker took the task of our message."""
    now, backend = timezone.now(), task_backends["default"]
    samples.add.enqueue(1)
    monkeypatch.setattr(running.timezone, "now", lambda: now - timedelta(seconds=1))
    assert running.take(backend, "default", "worker")


def test_a_task_of_a_host_whose_clock_is_ahead_is_announced_and_taken_at_once(sent):
    backend, ahead = task_backends["default"], timezone.now() + timedelta(minutes=10)
    samples.add.enqueue(1)
    QueuedTask.objects.update(enqueued=ahead, due=ahead)
    assert running.announce_due(backend) == 1
    assert running.announce_again(backend, QUEUES) == 1  # its message is lost
    assert running.announce_due(backend) == 1
    assert running.take(backend, "default", "worker")


def test_a_pause_is_by_the_clock_of_the_database(monkeypatch):
    now, backend = timezone.now(), task_backends["stubborn"]
    samples.fail.using(backend="stubborn").enqueue("x")
    monkeypatch.setattr(running.timezone, "now", lambda: now - timedelta(hours=1))
    work("stubborn")
    assert QueuedTask.objects.get().due > now + timedelta(seconds=9)
    assert running.take(backend, "default", "worker") is None


def test_who_looks_after_tasks_does_not_read_what_they_are_given():
    """Hundreds at a time, each of them as large as its arguments."""
    backend = task_backends["default"]
    samples.add.enqueue(1)
    running.take(backend, "default", "late")
    lapse()
    with CaptureQueriesContext(connection) as asked:
        running.recover(backend)
        assert running.announce_due(backend) == 1
    assert not [query["sql"] for query in asked if '"args"' in query["sql"]]


def test_a_run_that_went_to_another_worker_is_neither_kept_alive_nor_put_back_here(monkeypatch):
    backend = task_backends["default"]
    samples.add.enqueue(1)
    late = running.take(backend, "default", "late")
    lapse()
    running.recover(backend)
    second = running.take(backend, "default", "second")
    seen = QueuedTask.objects.get().seen
    runner = running.Runner(backend, ["default"], 1, 1)
    runner._running = {late.pk: late.attempted}
    monkeypatch.setattr(running, "LOOK", 0)
    monkeypatch.setattr(running, "recover", lambda *given: runner._ended.set())
    runner._look()
    assert QueuedTask.objects.get().seen == seen

    async def served(self):
        pass

    monkeypatch.setattr(running.Runner, "_serve", served)
    assert runner.run() is False
    assert QueuedTask.objects.get().status == "RUNNING"
    runner._running = {second.pk: second.attempted}
    assert runner.run() is False
    assert QueuedTask.objects.get().status == "READY"


def test_a_deferred_task_is_due_by_the_clock_of_the_database(sent, monkeypatch):
    """What a worker's clock says would leave it without a message, or its message without it."""
    now = timezone.now()
    samples.add.using(run_after=now + timedelta(hours=2)).enqueue(1)
    backend = task_backends["default"]
    for due, hours, found in ((-1, -1, 1), (60, 1, 0)):
        QueuedTask.objects.update(due=now + timedelta(seconds=due), announced=False)
        monkeypatch.setattr(running.timezone, "now", lambda hours=hours: now + timedelta(hours=hours))
        assert running.announce_due(backend) == found
        row = running.take(backend, "default", "worker")
        assert bool(row) == bool(found)
        QueuedTask.objects.update(status="READY")


def test_a_task_that_failed_while_it_was_told_of_is_told_of_again(sent, monkeypatch):
    """A worker had it before the broker had confirmed the message that is the last of many."""
    backend = task_backends["stubborn"]
    samples.fail.using(backend="stubborn").enqueue("x")
    samples.add.using(backend="stubborn").enqueue(1)
    send_many = sent.publisher.send_many

    def quick(*given, **how):
        send_many(*given, **how)
        running.run(backend, running.take(backend, "default", "worker"))

    monkeypatch.setattr(sent.publisher, "send_many", quick)
    assert running.announce_due(backend) == 2
    failed, waiting = QueuedTask.objects.order_by("path", "pk").reverse()
    assert (failed.status, failed.announced) == ("READY", False)
    assert (waiting.status, waiting.announced) == ("READY", True)
    monkeypatch.undo()
    assert running.take(backend, "default", "worker").pk == waiting.pk
    assert running.take(backend, "default", "worker") is None  # its pause is kept
    QueuedTask.objects.filter(pk=failed.pk).update(due=timezone.now() - timedelta(seconds=1))
    assert running.announce_due(backend) == 1


def test_one_task_is_taken_by_one_worker(monkeypatch):
    """Another takes it between the look and the grip of the first."""
    samples.add.enqueue(1)
    backend = task_backends["default"]
    queryset = type(QueuedTask.objects.all())
    first, taken = queryset.first, []

    def beaten(self):
        found = first(self)
        monkeypatch.undo()
        taken.append(running.take(backend, "default", "quick"))
        return found

    monkeypatch.setattr(queryset, "first", beaten)
    assert running.take(backend, "default", "slow") is None
    assert taken[0].workers == ["quick"]


# Again, and no more ----------------------------------------------------------------------------------------


def test_a_task_that_raises_is_run_as_often_as_said_with_growing_pauses():
    result = samples.fail.using(backend="stubborn").enqueue("x")
    pauses = []
    for _ in range(3):
        work("stubborn")
        row = QueuedTask.objects.get()
        if row.status == "READY":
            pauses.append(round((row.due - timezone.now()).total_seconds(), -1))
            assert (row.announced, row.finished) == (False, None)
            QueuedTask.objects.update(due=timezone.now() - timedelta(seconds=1))
    result.refresh()
    assert (result.status, result.attempts, len(result.errors)) == (TaskResultStatus.FAILED, 3, 3)
    assert pauses == [10, 20]


@pytest.mark.parametrize(
    ("errors", "attempts", "expected"), [(1, 1, None), (1, 2, 10), (2, 2, None), (3, 9, 40), (15, 99, 3600)]
)
def test_pauses(errors, attempts, expected):
    assert running.pause_after(errors, attempts, 10) == expected


def lapse():
    QueuedTask.objects.update(seen=timezone.now() - timedelta(seconds=running.LEASE + 1))


def test_a_task_whose_worker_ended_is_run_by_another():
    result = samples.add.enqueue(1)
    backend = task_backends["default"]
    running.take(backend, "default", "first")
    assert running.recover(backend) == 0  # it has just said that it runs
    lapse()
    assert running.recover(backend) == 1
    assert running.announce_due(backend) == 1
    work(worker="second")
    result.refresh()
    assert (result.return_value, result.worker_ids) == (2, ["first", "second"])


def test_a_task_that_ends_its_workers_fails_at_last():
    result = samples.add.enqueue(1)
    backend = task_backends["default"]
    for number in range(running.LIVES):
        assert running.take(backend, "default", f"worker {number}")
        lapse()
        running.recover(backend)
    result.refresh()
    assert (result.status, samples.done) == (TaskResultStatus.FAILED, [])
    assert result.errors[0].exception_class is running.WorkerLost


@pytest.mark.parametrize("hangs", [False, True])
def test_who_could_say_nothing_while_the_database_was_away_has_not_gone(looks, monkeypatch, hangs):
    """The first to look after an outage ran the tasks of all others, which ran on."""
    backend = task_backends["default"]
    samples.add.enqueue(1)
    running.take(backend, "default", "another")
    runner = running.Runner(backend, ["default"], 1, 1)
    queryset = type(QueuedTask.objects.all())
    fetch = queryset._fetch_all

    def away(self):
        if hangs:  # it is answered in the end
            looks.clock += running.LEASE + 10
            monkeypatch.setattr(queryset, "_fetch_all", fetch)
            return fetch(self)
        raise Error("away")

    seconds = int(running.LEASE)
    looks(runner, *[lambda: None] * 2 * seconds)  # it was there for long
    lapse()
    monkeypatch.setattr(queryset, "_fetch_all", away)
    looks(runner, *[lambda: None] * (1 if hangs else 40))
    monkeypatch.setattr(queryset, "_fetch_all", fetch)
    looks(runner, *[lambda: None] * (seconds - 2))
    assert QueuedTask.objects.get().status == "RUNNING"
    looks(runner, *[lambda: None] * 4)
    assert QueuedTask.objects.get().status == "READY"  # now it could have said so


def test_who_has_just_come_does_not_know_who_has_gone(looks):
    backend = task_backends["default"]
    samples.add.enqueue(1)
    running.take(backend, "default", "another")
    lapse()
    runner = running.Runner(backend, ["default"], 1, 1)
    looks(runner, *[lambda: None] * int(running.LEASE - 2))
    assert QueuedTask.objects.get().status == "RUNNING"
    looks(runner, *[lambda: None] * 4)
    assert QueuedTask.objects.get().status == "READY"


def test_a_worker_that_speaks_up_between_the_look_and_the_verdict_has_not_gone():
    samples.add.enqueue(1)
    backend = task_backends["default"]
    running.take(backend, "default", "late")
    QueuedTask.objects.update(workers=["late"] * running.LIVES)
    lapse()
    running.recover(backend, lambda: QueuedTask.objects.update(seen=timezone.now()))
    assert QueuedTask.objects.get().status == "RUNNING"


def test_who_looks_after_others_waits_for_no_database(monkeypatch):
    samples.add.enqueue(1)
    backend = task_backends["default"]
    running.take(backend, "default", "late")
    QueuedTask.objects.update(workers=["late"] * running.LIVES)
    lapse()

    def away(self, **changes):
        raise Error("away")

    monkeypatch.setattr(type(QueuedTask.objects.all()), "update", away)
    monkeypatch.setattr(running.time, "sleep", lambda seconds: pytest.fail("waited"))
    with pytest.raises(Error, match="away"):
        running.recover(backend)


def test_what_was_given_to_another_is_his(caplog):
    result = samples.add.enqueue(1)
    backend = task_backends["default"]
    late = running.take(backend, "default", "late")
    lapse()
    running.recover(backend)
    running.take(backend, "default", "second")
    running.run(backend, late)
    result.refresh()
    assert (result.status, result.finished_at) == (TaskResultStatus.RUNNING, None)
    assert "went to another worker" in caplog.text


def test_a_database_that_is_away_for_a_moment_costs_no_second_run(monkeypatch):
    samples.add.enqueue(1)
    backend = task_backends["default"]
    row = running.take(backend, "default", "worker")
    queryset = type(QueuedTask.objects.all())
    update, failures = queryset.update, [Error("away"), Error("away")]

    def failing(self, **changes):
        if failures:
            raise failures.pop()
        return update(self, **changes)

    monkeypatch.setattr(queryset, "update", failing)
    monkeypatch.setattr(running.time, "sleep", lambda seconds: None)
    running.run(backend, row)
    assert QueuedTask.objects.get().status == "SUCCESSFUL"


def test_a_database_that_is_away_for_long_costs_no_second_run_either(looks, monkeypatch, caplog):
    """After a minute the result was forgotten, and the task was done again."""
    samples.add.enqueue(1)
    runner = running.Runner(task_backends["default"], ["default"], 1, 1)
    queryset = type(QueuedTask.objects.all())
    update, renewed = queryset.update, []

    def away(self, **changes):
        if "finished" in changes and len(renewed) < 600:
            renewed.extend(runner._running)  # and its lease will be renewed
            raise Error("away")
        return update(self, **changes)

    monkeypatch.setattr(queryset, "update", away)
    runner._work("default")
    assert looks.clock >= 1600
    assert (QueuedTask.objects.get().status, samples.done, runner._running) == ("SUCCESSFUL", [1], {})
    assert caplog.text.count("cannot be kept yet") == 1


@pytest.fixture
def heard():
    """The results that `task_finished` told of."""
    heard = []

    def listen(sender, task_result, **more):
        heard.append(task_result)

    task_finished.connect(listen)
    yield heard
    task_finished.disconnect(listen)


@pytest.mark.parametrize("alias", ["default", "stubborn"])
@pytest.mark.parametrize("task", [samples.add, samples.fail])
def test_an_end_whose_answer_is_lost_is_kept_and_told_of(monkeypatch, caplog, heard, task, alias):
    """The row said that it had ended, and the log that it had gone to another worker."""
    task.using(backend=alias).enqueue(1)
    backend = task_backends[alias]
    row = running.take(backend, "default", "worker")
    queryset = type(QueuedTask.objects.all())
    update = queryset.update

    def deaf(self, **changes):
        update(self, **changes)
        monkeypatch.setattr(queryset, "update", update)
        raise Error("server closed the connection unexpectedly")

    monkeypatch.setattr(queryset, "update", deaf)
    monkeypatch.setattr(running.time, "sleep", lambda seconds: None)
    running.run(backend, row)
    ended = (task, alias) != (samples.fail, "stubborn")  # it has more attempts
    assert [result.id for result in heard] == [row.pk] * ended
    assert QueuedTask.objects.get().status == ("READY" if not ended else heard[0].status)
    assert "another worker" not in caplog.text


@pytest.mark.parametrize("verdict", ["put back", "lost"])
def test_an_end_that_another_put_there_is_not_ours(monkeypatch, caplog, heard, verdict):
    samples.add.enqueue(1)
    backend = task_backends["default"]
    row = running.take(backend, "default", "worker")
    QueuedTask.objects.update(workers=["late"] * (running.LIVES if verdict == "lost" else 1))
    queryset = type(QueuedTask.objects.all())
    update = queryset.update

    def away(self, **changes):
        monkeypatch.setattr(queryset, "update", update)
        monkeypatch.setattr(running, "_tell_aside", lambda *given: None)
        lapse()
        running.recover(backend)
        raise Error("away")

    monkeypatch.setattr(queryset, "update", away)
    monkeypatch.setattr(running.time, "sleep", lambda seconds: None)
    running.run(backend, row)
    assert QueuedTask.objects.get().status == ("FAILED" if verdict == "lost" else "READY")
    assert heard == []
    assert "another worker" in caplog.text


def test_a_task_that_has_lost_its_workers_is_told_of_aside():
    """Who listens may take long: meanwhile nobody would say what else runs."""
    samples.add.enqueue(1)
    backend = task_backends["default"]
    running.take(backend, "default", "worker")
    QueuedTask.objects.update(workers=["late"] * running.LIVES)
    lapse()
    on, told, heard = threading.Event(), threading.Event(), []

    def slow(sender, task_result, **more):
        assert on.wait(10)
        assert "WorkerLost" in traceback.format_exc()
        heard.append((task_result.status, task_result.args, task_result.errors[0].exception_class))
        told.set()

    task_finished.connect(slow)
    try:
        running.recover(backend)
        assert heard == []
        on.set()
        assert told.wait(10)
    finally:
        task_finished.disconnect(slow)
    assert heard == [(TaskResultStatus.FAILED, [1], running.WorkerLost)]


def test_a_task_that_has_lost_its_workers_and_its_code_has_failed():
    samples.add.enqueue(1)
    backend = task_backends["default"]
    running.take(backend, "default", "worker")
    QueuedTask.objects.update(workers=["late"] * running.LIVES, path="tests.unit.tasks.samples.gone")
    lapse()
    assert running.recover(backend) == 1
    assert QueuedTask.objects.get().status == "FAILED"


def test_a_task_that_this_release_does_not_have_waits_for_one_that_has_it():
    samples.add.enqueue(1)
    QueuedTask.objects.update(path="tests.unit.tasks.samples.to_come")
    work()
    row = QueuedTask.objects.get()
    assert (row.status, row.errors[0]["exception_class_path"]) == ("READY", "builtins.ImportError")
    with pytest.raises(TaskResultDoesNotExist):
        samples.add.get_result(row.pk)
    QueuedTask.objects.update(path="tests.unit.tasks.samples.ordinary", due=timezone.now())
    work()
    assert QueuedTask.objects.get().errors[1]["exception_class_path"] == "builtins.TypeError"


# The end of the process ------------------------------------------------------------------------------------


class Served:
    """A runner of two queues whose workers are made up: that of `default` has a task that does not end, and
    that of `slow` fails then, or is told to stop."""

    def __init__(self, monkeypatch, error=None):
        self.go, self.said = threading.Event(), []
        samples.add.enqueue(1)
        backend = task_backends["default"]
        taken = running.take(backend, "default", "worker")
        self.runner = running.Runner(backend, ["default", "slow"], 1, 1)
        begun = threading.Event()

        def run(backend, row):
            begun.set()
            assert self.go.wait(10)

        def look(runner):
            runner._ended.wait()
            self.said.append("looks end")

        class Worker:
            def __init__(worker, layer, handle, channel, concurrency, **more):
                worker.handle, worker.channel, worker.stop_ = handle, channel, asyncio.Event()

            def stop(worker):
                worker.stop_.set()

            async def run(worker):
                if worker.channel.endswith("slow"):
                    await asyncio.to_thread(begun.wait, 10)
                    if error is not None:
                        raise error
                    os.kill(os.getpid(), SIGTERM)
                    return
                handling = asyncio.create_task(worker.handle({"type": "carillon.task"}))
                await worker.stop_.wait()
                await asyncio.wait([handling], timeout=10 if self.go.is_set() else 0.05)  # the drain
                self.said.append("drained")
                handling.cancel()

        async def close(layer):
            pass

        monkeypatch.setattr(running, "take", lambda *given: taken)
        monkeypatch.setattr(running, "run", run)
        monkeypatch.setattr(running, "Worker", Worker)
        monkeypatch.setattr(running.Runner, "_look", look)
        monkeypatch.setattr(FakeLayer, "close", close, raising=False)


@pytest.fixture
def served(monkeypatch):
    made = []

    def serve(error=None):
        made.append(Served(monkeypatch, error))
        return made[0]

    yield serve
    for each in made:
        each.go.set()
        each.runner._pool.shutdown()


def test_a_queue_that_cannot_be_worked_on_leaves_no_task_of_another_without_a_lease(served, caplog):
    """What ran went on, nobody said so, and another process began it beside it."""
    cut = served(LayerError("inequivalent arg"))
    assert cut.runner.run() is False  # so that the process ends at once
    assert QueuedTask.objects.get().status == "READY"
    assert cut.said == ["drained", "looks end"]
    assert "inequivalent arg" in caplog.text


def test_a_queue_that_cannot_be_worked_on_is_said_where_nothing_runs(served):
    cut = served(LayerError("inequivalent arg"))
    cut.go.set()
    with pytest.raises(LayerError, match="inequivalent arg"):
        cut.runner.run()


def test_what_is_cut_off_while_the_database_is_away_holds_up_no_end(served, monkeypatch, caplog):
    """The process waited for its threads, whose tasks others had begun by then."""

    def away(rows):
        raise Error("away")

    monkeypatch.setattr(running, "put_back", away)
    assert served().runner.run() is False
    assert "after the database is back: away" in caplog.text


def test_a_look_that_hangs_holds_up_no_end(served, monkeypatch):
    cut = served()
    monkeypatch.setattr(running.Runner, "_look", lambda runner: cut.go.wait(10))
    monkeypatch.setattr(running, "SAY", 0.1)
    assert cut.runner.run() is False
    assert not cut.go.is_set()
    assert QueuedTask.objects.get().status == "READY"


def test_what_is_taken_while_the_process_ends_is_put_back():
    samples.add.enqueue(1)
    runner = running.Runner(task_backends["default"], ["default"], 1, 1)
    runner._ended.set()
    runner._work("default")
    assert (QueuedTask.objects.get().status, samples.done, runner._running) == ("READY", [], {})


# What is kept ----------------------------------------------------------------------------------------------


def test_a_value_that_is_too_large_is_not_kept():
    result = samples.write.using(backend="brief").enqueue(99)
    work("brief")
    row = QueuedTask.objects.get(pk=result.id)
    assert (row.status, row.value) == ("FAILED", None)
    assert "101 bytes of JSON: result_bytes is 100" in row.errors[-1]["traceback"]


@pytest.mark.parametrize("value", [float("nan"), [float("inf")]])
def test_a_value_that_is_no_number_of_json_is_the_end(value):
    """The task is done: it is not run again, as often as one that raises may be."""
    result = samples.give.using(backend="stubborn").enqueue(str(value))
    work("stubborn")
    result.refresh()
    assert (result.status, result.attempts, samples.done) == (TaskResultStatus.FAILED, 1, [str(value)])
    assert "not JSON compliant" in result.errors[0].traceback


@pytest.mark.parametrize("error", [DataError, IntegrityError])
def test_a_value_that_the_database_does_not_take_is_the_end(monkeypatch, error):
    """Such as text with a NUL: the database was taken to be away, and the task was run five times."""
    result = samples.add.enqueue(1)
    queryset = type(QueuedTask.objects.all())
    update = queryset.update

    def picky(self, **changes):
        if changes.get("value") is not None:
            raise error("unsupported Unicode escape sequence")
        return update(self, **changes)

    monkeypatch.setattr(queryset, "update", picky)
    monkeypatch.setattr(running.time, "sleep", lambda seconds: pytest.fail("waited"))
    work()
    result.refresh()
    assert (result.status, result.attempts, samples.done) == (TaskResultStatus.FAILED, 1, [1])
    assert result.errors[0].exception_class is running.Unkept
    assert "unsupported Unicode escape sequence" in result.errors[0].traceback


def test_words_of_an_exception_are_kept_whatever_they_are():
    result = samples.fail_in_words_of_its_own.enqueue()
    work()
    result.refresh()
    assert result.status == TaskResultStatus.FAILED
    assert "LookupError: a \ufffd and half a \ufffd" in result.errors[0].traceback


def test_a_listener_that_raises_ends_no_task(caplog):
    def broken(sender, **kwargs):
        raise RuntimeError("listener")

    for told in (task_started, task_finished):
        told.connect(broken)
    try:
        result = samples.add.enqueue(1)
        work()
    finally:
        for told in (task_started, task_finished):
            told.disconnect(broken)
    result.refresh()
    assert (result.status, samples.done) == (TaskResultStatus.SUCCESSFUL, [1])
    assert "listener" in caplog.text


def test_a_traceback_is_cut():
    samples.fail.enqueue("x" * 3 * running.TRACEBACK)
    work()
    assert len(QueuedTask.objects.get().errors[0]["traceback"]) == running.TRACEBACK


def test_results_go_after_their_days_and_what_waits_stays(settings):
    settings.CARILLON = {**settings.CARILLON, "KEEP_TASKS_DAYS": 7}
    old, recent = samples.add.enqueue(1), samples.add.enqueue(2)
    work()
    waiting = samples.add.enqueue(3)
    QueuedTask.objects.filter(pk=old.id).update(finished=timezone.now() - timedelta(days=8))
    (kind,) = (kind for kind in kinds() if kind.name == "tasks")
    said = []
    Run(seconds=60, rows=100).over(kind, said.append)
    assert set(QueuedTask.objects.values_list("pk", flat=True)) == {recent.id, waiting.id}
    assert "1 queued task" in said[0]


# What is wrong is said -------------------------------------------------------------------------------------


def problems(**changes):
    backend = backends.DurableBackend("default", {"QUEUES": ["default"], **changes})
    return [f"{problem.msg} {problem.hint}" for problem in backend.check()]


def test_a_layer_that_is_not_durable_for_tasks_is_named(monkeypatch):
    (said,) = problems()
    assert "'carillon.tasks.default.default' is not durable" in said
    for durable, wrong in (({"carillon.tasks.*": {"batch": 1}}, 0), ((), 1)):
        layer = AMQPChannelLayer(durable=durable)
        monkeypatch.setattr(backends, "get_channel_layer", lambda layer=layer: layer)
        assert len(problems()) == wrong


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"QUEUES": ["two words"]}, "'two words' has no name of a channel"),
        ({"OPTIONS": {"retries": 3}}, "OPTIONS has no 'retries'. There are attempts"),
        ({"OPTIONS": {"attempts": 0}}, "attempts is 0"),
    ],
)
def test_a_setting_that_cannot_be(changes, word):
    assert any(word in problem for problem in problems(**changes))


def test_the_app_that_is_missing(settings):
    settings.INSTALLED_APPS = [name for name in settings.INSTALLED_APPS if name != "carillon.tasks"]
    assert any("carillon.tasks is not in INSTALLED_APPS" in problem for problem in problems())
