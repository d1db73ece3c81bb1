"""What jobs tell of, family by family, and who may hear it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from carillon.jobs.models import Job, Kind
from carillon.notifications import Family, register
from carillon.notifications.registry import Key

# Whom each single message concerns is in its audience: the subscription itself needs no check.
register(Family("jobs", ("status_changed", "summary")))
register(Family("schedules", ("changed",)))
register(Family("inventories", ("status_changed",)))


def permitted_jobs(kind: Kind) -> Callable[[Any, set[Key]], set[Key]]:
    """A rule: those keys whose id is a job of this kind that the user may see. One query for all keys."""

    def permitted(user: Any, keys: set[Key]) -> set[Key]:
        ids = [key.id for key in keys]
        visible = set(Job.objects.visible_to(user).filter(kind=kind, pk__in=ids).values_list("pk", flat=True))
        return {key for key in keys if key.id in visible}

    return permitted


for kind in Kind:
    register(Family(kind.event_family, ("<id>",), permitted=permitted_jobs(kind)))
