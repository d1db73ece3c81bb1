"""Who waits for events to be settled: a task, a thread, or nobody."""

import asyncio
import threading
import time
from copy import copy

from .exceptions import BrokerUnavailable, ChannelFull, MessageTooLarge
from .lanes import Ticket
from .metrics import Stats


class FutureTicket(Ticket):
    """A ticket that an asyncio task awaits in the sender's own loop."""

    __slots__ = ("future",)

    def __init__(self, left: int, timeout: float) -> None:
        super().__init__(left, time.monotonic() + timeout)
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def finish(self) -> None:
        if not self.future.done():
            self.future.set_exception(copy(self.error)) if self.error else self.future.set_result(None)

    async def settled(self) -> None:
        """Until it is; cancelled, what has not left is withdrawn."""
        try:
            if self.left > 0 or self.error is not None:
                await self.future
        finally:
            self.done = True


class Unwatched(Ticket):
    """For a confirmed event that nobody waits for: its failure is reported as a loss."""

    __slots__ = ("_stats",)

    def __init__(self, timeout: float, stats: Stats) -> None:
        super().__init__(1, time.monotonic() + timeout)
        self._stats = stats

    def finish(self) -> None:
        if self.error is not None:
            known = {ChannelFull: "refused", MessageTooLarge: "too_large"}
            self._stats.lose(known.get(type(self.error), "unconfirmed"), 1)


class ThreadTicket(Ticket):
    """A ticket that a thread waits for: a lock is the cheapest thing it can sleep on."""

    __slots__ = ("_lock",)

    def __init__(self, left: int, deadline: float) -> None:
        super().__init__(left, deadline)
        self._lock = threading.Lock()
        self._lock.acquire()

    def finish(self) -> None:
        self._lock.release()

    def wait(self) -> None:
        """Until settled; the sender's sweep settles it at the deadline, we allow that a second."""
        if self.left > 0 and not self._lock.acquire(timeout=max(0.0, self.deadline - time.monotonic()) + 1.0):
            raise BrokerUnavailable(
                "no confirm from the broker in time, and the background thread does not answer"
            )
        if self.error is not None:
            raise copy(self.error)
