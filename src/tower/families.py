"""What jobs tell of, family by family, and who may hear it."""

from __future__ import annotations

from collections.abc import Callable

from carillon.events import Family, register
from carillon.events.families import Key, Questions
from tower.models import Job, Kind

# Whom each single message concerns is in its audience: the subscription itself needs no check.
register(Family("jobs", ("status_changed", "summary")))
register(Family("schedules", ("changed",)))
register(Family("inventories", ("status_changed",)))


def permitted_jobs(kind: Kind) -> Callable[[Questions], list[set[Key]]]:
    """A rule: those keys whose id is a job of this kind that the user may see. Two queries, however many
    users ask."""

    def permitted(questions: Questions) -> list[set[Key]]:
        jobs = Job.objects.filter(kind=kind, pk__in={key.id for _, keys in questions for key in keys})
        visible = jobs.visible_to_each(user for user, _ in questions)
        return [{key for key in keys if key.id in visible[user.pk]} for user, keys in questions]

    return permitted


for kind in Kind:
    register(Family(kind.event_family, ("<id>",), permitted_many=permitted_jobs(kind)))
