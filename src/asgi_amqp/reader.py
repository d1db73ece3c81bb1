"""`receive()` on a normal channel, as the plain `runworker` of Channels does it.

A message is acknowledged when it is handed to its receiver: what that one does with it is not known here,
which is why work that must not be lost belongs to `asgi_amqp.worker`. A channel that nobody receives on for
a while is no longer consumed, and what was fetched ahead goes back to the broker for others.
"""

import asyncio
import math
import time

from .exceptions import LayerError
from .mailbox import Budget, Entry, Mailbox
from .receiver import Received, Receiver, Subscription
from .topology import Queue

PREFETCH = 32  # AMQP messages fetched ahead
IDLE = 1.0  # seconds without a receiver


class _Batch:
    """Acknowledges an AMQP message once all its events are taken."""

    __slots__ = ("left", "received")

    def __init__(self, received: Received) -> None:
        self.received = received
        self.left = len(received.messages)

    def taken(self) -> None:
        self.left -= 1
        if self.left == 0:
            self.received.ack()


class Reader:
    """Made when a channel is first received on; lives as long as its session."""

    def __init__(self, receiver: Receiver, queue: Queue, timeout: float) -> None:
        self.box = Mailbox(1 << 62, Budget(1 << 62), lambda reason, count: None)  # PREFETCH bounds it
        self._receiver = receiver
        self._queue = queue
        self._timeout = timeout
        self._readers = 0
        self._subscription: Subscription | None = None
        self._starting: asyncio.Task[Subscription] | None = None
        self._idle_since = 0.0
        self._idle_timer: asyncio.TimerHandle | None = None
        self._stopping: asyncio.Task[None] | None = None

    async def get(self) -> tuple[Entry, Mailbox]:
        """The next message."""
        self._readers += 1
        try:
            while True:
                entry = self.box.take()
                if entry is not None:
                    return entry, self.box
                if self._subscription is None:
                    await self._subscribe()
                if not self.box.entries:  # it may have come while we subscribed
                    await self.box.wait(self._receiver.loop)
        finally:
            self._readers -= 1
            if not self._readers:
                self._arm()

    async def _subscribe(self) -> None:
        """Once, however many wait, and to the end even when they are cancelled."""
        if self._starting is None:
            self._starting = self._receiver.loop.create_task(
                self._receiver.subscribe(
                    self._queue, PREFETCH, self._on_message, self._on_lost, self._timeout
                )
            )
            self._starting.add_done_callback(self._started)
        await asyncio.shield(self._starting)

    def _started(self, task: asyncio.Task[Subscription]) -> None:
        self._starting = None
        if not task.cancelled() and task.exception() is None:
            self._subscription = task.result()
            self._arm()

    def _arm(self) -> None:
        """Look after a while whether anyone still receives."""
        self._idle_since = time.monotonic()
        if self._idle_timer is None:
            self._idle_timer = self._receiver.loop.call_later(IDLE, self._stop_if_idle)

    def _on_message(self, received: Received) -> None:
        batch = _Batch(received)
        size = len(received.delivery.body) // max(1, batch.left)
        entries = [Entry(message, math.inf, size, taken=batch.taken) for message in received.messages]
        self.box.put(entries, size * batch.left)

    def _on_lost(self, error: LayerError | None) -> None:
        """What is here and not acknowledged will come again."""
        self.box.clear()
        if error is not None:
            self._subscription = None
            self.box.fail(error)

    def _stop_if_idle(self) -> None:
        self._idle_timer = None
        if self._readers or self._subscription is None:
            return
        rest = self._idle_since + IDLE - time.monotonic()
        if rest > 0:
            self._idle_timer = self._receiver.loop.call_later(rest, self._stop_if_idle)
            return
        subscription, self._subscription = self._subscription, None
        self.box.clear()
        self._stopping = self._receiver.loop.create_task(self._receiver.unsubscribe(subscription))
