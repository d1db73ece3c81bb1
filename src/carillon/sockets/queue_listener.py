"""A listener whose events wait in a queue, bounded in bytes, for whoever takes them: what does not fit is
left to the window and the log, and comes as the queue runs empty."""

from __future__ import annotations

import asyncio
from collections import deque

from carillon.fanout.hub import Listener


class QueueListener(Listener):
    """`budget`: bytes that may wait here; an event that is larger waits alone. `something`: there may be
    something to take, or the end has come. `closed`: it takes no last words either."""

    __slots__ = ("_queue", "_queued", "budget", "closed", "something")

    def __init__(self, form, tags=frozenset(), *, budget: int = 256 * 1024):
        super().__init__(form, tags)
        self.budget = budget
        self.closed = False
        self.something = asyncio.Event()
        self._queue: deque = deque()
        self._queued = 0

    def write(self, data, number: int) -> None:
        size = len(data) if isinstance(data, bytes) else sum(map(len, data))
        if not self.live or (self._queue and self.waiting + size > self.budget):
            self.later(size)
        else:
            self.put(data)
            self.sent = number

    def give(self, data, number: int) -> None:
        self.put(data)

    def put(self, data) -> None:
        """Write, behind everything written before it, whoever waits."""
        if self.closed:
            return
        for piece in (data,) if isinstance(data, bytes) else data:
            self._queue.append(piece)
            self._queued += len(piece)
        self.something.set()

    def text(self, text: str) -> None:
        self.put((text,))

    @property
    def waiting(self) -> int:
        """Bytes that wait in this process for the reader."""
        return self._queued

    def room(self) -> bool:
        return not self._queue

    def take(self):
        """The oldest that waits, or None. Who finds nothing has read all that there was: more may come."""
        if self._queue:
            piece = self._queue.popleft()
            self._queued -= len(piece)
            return piece
        if not self.live and not self.ended and self.feeder is not None:
            self.feeder.ready(self)
        return None

    def stop(self) -> None:
        """Take nothing more, and forget what waits."""
        self.end()
        self.closed = True
        self._queue.clear()
        self._queued = 0
        self.something.set()

    def too_slow(self, at) -> None:
        self.stop()
        self.owner.too_slow(at)

    def failed(self) -> None:
        self.stop()
        self.owner.failed()
