"""The writing side of a connection through an ASGI server that hands out no file descriptor, and of
Server-Sent Events: one pump that awaits `send`, and a queue bounded in bytes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from carillon.delivery.hub import Listener

FULL = 64 * 1024
"""Bytes in the server's own buffer beyond which the pump waits."""


class AsgiOutlet(Listener):
    """`message(piece)` makes the ASGI message of what the form joined. `slow` is called, once, when more than
    `budget` bytes wait; `buffered()` tells how much the server still holds, where it can tell."""

    __slots__ = (
        "_budget",
        "_buffered",
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
        self._budget = budget
        self._buffered = buffered
        self._held = 0
        self._queue: deque = deque()
        self._wake = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._pump())

    @property
    def held(self) -> int:
        return self._held

    def write(self, data, offset: int) -> None:
        if not self.taking:
            return
        for piece in (data,) if isinstance(data, bytes) else data:
            self._queue.append((piece, offset))
            self._held += len(piece)
        self._wake.set()
        if self._held > self._budget:
            self.stop()
            self._slow(self.sent)

    def text(self, text: str) -> None:
        """Write one text, behind everything written before it."""
        self.write((text,), 0)

    def stop(self) -> None:
        """Take nothing more, and forget what waits."""
        self.taking = False
        self._queue.clear()
        self._wake.set()

    async def flush(self) -> None:
        """Until everything written has been sent."""
        self.taking = False
        self._wake.set()
        await asyncio.shield(self._task)

    async def _pump(self):
        while True:
            while self._queue:
                while self._buffered() > FULL:  # noqa: ASYNC110 - a server tells nobody that it has room
                    await asyncio.sleep(0.02)
                if not self._queue:
                    break
                piece, offset = self._queue.popleft()
                self._held -= len(piece)
                await self._send(self._message(piece))
                self.sent = offset or self.sent
            if not self.taking:
                return
            self._wake.clear()
            await self._wake.wait()

    def cancel(self) -> None:
        """The connection is gone."""
        self.taking = False
        self._task.cancel()
