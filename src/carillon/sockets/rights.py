"""Whose rights are in question, since when, and which answers are stale. Pure: no clock, task or database.

    KNOWN ──changed()──> HELD ──ask()──> HELD, ASKED ──answered(), nothing newer──> KNOWN
                          ^                   │
                          └──something newer──┘        overdue(): it has taken too long, the socket is closed

A socket is held from the moment at which the word of a change is heard. However many changes there are, it is
asked about once at a time; an answer that was asked for before the last change is none. A look now and then,
without a word of a change, is the same without being held.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable

CHANGES = 4096
"""Users and groups whose last change of rights is remembered; of the others it may have been just now."""

MOST = 1000
"""Sockets in one question: others want the database's thread, too."""

PATIENCE = 10.0
"""Seconds that a socket may be held."""


class Doubt:
    """`words`: how often its socket was put in question, `asked`: how often it had been when it was asked
    about last; `held` since when, if it is."""

    __slots__ = ("asked", "held", "words")

    def __init__(self) -> None:
        self.words = self.asked = 0
        self.held: float | None = None


class Rights:
    """Those of the sockets of one process, which may be anything that can be a key."""

    def __init__(self) -> None:
        self.changes = 0
        """Number of the last change that was heard of: see changed_since()."""
        # User or group: number of its last change; the newest last.
        self._changed: OrderedDict[int | str, int] = OrderedDict()
        self._forgotten = 0
        self._doubts: dict[Hashable, Doubt] = {}
        self._to_ask: dict[Hashable, None] = {}

    # What happened

    def changed(self, whose: Iterable[int | str]) -> None:
        """Rights of these users, or in these groups, changed."""
        self.changes += 1
        for each in whose:
            self._changed.pop(each, None)
            self._changed[each] = self.changes
        while len(self._changed) > CHANGES:
            _, self._forgotten = self._changed.popitem(last=False)

    def unknown(self) -> None:
        """Whose rights changed meanwhile is not known: perhaps everybody's."""
        self.changes += 1
        self._forgotten = self.changes

    def changed_since(self, before: int, whose: Iterable[int | str]) -> bool:
        """Whether rights of any of these changed after change number `before`.

        Who asks the database about rights notes `changes` first and asks this afterwards: a change that comes
        in between does not reach a socket that is not registered for it yet.
        """
        if self.changes == before:
            return False
        return before < self._forgotten or any(self._changed.get(what, 0) > before for what in whose)

    def doubt(self, socket: Hashable, held_at: float | None = None) -> bool:
        """The socket is to be asked about; with a time: and held until then. Whether it is to be held now."""
        doubt = self._doubts.get(socket)
        if doubt is None:
            doubt = self._doubts[socket] = Doubt()
            self._to_ask[socket] = None
        doubt.words += 1
        if held_at is None or doubt.held is not None:
            return False
        doubt.held = held_at
        return True

    def forget(self, socket: Hashable) -> None:
        """It is gone, or its question came to nothing."""
        self._doubts.pop(socket, None)
        self._to_ask.pop(socket, None)

    # What to do

    def ask(self) -> list:
        """About whom to ask now."""
        asked = list(self._to_ask)[:MOST]
        for socket in asked:
            del self._to_ask[socket]
            doubt = self._doubts[socket]
            doubt.asked = doubt.words
        return asked

    def answered(self, socket: Hashable) -> bool:
        """Whether the answer holds, and ends the doubt; otherwise the socket is asked about again."""
        doubt = self._doubts.get(socket)
        if doubt is None:
            return False
        if doubt.words != doubt.asked:
            self._to_ask[socket] = None
            return False
        self.forget(socket)
        return True

    def doubts(self, socket: Hashable) -> bool:
        return socket in self._doubts

    def holds(self, socket: Hashable) -> bool:
        doubt = self._doubts.get(socket)
        return doubt is not None and doubt.held is not None

    @property
    def held(self) -> int:
        """How many are held now. Any thread may ask."""
        return sum(doubt.held is not None for doubt in list(self._doubts.values()))

    @property
    def waiting(self) -> bool:
        """Whether anybody is in question."""
        return bool(self._doubts)

    def overdue(self, now: float) -> list:
        """Who has been held for too long: to be closed."""
        return [
            socket
            for socket, doubt in self._doubts.items()
            if doubt.held is not None and now - doubt.held >= PATIENCE
        ]
