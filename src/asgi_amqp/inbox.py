"""`receive()` on a normal channel, as the plain `runworker` of Channels does it.

An AMQP message is acknowledged when the last of its events is handed to its receiver: what that one does
with it is not known here, which is why work that must not be lost belongs to `asgi_amqp.worker`. A channel
that nobody receives on for a while is no longer consumed, and what nobody has begun to read goes back to the
broker for others; later so does what has been begun, whole. Giving back counts as an attempt before RabbitMQ
4.3, so little is fetched ahead where attempts are counted.
"""

import asyncio
import math
import time
from collections.abc import Callable
from copy import copy
from typing import TYPE_CHECKING

from .codec import Message
from .consumer import Consumer, Received
from .exceptions import LayerError
from .mailboxes import Mailbox, Parcel
from .topology import Queue

if TYPE_CHECKING:
    from .receiver import Receiver

PREFETCH = 32  # AMQP messages fetched ahead
IDLE = 1.0  # seconds without a receiver, at most a quarter of the expiry: given back, a message keeps its age
# Seconds without one after which a batch that was begun goes back. Long, for those of it that were read come
# again. After RabbitMQ's consumer_timeout, half an hour, an open one costs the link.
BEGUN = 600.0


async def wait(box: Mailbox) -> None:
    """Until there may be something to take. Who ends before that wakes the next reader: nothing is lost."""
    if box.closed is not None:
        raise copy(box.closed)
    waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    box.waiters.append(waiter)
    try:
        await waiter
    except BaseException:  # cancelled, or thrown away as a coroutine
        woken = waiter.done() and not waiter.cancelled() and waiter.exception() is None
        box.forsaken(waiter, woken=woken)
        raise
    box.turn()


class Inbox:
    """Made when a channel is first received on, and forgotten when nobody has for long. Home of its one
    mailbox.
    """

    drop_oldest = False

    def __init__(self, receiver: "Receiver", queue: Queue, expiry: float, timeout: float) -> None:
        self.box = Mailbox(queue.key[2:], 1 << 62, self, time.monotonic())  # the prefetch bounds it
        self._receiver = receiver
        self._queue = queue
        self._expiry = math.inf if queue.dead else expiry
        self._timeout = timeout
        self._unread: dict[Parcel, Received] = {}
        self._readers = 0
        self._consumer: Consumer | None = None
        self._starting: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def idle(self) -> bool:
        """Whether nobody reads, nothing is consumed, and nothing is here to be read."""
        return not (self._readers or self._consumer or self._starting or self.box.count)

    async def receive(self) -> Message:
        """The next message."""
        self._readers += 1
        try:
            while (message := self.box.take(time.monotonic())) is None:
                await self._ready()
                if not self.box.count:  # it may have come while we subscribed
                    await wait(self.box)
            self.box.settle()
            return message
        finally:
            self._readers -= 1
            self._arm()

    async def _ready(self) -> None:
        """A receiver found nothing: consume, once, and to the end even when that one is cancelled."""
        while self._starting is not None or self._consumer is None or self._consumer.paused:
            if self._starting is None:
                self._starting = self._receiver.loop.create_task(self._start())
            starting = self._starting
            await asyncio.wait([starting])
            if self.box.closed is not None:
                raise copy(self.box.closed)
            if not starting.cancelled():
                starting.result()

    async def _start(self) -> None:
        try:
            if self._consumer is None:
                prefetch = 1 if self._queue.dead else PREFETCH
                consumer = Consumer(self._receiver, self._queue, prefetch, self._on_message, self._on_lost)
                try:
                    await consumer.started(self._timeout)
                except BaseException:
                    await consumer.stop()
                    raise
                self._consumer = consumer
            else:
                await self._consumer.renew()
        finally:
            self._starting = None
            self._arm()

    def _arm(self) -> None:
        """Look after a while whether anyone still receives."""
        self._later(min(IDLE, self._expiry / 4), self._stop_if_idle)

    def _later(self, seconds: float, look: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._receiver.loop.call_later(seconds, look) if not self._readers else None

    def _stop_if_idle(self) -> None:
        self._timer = None
        consumer = self._consumer
        if not self._readers and consumer is not None and self._starting is None:
            self._starting = self._receiver.loop.create_task(self._rest(consumer))

    def _let_go(self) -> None:
        """Nobody has read what was begun to its end: it goes back, and the consumer ends."""
        self._timer = None
        if not self._readers and self._starting is None:
            for received in self._unread.values():
                received.give_back()
            self._on_lost(None)

    async def _rest(self, consumer: Consumer) -> None:
        """Consume no more. What has been begun stays for a while, to be read to its end."""
        try:
            if not consumer.paused:
                await consumer.pause()
            begun = self.box.keep_begun()
            for parcel, received in list(self._unread.items()):
                if parcel is not begun:
                    del self._unread[parcel]
                    received.give_back()
            if self._unread:
                self._later(BEGUN, self._let_go)
            else:
                if self._consumer is consumer:
                    self._consumer = None
                await consumer.stop()
        finally:
            self._starting = None

    # The consumer

    def _on_message(self, received: Received) -> None:
        now = time.monotonic()
        parcel = Parcel(0, now + self._expiry, None)
        self._unread[parcel] = received
        self.box.put(parcel, received.messages, now)

    def _on_lost(self, error: LayerError | None) -> None:
        """What is here and not acknowledged will come again."""
        self._unread.clear()
        self.box.keep_returned()
        if error is not None:
            self._consumer = None
            self.box.fail(error)
        elif self._consumer is not None and self._consumer.paused and self._starting is None:
            self._starting = self._receiver.loop.create_task(self._rest(self._consumer))

    # The home of the mailbox

    def lose(self, reason: str, count: int, box: Mailbox) -> None:
        self._receiver.stats.lose(reason, count, box.channel)

    def release(self, parcel: Parcel, box: Mailbox) -> None:
        """All of it has been read."""
        received = self._unread.pop(parcel, None)
        if received is not None:
            received.ack()

    def close(self, error: LayerError) -> None:
        """Nothing comes any more."""
        self._unread.clear()
        self.box.clear()
        self.box.closed = error
        self.box.fail(error)
        if self._timer is not None:
            self._timer.cancel()
        if self._starting is not None:
            self._starting.cancel()
