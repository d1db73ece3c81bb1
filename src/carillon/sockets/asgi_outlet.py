"""The writing side of a connection through an ASGI server that hands out no file descriptor, and of
Server-Sent Events: one pump that awaits `send`, and a queue bounded in bytes.

A reader who is slower than the events is not cut off: when more waits than the budget, `full` is called, and
whoever subscribed it lets it fall behind and brings it level again at its own pace. One that takes nothing at
all for a minute is given up.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from carillon.fanout.hub import Listener

FULL = 64 * 1024
"""Bytes in the server's own buffer beyond which the pump waits."""

STUCK = 60.0
"""Seconds without any progress after which a reader is given up."""


class AsgiOutlet(Listener):
    """`message(piece)` makes the ASGI message of what the form joined. `full` is called with the number of
    the last event that waits, whenever more than `budget` bytes do; `slow`, once, with that of the last event
    sent, when the reader has not moved for `STUCK` seconds. `buffered()` tells how much the server still
    holds, where it can tell."""

    piece = 64 * 1024

    __slots__ = (
        "_budget",
        "_buffered",
        "_drained",
        "_full",
        "_held",
        "_message",
        "_queue",
        "_send",
        "_slow",
        "_task",
        "_wake",
        "sent",
        "taking",
    )

    def __init__(
        self,
        form,
        send: Callable[[dict[str, Any]], Awaitable[None]],
        message: Callable[[Any], dict[str, Any]],
        slow: Callable[[int], None],
        full: Callable[[int], None],
        *,
        budget: int = 1024 * 1024,
        buffered: Callable[[], int] = lambda: 0,
    ):
        super().__init__(form)
        self.sent = 0
        self.taking = True
        self._send = send
        self._message = message
        self._slow = slow
        self._full = full
        self._budget = budget
        self._buffered = buffered
        self._held = 0
        self._queue: deque = deque()
        self._wake = asyncio.Event()
        self._drained = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._pump())

    @property
    def held(self) -> int:
        return self._held

    def write(self, data, number: int) -> None:
        self.give(data, number)
        if number and self._held > self._budget:
            self._full(number)

    def give(self, data, number: int) -> None:
        if not self.taking:
            return
        for piece in (data,) if isinstance(data, bytes) else data:
            self._queue.append((piece, number))
            self._held += len(piece)
        self._wake.set()

    async def room(self) -> None:
        while self._held > self.piece and self.taking:
            self._drained.clear()
            await self._drained.wait()

    def text(self, text: str) -> None:
        """Write one text, behind everything written before it."""
        self.write((text,), 0)

    def stop(self) -> None:
        """Take nothing more, and forget what waits."""
        self.taking = False
        self._queue.clear()
        self._held = 0
        self._wake.set()
        self._drained.set()

    async def flush(self) -> None:
        """Until everything written has been sent."""
        self.taking = False
        self._wake.set()
        await asyncio.shield(self._task)

    async def _pump(self):
        while True:
            while self._queue:
                if not await self._may_send():
                    self.stop()
                    self._slow(self.sent)
                if not self._queue:
                    break
                piece, number = self._queue.popleft()
                self._held -= len(piece)
                try:
                    async with asyncio.timeout(STUCK):
                        await self._send(self._message(piece))
                except TimeoutError:
                    self.stop()
                    self._slow(self.sent)
                    return
                self.sent = number or self.sent
                if self._held <= self.piece:
                    self._drained.set()
            if not self.taking:
                return
            self._wake.clear()
            await self._wake.wait()

    async def _may_send(self) -> bool:
        """Until the server has room; False: it had none for too long."""
        least, moved = self._buffered(), time.monotonic()
        while (now := self._buffered()) > FULL:
            if now < least:
                least, moved = now, time.monotonic()
            elif time.monotonic() - moved > STUCK:
                return False
            await asyncio.sleep(0.01)  # a server tells nobody that it has room
        return True

    def cancel(self) -> None:
        """The connection is gone."""
        self.taking = False
        self._task.cancel()
