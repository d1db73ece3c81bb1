"""Messages that have arrived in this process and wait for their readers. Pure but for the loop's futures.

A mailbox belongs to one channel. Capacity is looked at when a batch arrives: a burst that came in one piece
is kept, a reader that does not keep up loses the oldest, counted and announced. Bytes (as they were on the
wire) are bounded for all mailboxes together; those of a message that several hold are counted once.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import NamedTuple

from .codec import Message


class Share:
    """How many mailboxes hold a message: its bytes are counted once."""

    __slots__ = ("holders",)

    def __init__(self) -> None:
        self.holders = 0


class Entry(NamedTuple):
    """A message that waits: until when it counts (monotonic seconds), its bytes, and what to do once it is
    taken.
    """

    message: Message
    expires: float
    size: int
    share: Share | None = None  # other mailboxes hold the same dict
    taken: Callable[[], None] | None = None


class Budget:
    """The bytes that all mailboxes of one event loop hold."""

    __slots__ = ("limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0


def _cost(entry: Entry) -> int:
    """The bytes that nobody has counted for it."""
    return 0 if entry.share is not None and entry.share.holders else entry.size


class Mailbox:
    """`dropped(reason, count)` is called for every message that is thrown away."""

    __slots__ = ("arriving", "budget", "capacity", "dropped", "entries", "gaps", "read_at", "waiters")

    def __init__(self, capacity: int, budget: Budget, dropped: Callable[[str, int], None]) -> None:
        self.capacity = capacity
        self.budget = budget
        self.dropped = dropped
        self.entries: deque[Entry] = deque()
        self.gaps: dict[str, Message] = {}  # by reason, to be read before the entries
        self.waiters: deque[asyncio.Future[None]] = deque()
        self.read_at = monotonic()  # when it was last read: what nobody reads is swept away
        self.arriving = 0  # sent by this very process and not back yet: they count for ChannelFull

    def put(self, entries: list[Entry], size: int) -> None:
        """Entries that arrived together, oldest first, `size` bytes in all."""
        budget = self.budget
        shared = bool(entries) and entries[0].share is not None
        if shared:
            size = sum(_cost(entry) for entry in entries)
        if len(self.entries) >= self.capacity or budget.used + size > budget.limit:
            entries, size = self._fit(entries, size)
        self.entries.extend(entries)
        budget.used += size
        if shared:
            for entry in entries:
                entry.share.holders += 1  # type: ignore[union-attr]  # those of a group all have one
        if self.waiters:
            self.wake(len(entries))

    def _fit(self, entries: list[Entry], size: int) -> tuple[list[Entry], int]:
        """What there is room for, and its bytes, once the oldest have gone: those that were here, then, where
        other mailboxes hold the bytes, the oldest of those that came.
        """
        here, budget = self.entries, self.budget
        lost = gone = 0
        excess = budget.used + size - budget.limit
        while here and (len(here) + len(entries) > self.capacity or excess > 0):
            excess -= here[0].size  # as if nobody else held it: else all would go, and nothing be won
            self._release(here.popleft())
            lost += 1
        while gone < len(entries) and budget.used + size > budget.limit:
            size -= _cost(entries[gone])
            gone += 1
        if lost + gone:
            self.dropped("overflow", lost + gone)
        return entries[gone:], size

    def _release(self, entry: Entry) -> None:
        """An entry that is here no longer."""
        if entry.share is not None:
            entry.share.holders -= 1
        self.budget.used -= _cost(entry)

    def expire(self, now: float) -> None:
        """Throw away what has expired."""
        entries = self.entries
        expired = 0
        while entries and entries[0].expires <= now:
            self._release(entries.popleft())
            expired += 1
        if expired:
            self.dropped("expired", expired)

    def take(self) -> Entry | None:
        """The oldest message that has not expired; before it, what is said of those that are missing."""
        self.read_at = now = monotonic()
        entries = self.entries
        if entries and entries[0][1] <= now:
            self.expire(now)
        if self.gaps:
            return Entry(self.gaps.pop(next(iter(self.gaps))), now, 0)
        if not entries:
            return None
        entry = entries.popleft()
        if entry[3] is None:
            self.budget.used -= entry[2]
        else:
            self._release(entry)
        return entry

    def announce(self, gap: Message) -> None:
        """Say that messages are missing: `reason`, and `count` or None. Those of one reason become one."""
        before = self.gaps.get(gap["reason"])
        if before is not None and gap["count"] is not None:
            gap["count"] = None if before["count"] is None else before["count"] + gap["count"]
        self.gaps[gap["reason"]] = gap
        self.wake()

    def put_first(self, entry: Entry) -> None:
        """A message whose reader went away before it could have it."""
        self.entries.appendleft(entry)
        self.budget.used += _cost(entry)
        if entry.share is not None:
            entry.share.holders += 1
        self.wake()

    def wake(self, count: int = 1) -> None:
        """As many of those who wait as there are new messages: each takes one."""
        while count and self.waiters:
            waiter = self.waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                count -= 1

    def fail(self, error: Exception) -> None:
        """There will be no messages: everyone who waits hears why."""
        while self.waiters:
            waiter = self.waiters.popleft()
            if not waiter.done():
                waiter.set_exception(error)

    async def wait(self, loop: asyncio.AbstractEventLoop) -> None:
        """Until there may be something to take. Cancelled, it wakes the next reader instead: nothing is
        lost.
        """
        waiter: asyncio.Future[None] = loop.create_future()
        self.waiters.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.cancelled():
                with contextlib.suppress(ValueError):  # wake() has passed over it
                    self.waiters.remove(waiter)
            elif self.entries or self.gaps:
                self.wake()
            raise

    def clear(self) -> None:
        for entry in self.entries:
            self._release(entry)
        self.entries.clear()
        self.gaps.clear()
        self.arriving = 0
