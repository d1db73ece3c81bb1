"""What has ended goes after so many days, in batches; what is active stays."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from django.contrib.sessions.models import Session
from django.db import OperationalError
from django.utils import timezone

from carillon import __main__ as command
from carillon import retention
from carillon.accounts.models import ApiToken, UserSession
from carillon.events import NotificationsUnavailable
from carillon.events.models import Outbox
from carillon.metrics import names
from carillon.process import launcher
from carillon.relay import dead_letters
from tower import retention as of_jobs
from tower.models import Job, JobEvent

pytestmark = pytest.mark.django_db


def ago(days: float):
    return timezone.now() - timedelta(days=days)


@pytest.fixture
def job(people):
    """A function that makes a job that finished so many days ago, with events."""

    def make(days: float, status="successful", events=3, **fields) -> Job:
        finished = ago(days) if status in of_jobs.FINAL else None
        made = Job.objects.create(
            owner=people.ann, name="a job", status=status, finished=finished, created=ago(days), **fields
        )
        JobEvent.objects.bulk_create(
            JobEvent(job=made, counter=number, event="x", stdout="line") for number in range(events)
        )
        return made

    return make


class Clock:
    """Time that passes where somebody sleeps, and a second a batch."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        self.now += 0.5
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


def run(name: str = "jobs", seconds: float = 1000, rows: int = 10_000, dry: bool = False) -> str:
    """The line of one kind."""
    clock, lines = Clock(), []
    (kind,) = [kind for kind in retention.kinds() if kind.name == name]
    retention.Run(seconds, rows, dry, clock, clock.sleep).over(kind, lines.append)
    (line,) = lines
    return line


def test_jobs_go_with_their_events_and_those_that_are_active_stay(job):
    old = [job(181) for _ in range(3)]
    kept = [
        job(179),
        *(job(500, status) for status in ("new", "pending", "waiting", "running")),
    ]
    workflow = job(400, "running", kind="workflow_job")
    kept += [workflow, job(300, workflow_job=workflow)]
    over = job(400, kind="workflow_job")
    kept += [over, job(300, "running", workflow_job=over)]
    assert run(dry=True).startswith("jobs: 3 jobs would be deleted, ended before 20")
    assert Job.objects.count() == len(old) + len(kept)
    assert run().startswith("jobs: 3 jobs, 9 job events deleted, ended before 20")
    assert set(Job.objects.all()) == set(kept)
    assert JobEvent.objects.count() == 3 * len(kept)
    assert run().startswith("jobs: none deleted")


def test_a_workflow_that_has_ended_goes_and_its_younger_jobs_stay(job):
    workflow = job(400, kind="workflow_job")
    node = job(10, workflow_job=workflow)
    assert "1 jobs" in run()
    node.refresh_from_db()
    assert node.workflow_job is None


def test_the_events_of_a_large_job_go_before_it_a_batch_at_a_time(job, monkeypatch):
    monkeypatch.setattr(of_jobs, "EVENTS", 10)
    job(200, events=25)
    steps = []
    (kind,) = [kind for kind in retention.kinds() if kind.name == "jobs"]
    while any((gone := kind.delete(kind.ended(ago(180)))).values()):
        steps.append(gone)
    assert steps == [
        {"tower.JobEvent": 10},
        {"tower.JobEvent": 10},
        {"tower.Job": 1, "tower.JobEvent": 5},
    ]


def test_a_run_has_a_deadline_and_a_most_and_the_next_goes_on(job, monkeypatch):
    monkeypatch.setattr(of_jobs, "BATCH", 10)  # two jobs
    for _ in range(8):
        job(200, events=1)
    assert run(seconds=2).endswith("; its 2 seconds are over")
    left = Job.objects.count() + JobEvent.objects.count()
    assert 0 < left < 16
    line = run(rows=1)
    assert line.startswith("jobs: 2 jobs, 2 job events deleted")
    assert line.endswith("; its 1 rows are deleted")
    assert 0 < Job.objects.count() + JobEvent.objects.count() < left
    run()
    assert not Job.objects.exists()


