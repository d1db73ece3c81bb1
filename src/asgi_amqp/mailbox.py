"""Messages that have arrived in this process and wait for their readers. Pure but for the loop's futures.

A mailbox belongs to one channel. Capacity is looked at when a batch arrives: a burst that came in one piece
is kept, a reader that does not keep up loses the oldest, counted and announced. Bytes are bounded for all
mailboxes together.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import NamedTuple

from .codec import Message


class Entry(NamedTuple):
    """A message that waits: until when it counts (monotonic seconds), its bytes, and what to do once it is
    taken.
    """

    message: Message
    expires: float
    size: int
    shared: bool = False  # other mailboxes hold the same dict
    taken: Callable[[], None] | None = None


class Budget:
    """The bytes that all mailboxes of one event loop hold."""

    __slots__ = ("limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0


class Mailbox:
    """`dropped(reason, count)` is called for every message that is thrown away."""

    __slots__ = ("arriving", "budget", "capacity", "dropped", "entries", "read_at", "waiters")

    def __init__(self, capacity: int, budget: Budget, dropped: Callable[[str, int], None]) -> None:
        self.capacity = capacity
        self.budget = budget
        self.dropped = dropped
        self.entries: deque[Entry] = deque()
        self.waiters: deque[asyncio.Future[None]] = deque()
        self.read_at = monotonic()  # when it was last read: what nobody reads is swept away
        self.arriving = 0  # sent by this very process and not back yet: they count for ChannelFull

    def put(self, entries: list[Entry], size: int) -> None:
        """Entries that arrived together, oldest first, `size` bytes in all."""
        budget = self.budget
        if len(self.entries) >= self.capacity or budget.used + size > budget.limit:
            self._make_room(len(entries), size)
        self.entries.extend(entries)
        budget.used += size
        if self.waiters:
            self.wake(len(entries))

    def _make_room(self, count: int, size: int) -> None:
        lost = 0
        while self.entries and (
            len(self.entries) + count > self.capacity or self.budget.used + size > self.budget.limit
        ):
            self.budget.used -= self.entries.popleft().size
            lost += 1
        if lost:
            self.dropped("overflow", lost)

    def take(self) -> Entry | None:
        """The oldest message that has not expired."""
        self.read_at = now = monotonic()
        entries = self.entries
        expired = 0
        while entries:
            entry = entries.popleft()
            self.budget.used -= entry[2]
            if entry[1] > now:
                break
            expired += 1
        else:
            entry = None
        if expired:
            self.dropped("expired", expired)
        return entry

    def put_first(self, entry: Entry) -> None:
        """A message whose reader went away before it could have it."""
        self.entries.appendleft(entry)
        self.budget.used += entry.size
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
            elif self.entries:
                self.wake()
            raise

    def clear(self) -> None:
        self.budget.used -= sum(entry.size for entry in self.entries)
        self.entries.clear()
        self.arriving = 0
