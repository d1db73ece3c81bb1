"""The consumer of a normal channel, for the worker and for `receive()`: they differ in when they acknowledge.

A consumer is started anew on every link until it is stopped. What it was given and did not acknowledge comes
again, from the broker, to it or to others.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import codec
from .connection import Link
from .exceptions import GONE, BrokerUnavailable, LayerError, describe
from .queues import declare_queue
from .topology import Queue
from .transport import Delivery
from .wire import Wire

if TYPE_CHECKING:
    from .receiver import Receiver

log = logging.getLogger("asgi_amqp")

PAUSE, LONGEST = 0.1, 5.0  # seconds between attempts at a queue that cannot be consumed


@dataclass(slots=True, eq=False)  # frozen, it would cost a microsecond
class Received:
    """One AMQP message of a normal channel: its events, and the ways to end it."""

    messages: list[codec.Message]
    delivery: Delivery
    wire: Wire
    left: int = 0  # a worker's count of those that are not done
    begun: bool = False
    failed: tuple[int, ...] = ()  # places in the batch

    def again(self, place: int) -> codec.Message:
        """One of the events as it came, whatever was done to it."""
        return list(codec.decode(self.delivery.body))[place][1]

    def ack(self) -> None:
        """Done."""
        self.wire.ack(self.delivery.tag)

    def fail(self) -> None:
        """It was tried in vain: back to the queue, one attempt more."""
        self.wire.reject(self.delivery.tag, requeue=True)

    def give_back(self) -> None:
        """It was not tried: for others, or for later."""
        self.wire.give_back(self.delivery.tag)

    @property
    def attempts(self) -> int:
        """How often it has been delivered before."""
        count = self.delivery.headers.get("x-delivery-count", 0)
        return max(count if isinstance(count, int) else 0, int(self.delivery.redelivered))


class Consumer:
    """Consumes a queue over all links of a receiver; at most `prefetch` messages are not acknowledged.

    `on_message` gets each that holds an event or more; `on_lost` is called when the link goes, with an error
    when no other will come.
    """

    def __init__(
        self,
        receiver: "Receiver",
        queue: Queue,
        prefetch: int,
        on_message: Callable[[Received], None],
        on_lost: Callable[[LayerError | None], None],
    ) -> None:
        self.queue = queue
        self.on_lost = on_lost
        self.paused = False  # nothing new, on this link or the next
        self._receiver = receiver
        self._prefetch = prefetch
        self._on_message = on_message
        self._wire: Wire | None = None
        self._tag = ""
        self._active = asyncio.Event()
        self._changing = asyncio.Lock()
        self._following: asyncio.Task[None] | None = None
        receiver.consumers.add(self)

    async def started(self, timeout: float) -> None:
        """Until the broker has agreed; BrokerUnavailable, ConfigurationError."""
        problem, supervisor = "the broker does not answer", self._receiver.supervisor
        try:
            async with asyncio.timeout(timeout):
                while not self._active.is_set():
                    link = await supervisor.link(timeout)
                    try:
                        await self.attach(link)
                        await self._active.wait()
                    except GONE as error:  # the link is lost: again with the next
                        problem = describe(error)
                        if isinstance(error, TimeoutError) or supervisor.hopeless is not None:
                            raise
                        await asyncio.sleep(0.05)
        except TimeoutError:
            raise BrokerUnavailable(
                f"{self.queue.name} not consumed within {timeout:g} s: {problem}"
            ) from None

    def follow(self, link: Link) -> None:
        """Consume on this link as soon as its queue allows it: one that cannot be consumed holds up nobody
        else.
        """

        async def attempts() -> None:
            pause = PAUSE
            while not self.paused and not link.lost.done():
                try:
                    return await self.attach(link)
                except GONE as error:
                    log.warning("%s is not consumed: %s", self.queue.name, describe(error))
                await asyncio.wait([link.lost], timeout=pause)
                pause = min(2 * pause, LONGEST)

        self._following = self._receiver.loop.create_task(attempts())

    async def attach(self, link: Link) -> None:
        """Consume on this link."""
        async with self._changing:
            if self._wire is not None or self.paused:
                return
            await declare_queue(link, self._receiver.topology, self.queue)
            wire: Wire

            def arrived(delivery: Delivery) -> None:
                self._arrived(delivery, wire)

            # Passing until it consumes: a queue that others hold alone refuses us, and nobody else.
            wire = await link.wire(passing=True, on_delivery=arrived)
            if self.paused:  # meanwhile
                await wire.close()
                return
            self._wire = wire
            try:
                self._tag = await wire.consume(self.queue.name, prefetch=self._prefetch)
            except BaseException:  # cancelled, it may consume all the same
                self._wire = None
                link.spawn(wire.close())
                raise
            link.keep(wire)
            self._active.set()

    def _arrived(self, delivery: Delivery, wire: Wire) -> None:
        stats = self._receiver.stats
        stats.batches_in += 1
        wire.opened(delivery.tag)
        try:
            messages = []
            for _, message in codec.decode(delivery.body):
                if type(message) is not dict:
                    raise ValueError
                messages.append(message)
        except ValueError:
            stats.lose("undecodable", None, self.queue.key[2:])
            wire.reject(delivery.tag, requeue=False)
            return
        stats.received += len(messages)
        if messages:
            self._on_message(Received(messages, delivery, wire))
        else:
            wire.ack(delivery.tag)

    def lost(self, error: LayerError | None) -> None:
        """The link is gone."""
        self._unfollow()
        self._wire = None
        self._active.clear()
        self.on_lost(error)

    def _unfollow(self) -> None:
        if self._following is not None:
            self._following.cancel()
            self._following = None

    async def renew(self) -> None:
        """Begin to consume anew: what was given before no longer counts against the prefetch, and can still
        be acknowledged. What is on its way meanwhile may count as tried.
        """
        async with self._changing:
            wire = self._wire
            self.paused = False
            if wire is not None and not wire.closed:
                with contextlib.suppress(*GONE):
                    await wire.cancel(self._tag)
                    self._tag = await wire.consume(self.queue.name, prefetch=self._prefetch)

    async def pause(self) -> None:
        """No new messages; those delivered can still be acknowledged."""
        self.paused = True
        async with self._changing:
            if self._wire is not None:
                await self._wire.cancel(self._tag)

    async def stop(self) -> None:
        """End; what was delivered and not acknowledged goes back to the queue."""
        self.paused = True
        self._unfollow()
        self._receiver.consumers.discard(self)
        wire, self._wire = self._wire, None
        if wire is not None:
            await wire.close()
