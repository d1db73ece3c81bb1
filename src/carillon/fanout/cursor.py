"""Where one listener is in the log. Pure: no clock, no socket, no task, no Django.

A cursor is in one of three states:

    LIVE    events are written to it as they come
    BEHIND  it is fed in pieces, as its reader takes them, from the window or the log, until it is level
    HELD    nobody may write to it until its rights are known

             fell(), subscribed(since)               hold()
      LIVE ───────────────────────────> BEHIND ───────────────> HELD
        ^                                 │  ^                   │
        └──────── feed(): level ──────────┘  └──── release() ────┘      (LIVE to HELD by hold() as well)

What it has not heard yet are stretches: some groups, behind a position. Those that it fell behind in are fed
oldest first, and each is joined to the next where they meet, so that the last position that the reader has is
always one up to which nothing is missing. The one that its client asked for with a position is apart from
them until it has come to the end: until then the client keeps what it asked with.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Sequence
from math import inf
from typing import Any, NamedTuple

from asgi_amqp import Position

PIECE = 64 * 1024
"""The most bytes that are written at once to a reader who is behind; a larger event is a piece of its own."""

SLOW = 2.0
"""Seconds that a reader may be further behind than it is allowed."""

AHEAD = 5.0
"""Seconds that this process may be behind the one that a client comes from."""

Read = Callable[[frozenset[bytes], int, int, int], "tuple[list, int] | None"]
"""`read(groups, since, upto, most)`: at most that many bytes of what the groups have behind `since` and up to
`upto`, and how far that goes; None: it cannot be read from where we are."""


class Stretch:
    """What some groups have behind `since`."""

    __slots__ = ("groups", "since")

    def __init__(self, groups: frozenset[bytes], since: Position):
        self.groups = groups
        self.since = since


class Lost(NamedTuple):
    """Something that cannot be had any more. `asked`: the client asked for it."""

    reason: str
    asked: bool


class Piece(NamedTuple):
    """What to write next, in this order. `recovered`: all that was asked for has come. `more`: there is
    more that can be fed."""

    events: list[Any]
    recovered: bool = False
    lost: Sequence[Lost] = ()
    more: bool = False


NOTHING = Piece([])


class Cursor:
    """See the module. `most`: how many bytes it may be behind for more than a moment; None: any number."""

    __slots__ = (
        "_counted",
        "_from",
        "_turn",
        "asked",
        "ended",
        "groups",
        "held",
        "lag",
        "live",
        "most",
        "sent",
        "stretches",
        "waits",
    )

    def __init__(self, most: int | None = None):
        self.live = True
        self.held = self.ended = False
        self.groups: frozenset[bytes] = frozenset()
        self.stretches: list[Stretch] = []
        self.asked: Stretch | None = None
        self.waits: list[Stretch] = []
        """Those that feed() could not read: the log has them, or has not come that far."""
        self.sent = 0
        """Number of the last event, or position, that was written."""
        self.lag = 0
        """Bytes that it is behind by; none while it is live or held."""
        self.most = most
        self._counted: tuple[str, int] | None = None
        self._from = 0.0
        self._turn = False

    # What happened

    def subscribed(self, groups: frozenset[bytes], at: Position, since: Position | None = None) -> None:
        """It is to hear these groups and no others: those that are new from behind `since`, or from `at`."""
        new = groups - self.groups
        self.groups &= groups
        for stretch in self.stretches:
            stretch.groups &= groups
        self.stretches = [stretch for stretch in self.stretches if stretch.groups]
        if self.asked is not None:
            self.asked.groups &= groups
        if since is not None:
            self._set_back(at)
            if self.asked is not None:
                self._insert(self.asked)
            self.asked = Stretch(new, since)
        elif not self.live:
            self._insert(Stretch(new, at))
        self.groups = groups
        self._settle()

    def fell(self, at: Position, size: int) -> None:
        """Its reader takes no more: it is behind, from `at` on, by `size` bytes."""
        self._set_back(at)
        self.lag = size

    def arrived(self, size: int) -> None:
        """Something came for it that it is not ready for."""
        if not self.held:
            self.lag += size

    def hold(self, at: Position) -> None:
        """Rights changed at `at`: what follows may not be heard by the old ones."""
        self._set_back(at)
        self.held = True
        self.live = False
        self.lag = 0

    def release(self) -> None:
        """Its rights are known."""
        self.held = False
        self._settle()

    def interrupted(self, at: Position) -> None:
        """Nobody knows what it missed: it goes on at `at`."""
        self.stretches, self.asked, self.waits = [], None, []
        self.sent, self.lag = at.number, 0
        self.live = not (self.held or self.ended)
        if self.held and self.groups:
            self.stretches = [Stretch(self.groups, at)]

    def end(self) -> None:
        """Nothing more is to be written."""
        self.ended = True
        self.live = False

    def carry(self, carried: Callable[[int], int]) -> None:
        """The log has lost some of what was heard: a place in that is another behind it."""
        for stretch in self._all():
            stretch.since = stretch.since._replace(number=carried(stretch.since.number))
        self.stretches.sort(key=lambda each: each.since.number)

    # What to do

    def feed(self, read: Read, end: Position) -> Piece:
        """What to write next, now that there is room for a piece; `end` is where the events have come to."""
        if self.live or self.held or self.ended:
            return NOTHING
        self.waits = [stretch for stretch in self._all() if stretch.since.epoch != end.epoch]
        if self.waits:
            return Piece([], lost=self.lose("epoch", end))
        events: list[Any] = []
        self._turn = not self._turn
        for take in (self._past, self._front) if self._turn else (self._front, self._past):
            events = events or take(read, end)
        asked = self.asked
        recovered = asked is not None and asked.since == end
        if recovered:
            self.asked = None
            self._insert(asked)
        if self.asked is None and all(stretch.since == end for stretch in self.stretches):
            self.stretches = []
            self._settle()
        if events:
            self.sent = events[-1].number
        next_ones = (*self.stretches[:1], *((self.asked,) if self.asked else ()))
        more = any(stretch.since != end and stretch not in self.waits for stretch in next_ones)
        return Piece(events, recovered, (), more)

    def fed(self, size: int) -> None:
        """A piece of that many bytes has been written."""
        self.lag = max(0, self.lag - size)

    def lose(self, reason: str, end: Position, before: int | None = None) -> list[Lost]:
        """What it waits for, or what lies behind a position under `before`, cannot be had: those groups go on
        at `end`."""
        gone = [s for s in self._all() if (s in self.waits if before is None else s.since.number < before)]
        lost = [Lost(reason, stretch is self.asked) for stretch in gone]
        for stretch in gone:
            if stretch is self.asked:
                self.asked = None
            else:
                self.stretches.remove(stretch)
            stretch.since = end
        for stretch in gone:
            self._insert(stretch)
        self.waits = []
        return lost

    def tick(self, now: float, end: Position, patience: float, room: bool = True) -> str | None:
        """`slow`: it has been too far behind for too long. Another word: the reason for which what it waits
        for must be given up, that nobody waits for ever. Where its reader has no room, it waits for that."""
        counted: tuple[str, int] | None = None
        if self.most is not None and self.lag > self.most:
            counted, limit = ("slow", 0), SLOW
        elif self.waits and room and not self.held:
            oldest = min(stretch.since.number for stretch in self.waits)
            ahead = oldest > end.number
            counted, limit = ("ahead" if ahead else "timeout", oldest), AHEAD if ahead else patience
        if counted != self._counted:
            self._counted, self._from = counted, now
        return counted[0] if counted is not None and now - self._from >= limit else None

    def reached(self, end: Position) -> Position:
        """Up to where nothing is missing."""
        return min((stretch.since for stretch in self._all()), key=_number, default=end)

    def wanted(self) -> float:
        """Behind which number it has not heard all."""
        return min((stretch.since.number for stretch in self._all()), default=inf)

    # Its own

    def _all(self) -> list[Stretch]:
        return self.stretches if self.asked is None else [*self.stretches, self.asked]

    def _set_back(self, at: Position) -> None:
        if self.live and self.groups:
            self.stretches = [Stretch(self.groups, at)]
            self.live = False

    def _insert(self, stretch: Stretch) -> None:
        """Among those that it fell behind in, in the order of their positions."""
        if not stretch.groups:
            return
        for other in self.stretches:
            if other.since == stretch.since:
                other.groups |= stretch.groups
                return
        insort(self.stretches, stretch, key=lambda each: each.since.number)

    def _past(self, read: Read, end: Position) -> list[Any]:
        """The next events of what was asked for."""
        return [] if self.asked is None else self._next(self.asked, end, read)

    def _front(self, read: Read, end: Position) -> list[Any]:
        """The next events of what it fell behind in."""
        while self.stretches:
            front = self.stretches[0]
            last = len(self.stretches) == 1
            events = self._next(front, end if last else self.stretches[1].since, read)
            if last or front.since != self.stretches[1].since:
                return events
            del self.stretches[0]
            self.stretches[0].groups |= front.groups
            if events:
                return events
        return []

    def _next(self, stretch: Stretch, upto: Position, read: Read) -> list[Any]:
        """The next events of a stretch, which moves on."""
        if stretch.since == upto:
            return []
        ahead = stretch.since.number > upto.number
        found = None if ahead else read(stretch.groups, stretch.since.number, upto.number, PIECE)
        if found is None:
            self.waits.append(stretch)
            return []
        events, reached = found
        stretch.since = stretch.since._replace(number=reached)
        return events

    def _settle(self) -> None:
        """Live, if nothing is between it and that."""
        self.live = not (self.held or self.ended or self.stretches or self.asked)
        if self.live:
            self.lag, self.waits = 0, []


def _number(what) -> int:
    return what.number
