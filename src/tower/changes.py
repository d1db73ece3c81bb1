"""What may be done to jobs: each change in one transaction, told of when it has committed.

The statuses of one job are told in the order in which they happened, also when several processes change the
job at once: a status and its word in the outbox are one transaction, which has the lock on the job's row, and
the outbox is sent in its order. Told after the commit, the later of two might come first, and clients would
end with the earlier one. No lock outlives its transaction, so that a pool of connections may lie between.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from django.db import transaction

from carillon.events import Notification, emit_in_transaction, emit_on_commit, outbox
from tower import payloads, states
from tower.models import Job, JobEvent, Schedule


class IllegalTransition(Exception):
    """A job cannot become what was asked. The message says what it can become."""

    def __init__(self, current: str, wanted: str) -> None:
        possible = states.next_statuses(current)
        hint = f"it can become {', '.join(possible)}" if possible else "it has ended"
        super().__init__(f"A job that is {current} cannot become {wanted}: {hint}.")


def tell(notifications: Sequence[Notification]) -> None:
    """Exactly when the change is made, whatever ends the process then, and as soon as it is."""
    emit_in_transaction(notifications)
    transaction.on_commit(outbox.send_now)


@transaction.atomic
def create_job(**fields: Any) -> Job:
    """A new job, and the word of its first status."""
    job = Job.objects.create(**fields)
    tell(payloads.status_changed(job))
    return job


@transaction.atomic
def set_status(job_id: int, status: str) -> Job:
    """Change a job's status; the same status again changes and tells nothing. Raises IllegalTransition."""
    job = Job.objects.select_for_update(no_key=True).get(pk=job_id)
    if not states.may_become(job.status, status):
        raise IllegalTransition(job.status, status)
    if job.status != status:
        job.become(status)
        job.save(update_fields=["status", "started", "finished", "modified"])
        tell(payloads.status_changed(job))
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
def create_schedule(**fields: Any) -> Schedule:
    """A new schedule."""
    schedule = Schedule.objects.create(**fields)
    tell([payloads.schedule_changed(schedule)])
    return schedule


@transaction.atomic
def change_schedule(schedule_id: int, fields: Mapping[str, Any]) -> Schedule:
    """Change these fields and leave to others what they change meanwhile. Raises Schedule.DoesNotExist."""
    schedule = Schedule.objects.select_for_update(no_key=True).get(pk=schedule_id)
    before = schedule.audience
    for name, value in fields.items():
        setattr(schedule, name, value)
    schedule.save(update_fields=[*fields, "modified"])
    tell([payloads.schedule_changed(schedule, before)])
    return schedule


@transaction.atomic
def delete_schedule(schedule_id: int) -> None:
    """Remove a schedule. Raises Schedule.DoesNotExist."""
    Schedule.objects.select_for_update().get(pk=schedule_id).delete()
