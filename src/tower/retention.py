"""Jobs that have finished go with their events, after KEEP_JOBS_DAYS."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from django.db.models import Exists, OuterRef, QuerySet

from carillon.retention import BATCH, Kind, register
from tower.models import Job, JobEvent
from tower.states import FINAL

EVENTS = 2000
"""Of one batch: an event may have half a megabyte."""


def ended(before: datetime) -> QuerySet:
    """Jobs that finished before then; neither a workflow whose jobs still run, nor a job of one that does."""
    unfinished = Job.objects.exclude(status__in=FINAL)
    return Job.objects.filter(
        ~Exists(unfinished.filter(pk=OuterRef("workflow_job"))),
        ~Exists(unfinished.filter(workflow_job=OuterRef("pk"))),
        status__in=FINAL,
        finished__lt=before,
    )


def delete(due: QuerySet) -> Mapping[str, int]:
    """Events first. Locked, a job gets no more of them: when none is left, the jobs go."""
    locked = due.order_by("pk").select_for_update(skip_locked=True)
    jobs = list(locked.values_list("pk", flat=True)[: BATCH // 5])
    events = JobEvent.objects.filter(job__in=jobs).values_list("pk", flat=True)[:EVENTS]
    gone = JobEvent.objects.filter(pk__in=list(events)).delete()[1]
    if sum(gone.values()) < EVENTS:
        gone = {**Job.objects.filter(pk__in=jobs).delete()[1], **gone}
    return gone


register(Kind("jobs", "KEEP_JOBS_DAYS", "finished", ended, delete))
