"""The books: what was confirmed, what each client saw, and what is missing. Knows nothing of Carillon.

Events are numbered 0, 1, 2, … in the order in which they are published, one after the other. A client's page
has the numbers it saw, in order, and the places where it was told that something is missing.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

GAP = -1
"""On a page: here the client was told that what it missed cannot be had."""


@dataclass
class Page:
    """One client's. `first`: the number that it must begin with."""

    name: str
    first: int
    seen: list[int] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)
    connects: int = 0
    _last: float = field(default_factory=time.monotonic)

    def saw(self, number: int) -> None:
        now = time.monotonic()
        self.pauses.append(now - self._last)
        self._last = now
        self.seen.append(number)

    def told_of_a_gap(self) -> None:
        self.seen.append(GAP)


@dataclass(frozen=True)
class Account:
    """What became of the events for one client."""

    name: str
    delivered: int
    doubled: int
    disordered: int
    lost_silently: int
    lost_announced: int
    longest_pause: float
    connects: int


def account(page: Page, confirmed: int) -> Account:
    """Hold a page against `confirmed` numbers, 0 to confirmed - 1."""
    doubled = disordered = silent = announced = 0
    seen: set[int] = set()
    expected = page.first
    told = False
    for number in page.seen:
        if number == GAP:
            told = True
            continue
        if number in seen:
            doubled += 1
            continue
        seen.add(number)
        if number < expected:
            disordered += 1
            continue
        if number > expected:
            if told:
                announced += number - expected
            else:
                silent += number - expected
        told = False
        expected = number + 1
    missing = max(0, confirmed - expected)
    if told:
        announced += missing
    else:
        silent += missing
    # What came late was counted as missing before: it is not lost, it is out of order.
    silent = max(0, silent - disordered)
    return Account(
        page.name,
        len(seen),
        doubled,
        disordered,
        silent,
        announced,
        max(page.pauses, default=0.0),
        page.connects,
    )
