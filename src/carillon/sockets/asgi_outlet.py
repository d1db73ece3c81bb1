"""The writing side of a connection through an ASGI server that hands out no file descriptor, and of
Server-Sent Events: one pump that awaits `send`, and a queue bounded in bytes.

A reader who is slower than the events falls behind, and is fed as the queue runs empty. One that takes
nothing at all for a minute is given up.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from carillon.fanout.cursor import PIECE
from carillon.sockets.queue_listener import QueueListener

STUCK = 60.0
"""Seconds without any progress after which a reader is given up."""

PAUSE, PAUSE_MOST = 0.01, 0.25
"""Seconds between two looks whether a server has room: it tells nobody. Twice as long each time that nothing
has moved, for a thousand readers who take nothing are a thousand who are looked at."""


async def room(buffered: Callable[[], int], most: int) -> None:
    """Until a server holds no more than `most` bytes for a reader. Raises TimeoutError: he takes nothing."""
    least, moved, pause = buffered(), time.monotonic(), PAUSE
    while (now := buffered()) > most:
        if now < least:
            least, moved, pause = now, time.monotonic(), PAUSE
        elif time.monotonic() - moved > STUCK:
            raise TimeoutError
        await asyncio.sleep(pause)
        pause = min(2 * pause, PAUSE_MOST)


class AsgiOutlet(QueueListener):
    """`message(piece)` makes the ASGI message of what the form joined. `budget`: bytes that may wait for its
    reader; `buffered()` tells how much of them the server holds, where it can tell."""

    __slots__ = ("_buffered", "_drained", "_message", "_send", "_task")

    def __init__(
        self,
        form,
        send: Callable[[dict[str, Any]], Awaitable[None]],
        message: Callable[[Any], dict[str, Any]],
        *,
        budget: int = 256 * 1024,
        buffered: Callable[[], int] = lambda: 0,
    ):
        super().__init__(form, budget=budget)
        self._send = send
        self._message = message
        self._buffered = buffered
        self._drained = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._pump())

    @property
    def waiting(self) -> int:
        return self._queued + self._buffered()

    async def drained(self) -> None:
        """Until no more than a piece waits."""
        while self._queued > PIECE and not self.ended:
            self._drained.clear()
            await self._drained.wait()

    def stop(self) -> None:
        super().stop()
        self._drained.set()
        if self.owner is not None:
            self.owner.wake()

    async def flush(self) -> None:
        """Until everything written has been sent."""
        self.end()
        self.closed = True
        self.something.set()
        await asyncio.shield(self._task)

    async def _pump(self):
        while True:
            while self._queue:
                try:
                    await room(self._buffered, PIECE)
                    piece = self._queue.popleft()
                    self._queued -= len(piece)
                    async with asyncio.timeout(STUCK):
                        await self._send(self._message(piece))
                except TimeoutError:
                    self.too_slow(None)
                    return
                if self._queued <= PIECE:
                    self._drained.set()
            if self.closed:
                return
            if not (self.live or self.ended):
                self.feeder.ready(self)
            self.something.clear()
            await self.something.wait()

    def cancel(self) -> None:
        """The connection is gone."""
        self.stop()
        self._task.cancel()
