"""The writing side of a connection through an ASGI server that hands out no file descriptor, and of
Server-Sent Events: one pump that awaits `send`, and a queue bounded in bytes.

A reader who is slower than the events falls behind, and is fed as the queue runs empty. One that takes
nothing at all for a minute is given up.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from asgi_amqp import Position
from carillon.fanout.cursor import PIECE
from carillon.fanout.hub import Listener

STUCK = 60.0
"""Seconds without any progress after which a reader is given up."""


class AsgiOutlet(Listener):
    """`message(piece)` makes the ASGI message of what the form joined. `budget`: bytes that may wait for its
    reader; `buffered()` tells how much of them the server holds, where it can tell."""

    __slots__ = (
        "_buffered",
        "_drained",
        "_message",
        "_queue",
        "_queued",
        "_send",
        "_task",
        "_wake",
        "budget",
    )

    def __init__(
        self,
        form,
        send: Callable[[dict[str, Any]], Awaitable[None]],
        message: Callable[[Any], dict[str, Any]],
        *,
        budget: int = 256 * 1024,
        buffered: Callable[[], int] = lambda: 0,
    ):
        super().__init__(form)
        self.budget = budget
        self._send = send
        self._message = message
        self._buffered = buffered
        self._queue: deque = deque()
        self._queued = 0
        self._wake = asyncio.Event()
        self._drained = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._pump())

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
        if self.ended:
            return
        for piece in (data,) if isinstance(data, bytes) else data:
            self._queue.append(piece)
            self._queued += len(piece)
        self._wake.set()

    def text(self, text: str) -> None:
        self.put((text,))

    @property
    def waiting(self) -> int:
        """Bytes that wait in this process for the reader."""
        return self._queued + self._buffered()

    def room(self) -> bool:
        return not self._queue

    async def drained(self) -> None:
        """Until no more than a piece waits."""
        while self._queued > PIECE and not self.ended:
            self._drained.clear()
            await self._drained.wait()

    def stop(self) -> None:
        """Take nothing more, and forget what waits."""
        self.end()
        self._queue.clear()
        self._queued = 0
        self._wake.set()
        self._drained.set()
        if self.owner is not None:
            self.owner.wake()

    def too_slow(self, at: Position | None) -> None:
        self.stop()
        self.owner.too_slow(at)

    def failed(self) -> None:
        self.stop()
        self.owner.failed()

    async def flush(self) -> None:
        """Until everything written has been sent."""
        self.end()
        self._wake.set()
        await asyncio.shield(self._task)

    async def _pump(self):
        while True:
            while self._queue:
                try:
                    await self._server_has_room()
                    piece = self._queue.popleft()
                    self._queued -= len(piece)
                    async with asyncio.timeout(STUCK):
                        await self._send(self._message(piece))
                except TimeoutError:
                    self.too_slow(None)
                    return
                if self._queued <= PIECE:
                    self._drained.set()
            if self.ended:
                return
            if not self.live:
                self.feeder.ready(self)
            self._wake.clear()
            await self._wake.wait()

    async def _server_has_room(self):
        """Raises TimeoutError where it had none for too long."""
        least, moved = self._buffered(), time.monotonic()
        while (now := self._buffered()) > PIECE:
            if now < least:
                least, moved = now, time.monotonic()
            elif time.monotonic() - moved > STUCK:
                raise TimeoutError
            await asyncio.sleep(0.01)  # a server tells nobody that it has room

    def cancel(self) -> None:
        """The connection is gone."""
        self.stop()
        self._task.cancel()
