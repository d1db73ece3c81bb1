"""A job's events in order of `counter`, each once, and the output in them. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from carillon.client.terminal import plain_text

MAX_EARLY = 2000


class Sequence:
    """
    Events arrive live (perhaps twice, out of order, or not at all) and from the REST API (in order). Out
    come those that are due. What waits behind a gap is bounded: the farthest are dropped, the API has them.
    """

    def __init__(self) -> None:
        self.last = 0
        self._early: dict[int, dict[str, Any]] = {}

    def start(self, last: int) -> None:
        """What comes up to this counter was asked for elsewhere."""
        self.last = last
        self._early = {counter: event for counter, event in self._early.items() if counter > last}

    @property
    def has_gap(self) -> bool:
        return bool(self._early)

    def add(self, events: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        for event in events:
            counter = event.get("counter")
            if isinstance(counter, int) and counter > self.last:
                self._early[counter] = event
        due = self._due()
        if len(self._early) > MAX_EARLY:
            self._early = {counter: self._early[counter] for counter in sorted(self._early)[:MAX_EARLY]}
        return due

    def skip(self) -> tuple[int, list[dict[str, Any]]]:
        """Goes on without what is missing: (how many counters that is, the events that are due now)."""
        if not self._early:
            return 0, []
        first = min(self._early)
        missing, self.last = first - 1 - self.last, first - 1
        return missing, self._due()

    def _due(self) -> list[dict[str, Any]]:
        due = []
        while (event := self._early.pop(self.last + 1, None)) is not None:
            self.last += 1
            due.append(event)
        return due


def lines_with(event: dict[str, Any], text: str) -> str:
    """The lines of an event's output that have a text, in any case: behind their numbers, if it says them."""
    first = event.get("start_line") or 0
    known = (event.get("end_line") or 0) > first
    return "".join(
        f"{number}: {line}\n" if known else f"{line}\n"
        for number, line in enumerate(output_of(event).removesuffix("\n").split("\n"), first + 1)
        if text.casefold() in plain_text(line).casefold()
    )


def output_of(event: dict[str, Any]) -> str:
    """
    The lines an event adds to the output. `end_line - start_line` says how many; of those the last one's end
    is not in `stdout`. Events without line numbers hold whole lines.
    """
    text = event.get("stdout") or ""
    if not isinstance(text, str):
        return ""
    lines = (event.get("end_line") or 0) - (event.get("start_line") or 0)
    if lines > 0:
        return text if text.count("\n") >= lines else text + "\n"
    return text if not text or text.endswith("\n") else text + "\n"
