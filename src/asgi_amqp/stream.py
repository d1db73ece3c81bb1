"""Event streams: an ordered log on the broker that many processes read, each from any position.

`EventStream` publishes batches of events with confirms, tails them, and replays from a position. A position
is `<epoch>:<number>` and names one event: numbers only grow within an epoch, and leave gaps, being the
offset of the AMQP message times 2**12 plus the place in its batch. The epoch is the identity of the log:
whoever finds none, or finds the log gone, starts a new one; a position of another epoch, or one that
retention has passed, raises `PositionGone`.
"""

import asyncio
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from aiormq.exceptions import ChannelNotFoundEntity

from .codec import Message, decode, encode
from .connection import Delivery, Link, Wire
from .exceptions import BrokerUnavailable, LayerError, Unroutable
from .layer import AMQPChannelLayer
from .sender import FutureTicket, Unwatched
from .topology import Destination, Queue

PLACES = 12  # bits of a number that say the place in the batch
PREFETCH = 100  # AMQP messages that the broker sends ahead


class PositionGone(LayerError):
    """What followed this position can no longer be replayed whole: fetch the state anew."""


class Position(NamedTuple):
    """One event in one log. `str()` and `parse` are inverse."""

    epoch: str
    number: int

    @classmethod
    def parse(cls, text: str) -> "Position":
        """ValueError when the text is no position."""
        epoch, colon, number = text.partition(":")
        if (
            not (epoch.isalnum() and epoch.isascii() and colon and number.isascii() and number.isdigit())
            or len(text) > 60
        ):
            raise ValueError(f"not a position: {text[:60]!r}")
        return cls(epoch, int(number))

    def __str__(self) -> str:
        return f"{self.epoch}:{self.number}"


class Event(NamedTuple):
    position: Position
    message: Message


@dataclass(frozen=True)
class Retention:
    """How long events stay. The broker drops whole segments, and always keeps the newest."""

    max_age: str = "24h"
    max_bytes: int = 2_000_000_000
    segment_bytes: int = 16_000_000


class EventStream:
    """A stream of one layer. Use it in one event loop; `name` is unique within the layer's prefix."""

    def __init__(self, layer: AMQPChannelLayer, name: str, retention: Retention | None = None) -> None:
        self.epoch = ""
        self._layer = layer
        self._name = name
        self._retention = retention or Retention()
        self._destination: Destination | None = None
        self._opening = asyncio.Lock()

    # The epoch: a little stream holds the chain of all epochs, each naming the one it replaces. The first
    # record that replaces the present epoch wins, so all processes agree without talking to each other.

    async def open(self) -> str:
        """Agree on the epoch with all other processes, starting a log if there is none; the epoch."""
        async with self._opening:
            if not self.epoch:
                await self._open()
        return self.epoch

    async def _open(self) -> None:
        session = self._layer.session()
        link = await session.receiver.supervisor.link(self._layer.timeout)
        chain = self._queue(f"{self._layer.prefix}.s.{self._name}.epochs", {"x-queue-type": "stream"})
        async with asyncio.timeout(self._layer.timeout * 2):
            async with link.attempt() as wire:
                await wire.queue_declare(chain.name, durable=True, arguments=chain.arguments)
                await wire.exchange_declare(self._layer.prefix, exchange_type="direct", durable=True)
                await wire.queue_bind(chain.name, self._layer.prefix, chain.key)
            proposal = ""
            while True:
                epoch = await self._current(link, chain)
                if proposal and proposal != epoch:  # another process was first
                    async with link.attempt() as wire:
                        await wire.queue_delete(self._log(proposal))
                if epoch and await self._exists(link, epoch):
                    break
                proposal = secrets.token_hex(6)
                await self._declare(link, proposal)
                to_chain = Destination(chain.key, b"\xa0", chain.key, True, 1)
                await session.sender.send(
                    to_chain, encode({"epoch": proposal, "replaces": epoch}), self._layer.timeout
                )
        log = self._queue(self._log(epoch), self._arguments())
        self._destination = Destination(log.key, b"\xa0", log.key, True, 1 << PLACES)  # never declared anew
        self.epoch = epoch

    def _log(self, epoch: str) -> str:
        return f"{self._layer.prefix}.s.{self._name}.{epoch}"

    def _queue(self, name: str, arguments: dict[str, Any]) -> Queue:
        return Queue(name, f"s.{name}", arguments)

    def _arguments(self) -> dict[str, Any]:
        return {
            "x-queue-type": "stream",
            "x-max-age": self._retention.max_age,
            "x-max-length-bytes": self._retention.max_bytes,
            "x-stream-max-segment-size-bytes": self._retention.segment_bytes,
        }

    async def _declare(self, link: Link, epoch: str) -> None:
        log = self._queue(self._log(epoch), self._arguments())
        async with link.attempt() as wire:
            await wire.queue_declare(log.name, durable=True, arguments=log.arguments)
            await wire.queue_bind(log.name, self._layer.prefix, log.key)

    async def _exists(self, link: Link, epoch: str) -> bool:
        try:
            async with link.attempt() as wire:
                await wire.queue_declare(self._log(epoch), passive=True)
        except ChannelNotFoundEntity:
            return False
        return True

    async def _current(self, link: Link, chain: Queue) -> str:
        """The last epoch of the chain; "" when there is none."""
        epoch = ""
        async with _Tail(link, chain.name, "first") as tail:
            while (delivery := await tail.next(0.5 if epoch else 1.0)) is not None:
                for _, record in decode(delivery.body):
                    if record["replaces"] == epoch:
                        epoch = record["epoch"]
        return epoch

    # Publishing

    async def publish(self, message: Message, timeout: float | None = None) -> None:
        """Append an event; back when the broker has it. BrokerUnavailable: it may or may not be there."""
        await self.publish_many([message], timeout)

    async def publish_many(self, messages: list[Message], timeout: float | None = None) -> None:
        """Append events in this order, under way together; back when the broker has them all."""
        wait = self._layer.timeout if timeout is None else timeout
        deadline = time.monotonic() + wait
        data = [encode(message) for message in messages]
        while data:
            await self.open()
            assert self._destination is not None
            ticket = FutureTicket(len(data), deadline)
            sender = self._layer.session().sender
            for each in data:
                sender.submit(self._destination, each, ticket)
            try:
                await ticket.wait()
            except Unroutable:  # the log was deleted underneath: agree on a new epoch
                self.epoch = ""
            else:
                return

    def publish_unwatched(self, message: Message) -> None:
        """Append an event without waiting; a failure shows in `layer.on_loss`. Needs an `open()` before."""
        assert self._destination is not None, "open() the stream first"
        sender = self._layer.session().sender
        ticket = Unwatched(time.monotonic() + self._layer.timeout, self._layer.stats)
        sender.submit(self._destination, encode(message), ticket)

    # Reading

    async def last(self) -> Position:
        """The position of the newest event; number -1 while there is none."""
        epoch = await self.open()
        link = await self._layer.session().receiver.supervisor.link(self._layer.timeout)
        number = -1
        async with _Tail(link, self._log(epoch), "last") as tail:
            while (delivery := await tail.next(0.2 if number >= 0 else 0.5)) is not None:
                count = sum(1 for _ in decode(delivery.body))
                number = (_offset(delivery) << PLACES) + count - 1
        return Position(epoch, number)

    async def read(self, since: Position | None = None) -> AsyncIterator[Event]:
        """Events for ever, in order, none twice: from now on, or all that follow `since` and then on.

        A lost connection is made again and the reading goes on where it was. PositionGone, at once or later:
        events that follow were dropped by retention, or the log is not the one of the position.
        """
        epoch = await self.open()
        after = since if since is not None else await self.last()
        if after.epoch != epoch:
            raise PositionGone(f"position {after}: the log began anew, its epoch is {epoch}")
        number = after.number
        known = since is not None or number >= 0  # so that the event at `number` itself must be there
        while True:
            link = await self._layer.session().receiver.supervisor.link(3600)
            start: int | str = max(0, number) >> PLACES if known else "first"
            try:
                async with _Tail(link, self._log(epoch), start) as tail:
                    checked = not known or number < 0
                    while True:
                        delivery = await tail.next(None if checked else self._layer.timeout)
                        if delivery is None:
                            raise PositionGone(f"position {epoch}:{number} is beyond the end of the log")
                        offset = _offset(delivery)
                        if not checked and offset != start:
                            raise PositionGone(
                                f"position {epoch}:{number} has left the log, which begins at "
                                f"{epoch}:{offset << PLACES}"
                            )
                        checked = True
                        for place, (_, message) in enumerate(decode(delivery.body)):
                            here = (offset << PLACES) + place
                            if here > number:
                                number, known = here, True
                                yield Event(Position(epoch, here), message)
            except ChannelNotFoundEntity:
                self.epoch = ""
                raise PositionGone(f"the log of epoch {epoch} is gone") from None
            except (BrokerUnavailable, ConnectionError):
                await asyncio.sleep(0.05)


