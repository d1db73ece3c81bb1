"""What jobs tell of, family by family, and who may hear it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from carillon.events import Family, register
from carillon.events.families import Key, Questions
from tower.models import Job, Kind, Status

_ID, _TEXT, _FLAG = {"type": "integer"}, {"type": "string"}, {"type": "boolean"}
_STATUS = {"enum": Status.values}


def carries(family: str, /, **members: dict[str, Any]) -> dict[str, Any]:
    """The schema of events with these members; docs/reference/protocol.md says what they may have besides."""
    named = {"group_name": {"const": family}, **members}
    return {"type": "object", "required": list(named), "properties": named}


_CHANGE = {"unified_job_id": _ID, "status": _STATUS, "type": {"enum": Kind.values}}
_EVENT = {
    **dict.fromkeys(("id", "counter", "start_line", "end_line", "event_level"), _ID),
    **dict.fromkeys(("created", "modified", "url", "stdout", "uuid", "parent_uuid", "event"), _TEXT),
    **dict.fromkeys(("play", "role", "task"), _TEXT),
    **dict.fromkeys(("failed", "changed"), _FLAG),
    "event_data": {"type": "object"},
}

# Whom each single message concerns is in its audience: the subscription itself needs no check.
register(
    Family(
        "jobs",
        ("status_changed", "summary"),
        payload={
            "oneOf": [carries("jobs", **_CHANGE), carries("jobs", unified_job_id=_ID, final_counter=_ID)]
        },
    )
)
register(Family("schedules", ("changed",), payload=carries("schedules", id=_ID)))
register(
    Family(
        "inventories", ("status_changed",), payload=carries("inventories", inventory_id=_ID, status=_STATUS)
    )
)


def permitted_jobs(kind: Kind) -> Callable[[Questions], list[set[Key]]]:
    """A rule: those keys whose id is a job of this kind that the user may see. Two queries, however many
    users ask."""

    def permitted(questions: Questions) -> list[set[Key]]:
        jobs = Job.objects.filter(kind=kind, pk__in={key.id for _, keys in questions for key in keys})
        visible = jobs.visible_to_each(user for user, _ in questions)
        return [{key for key in keys if key.id in visible[user.pk]} for user, keys in questions]

    return permitted


for kind in Kind:
    family = kind.event_family
    members = _CHANGE if kind == Kind.WORKFLOW_JOB else {**_EVENT, kind.value: _ID}
    register(
        Family(family, ("<id>",), permitted_many=permitted_jobs(kind), payload=carries(family, **members))
    )