class Deadlock(Exception):
    sqlstate = "40P01"


def test_a_batch_that_somebody_else_deletes_too_is_tried_again(job, monkeypatch):
    job(200)

    def delete(due):
        raise OperationalError("deadlock detected") from Deadlock()

    (kind,) = [kind for kind in retention.kinds() if kind.name == "jobs"]
    tries = [delete, kind.delete]
    monkeypatch.setattr(type(kind), "delete", lambda self, due: tries.pop(0)(due), raising=False)
    assert run().startswith("jobs: 1 jobs, 3 job events deleted")


def test_others_have_the_database_for_as_long_as_a_batch_took(job):
    job(200)
    clock = Clock()
    for kind in retention.kinds():
        retention.Run(1000, 1000, False, clock, clock.sleep).over(kind, lambda line: None)
    assert clock.slept == [0.5]


def test_for_ever(job, settings):
    job(10_000)
    for days in (0, None, 1_000_000):  # the last is before the year 1
        settings.CARILLON = {**settings.CARILLON, "KEEP_JOBS_DAYS": days}
        assert run() == f"jobs: kept for ever (KEEP_JOBS_DAYS is {days})"
        assert retention.overdue()["jobs"] == 0
    assert Job.objects.count() == 1


def test_tokens_go_that_expired_long_ago_and_no_other(people):
    def token(days: float | None, **fields) -> ApiToken:
        expires = None if days is None else ago(days)
        return ApiToken.issue(people.ann, expires=expires, **fields)[0]

    kept = [token(None), token(-1), token(89)]
    gone = token(91)
    token(91, parent=gone)
    # By hand: none is made so.
    lives = token(None, parent=token(91))
    kept += [lives, lives.parent]
    assert run("tokens").startswith("tokens: 2 api tokens deleted")
    assert set(ApiToken.objects.all()) == set(kept)


def test_sessions_go_that_have_expired(people):
    for key, days in (("old", 0.1), ("new", -0.1)):
        session = Session.objects.create(session_key=key, session_data="", expire_date=ago(days))
        UserSession.objects.create(user=people.ann, session=session)
    assert run("sessions").startswith("sessions: 1 sessions, 1 user sessions deleted")
    assert [row.pk for row in Session.objects.all()] == ["new"]


def test_what_waits_in_the_outbox_is_nobody_s_to_prune(people):
    row = Outbox.objects.create(message=b"")
    Outbox.objects.update(created=ago(10_000))
    for kind in retention.kinds():
        run(kind.name)
    assert Outbox.objects.filter(pk=row.pk).exists()


def test_while_the_broker_is_away_many_rows_that_go_wait_for_it_once(job, commits, monkeypatch):
    tries = []

    def away(messages):
        tries.append(len(messages))
        raise NotificationsUnavailable

    monkeypatch.setattr("carillon.events.outbox.queue.publish", away)
    for _ in range(20):
        job(200)
    with commits():
        run()
    assert (tries, Outbox.objects.count()) == ([20], 20)


def test_for_how_long_something_has_been_due(job):
    job(183)
    job(10)
    assert retention.overdue()["jobs"] == pytest.approx(3 * 24 * 3600, abs=60)
    assert retention.overdue()["tokens"] == 0


async def test_the_metric(monkeypatch):
    monkeypatch.setattr(retention, "overdue", lambda: {"jobs": 7.0})
    await retention._measure()
    assert names.OVERDUE.labels("jobs")._value.get() == 7.0


async def test_a_fault_in_an_app_s_retention_is_said_and_tried_again(monkeypatch, caplog):
    looks = []

    def overdue() -> dict[str, float]:
        looks.append(1)
        raise TypeError("a setting that is no number")

    monkeypatch.setattr(retention, "overdue", overdue)
    monkeypatch.setattr(retention, "MEASURE", 0.01)
    measuring = asyncio.create_task(retention.measure())
    async with asyncio.timeout(5):
        while len(looks) < 2:
            await asyncio.sleep(0.01)
    measuring.cancel()
    assert "It cannot be said what is due" in caplog.text


