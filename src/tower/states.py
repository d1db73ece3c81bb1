"""The life of a job: which status may follow which. Pure."""

from __future__ import annotations

STATUSES = ("new", "pending", "waiting", "running", "successful", "failed", "error", "canceled")
FINAL = frozenset({"successful", "failed", "error", "canceled"})

_UNFINISHED_ENDS = frozenset({"failed", "error", "canceled"})
_NEXT = {
    "new": frozenset({"pending", "waiting", "running"}) | _UNFINISHED_ENDS,
    "pending": frozenset({"waiting", "running"}) | _UNFINISHED_ENDS,
    "waiting": frozenset({"pending", "running"}) | _UNFINISHED_ENDS,
    "running": FINAL,
}


def may_become(current: str, wanted: str) -> bool:
    """May a job of status `current` become `wanted`? Staying what it is always may: a retry is no error."""
    return current == wanted or wanted in _NEXT.get(current, frozenset())


def next_statuses(current: str) -> list[str]:
    """What may follow, in the order of a job's life."""
    return [status for status in STATUSES if status in _NEXT.get(current, frozenset())]