def _offset(delivery: Delivery) -> int:
    value = delivery.headers["x-stream-offset"]
    assert isinstance(value, int)
    return value


class _Tail:
    """One consumer of a stream on a link, from an offset, "first" or "last"."""

    def __init__(self, link: Link, queue: str, offset: int | str) -> None:
        self._link = link
        self._queue = queue
        self._offset = offset
        self._deliveries: deque[Delivery] = deque()
        self._arrived = asyncio.Event()
        self._wire: Wire | None = None
        self._unacknowledged = 0

    async def __aenter__(self) -> "_Tail":
        self._wire = await self._link.passing(on_delivery=self._take)
        await self._wire.basic_qos(prefetch_count=PREFETCH)
        await self._wire.basic_consume(self._queue, _nothing, arguments={"x-stream-offset": self._offset})
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._wire is not None and not self._wire.is_closed and not self._link.lost.done():
            await self._wire.close()

    def _take(self, delivery: Delivery) -> None:
        self._deliveries.append(delivery)
        self._arrived.set()

    async def next(self, timeout: float | None) -> Delivery | None:
        """The next AMQP message, None after `timeout` seconds without one. BrokerUnavailable when the link
        is lost.
        """
        assert self._wire is not None
        end = None if timeout is None else time.monotonic() + timeout
        while not self._deliveries:
            if self._link.lost.done() or self._wire.is_closed:
                raise BrokerUnavailable("the connection was lost while reading the stream")
            if end is not None and time.monotonic() > end:
                return None
            self._arrived.clear()
            wait = 1.0 if end is None else max(0.01, min(1.0, end - time.monotonic()))
            arrived: asyncio.Future[Any] = asyncio.ensure_future(self._arrived.wait())
            lost = cast("asyncio.Future[Any]", self._link.lost)
            await asyncio.wait((arrived, lost), timeout=wait, return_when=asyncio.FIRST_COMPLETED)
            arrived.cancel()
        delivery = self._deliveries.popleft()
        self._unacknowledged += 1
        if self._unacknowledged >= PREFETCH // 4:
            self._unacknowledged = 0
            await self._wire.basic_ack(delivery.tag, multiple=True, wait=False)
        return delivery


async def _nothing(message: object) -> None:
    """aiormq wants a callback; the wire has taken the message before."""