# The command -----------------------------------------------------------------------------------------------


@pytest.fixture
def prune(monkeypatch, capfd):
    """`prune("--dry-run")`: exit code, lines, and errors; the broker has two dead letters."""
    monkeypatch.setattr(launcher, "set_up", lambda: None)
    letters: list[bool] = []

    async def drop(before, dry_run):
        letters.append(dry_run)
        return 2

    monkeypatch.setattr(dead_letters, "prune", drop)

    def run(*arguments: str) -> tuple[int, list[str], str]:
        code = command.main(["prune", *arguments])
        out, err = capfd.readouterr()
        return code, out.splitlines(), err

    run.letters = letters
    return run


def test_one_line_a_kind(prune, job):
    job(200)
    code, lines, _ = prune("--dry-run")
    assert code == 0
    assert [line.split(",")[0] for line in lines] == [
        "tokens: none would be deleted",
        "sessions: none would be deleted",
        "ended sessions: none would be deleted",
        "audit: none would be deleted",
        "jobs: 1 jobs would be deleted",
        "tasks: none would be deleted",
        "dead letters: 2 would be deleted",
    ]
    code, lines, _ = prune()
    assert (code, lines[4].split(" deleted")[0]) == (0, "jobs: 1 jobs, 3 job events")
    assert prune.letters == [True, False]


def test_dead_letters_may_be_kept(prune, settings):
    settings.CARILLON = {**settings.CARILLON, "KEEP_DEAD_LETTERS_DAYS": 0}
    assert prune()[1][-1] == "dead letters: kept for ever (KEEP_DEAD_LETTERS_DAYS is 0)"
    assert prune.letters == []


def test_a_check_deletes_nothing(prune, job):
    job(182)
    assert prune("--check", "49")[0] == 0
    code, lines, _ = prune("--check", "47")
    assert (code, lines[-2]) == (1, "jobs: due for 48 hours")
    assert Job.objects.exists()


def test_a_database_that_goes_away_is_said_and_what_was_deleted_too(prune, job, monkeypatch):
    monkeypatch.setattr(of_jobs, "EVENTS", 3)
    job(200)
    job(200)
    real, calls = of_jobs.Job.objects, []

    def alone(lock):
        calls.append(1)
        if len(calls) == 6:
            raise OperationalError("the connection is closed")
        return True

    monkeypatch.setattr(retention.locks, "alone", alone)
    code, lines, said = prune()
    assert code == launcher.EXIT_NOT_READY
    assert lines[-1].startswith("jobs: 3 job events deleted")
    assert "carillon: the database: the connection is closed" in said
    assert real.count() == 2
    assert prune.letters == []


def test_without_a_database(prune, monkeypatch):
    def probe(environment):
        raise launcher.NotReady("connection refused")

    monkeypatch.setattr(launcher, "DATABASE", launcher.Check("the database", probe, "Is it running?"))
    code, lines, said = prune()
    assert (code, lines) == (launcher.EXIT_NOT_READY, [])
    assert "carillon: the database: connection refused. Is it running?" in said


def test_without_a_broker_the_rest_is_done(prune, job, monkeypatch):
    from asgi_amqp import BrokerUnavailable

    async def away(before, dry_run):
        raise BrokerUnavailable("nobody listens")

    monkeypatch.setattr(dead_letters, "prune", away)
    job(200)
    code, lines, said = prune()
    assert code == launcher.EXIT_NOT_READY
    assert "jobs: 1 jobs" in lines[4]
    assert "carillon: the broker: nobody listens" in said


def test_another_run_is_left_alone(prune, job, monkeypatch):
    job(200)
    monkeypatch.setattr(retention.locks, "alone", lambda lock: False)
    code, lines, _ = prune()
    assert (code, Job.objects.count()) == (0, 1)
    assert lines[3].endswith("; another run is at it")
