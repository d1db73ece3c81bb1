"""What may be done to jobs: each change in one transaction, told of when it has committed.

What is told of one job is told in the order in which it happened, also when several processes change the job
at once: a change takes the job's turn, commits, tells, and gives the turn back. Otherwise the later of two
statuses might be told first, and clients would end with the earlier one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from django.db import Error, connection, transaction

from carillon.events import emit_on_commit
from tower import payloads, states
from tower.models import Job, JobEvent, Schedule


class IllegalTransition(Exception):
    """A job cannot become what was asked. The message says what it can become."""

    def __init__(self, current: str, wanted: str) -> None:
        possible = states.next_statuses(current)
        hint = f"it can become {', '.join(possible)}" if possible else "it has ended"
        super().__init__(f"A job that is {current} cannot become {wanted}: {hint}.")


# Advisory locks of PostgreSQL have two numbers: what is locked, and which one of it.
_TURNS = 0x6A6F6273


@contextmanager
def _turns() -> Iterator[Callable[[int], None]]:
    """`take(job_id)` waits for this job's turn; it lasts to the end of the block.

    Locks of the session, not of the transaction, which has ended by the time its change is told of. Where all
    writers are one thread (the unit tests' SQLite), there is nobody to wait for.
    """
    taken: list[int] = []

    def take(job_id: int) -> None:
        if connection.vendor == "postgresql":
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_advisory_lock(%s, %s)", [_TURNS, job_id % 2**31])
            taken.append(job_id)

    try:
        yield take
    finally:
        # With a connection that has broken meanwhile the locks are gone, too.
        with suppress(Error):
            for job_id in taken:
                with connection.cursor() as cursor:
                    cursor.execute("SELECT pg_advisory_unlock(%s, %s)", [_TURNS, job_id % 2**31])


def create_job(**fields: Any) -> Job:
    """A new job, and the word of its first status."""
    with _turns() as take, transaction.atomic():
        job = Job.objects.create(**fields)
        take(job.pk)  # at once: nobody else can see the job yet
        emit_on_commit(payloads.status_changed(job))
    return job


def set_status(job_id: int, status: str) -> Job:
    """Change a job's status; the same status again changes and tells nothing. Raises IllegalTransition."""
    with _turns() as take:
        take(job_id)
        with transaction.atomic():
            job = Job.objects.select_for_update(no_key=True).get(pk=job_id)
            if not states.may_become(job.status, status):
                raise IllegalTransition(job.status, status)
            if job.status != status:
                job.become(status)
                job.save(update_fields=["status", "started", "finished", "modified"])
                emit_on_commit(payloads.status_changed(job))
    return job


@transaction.atomic
def add_events(job_id: int, rows: Sequence[JobEvent], final_counter: int | None) -> tuple[int, int]:
    """Store a batch of events and tell of the new ones, and then of the end if `final_counter` is given.

    (created, duplicates): a counter that the job has already is left as it is and not told of again.
    """
    # The lock lets one batch in at a time, so that "which counters are there" stays true until the insert;
    # `no_key`: it must not wait for, nor hold up, those who only refer to the job.
    job = Job.objects.select_for_update(no_key=True).get(pk=job_id)
    known = set(
        JobEvent.objects.filter(job=job, counter__in=[row.counter for row in rows]).values_list(
            "counter", flat=True
        )
    )
    fresh = []
    for row in rows:
        if row.counter not in known:
            known.add(row.counter)
            row.job = job
            fresh.append(row)
    JobEvent.objects.bulk_create(fresh)
    notifications = [payloads.event(job, row) for row in fresh]
    if final_counter is not None:
        notifications.append(payloads.summary(job, final_counter))
    emit_on_commit(notifications)
    return len(fresh), len(rows) - len(fresh)


@transaction.atomic
def save_schedule(schedule: Schedule) -> Schedule:
    """Store a new or changed schedule."""
    schedule.save()
    emit_on_commit([payloads.schedule_changed(schedule)])
    return schedule


@transaction.atomic
def delete_schedule(schedule: Schedule) -> None:
    """Remove a schedule."""
    gone = payloads.schedule_changed(schedule)
    schedule.delete()
    emit_on_commit([gone])
