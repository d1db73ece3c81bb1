"""An AMQP channel on a link: publishes, deliveries and acknowledgements, on the byte path or by aiormq."""

import contextlib
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

import aiormq
from pamqp.commands import Basic

from . import transport
from .acks import Acks
from .exceptions import GONE
from .transport import Delivery, Tap

if TYPE_CHECKING:
    from .connection import Link


class Wire:
    """An AMQP channel. `channel` is aiormq's, for the calls that wait for an answer."""

    def __init__(self, link: "Link", channel: aiormq.abc.AbstractChannel, tap: Tap) -> None:
        self.channel = channel
        self.number = channel.number
        self._link = link
        self._tap = tap
        self._plain = link.plain
        self._acks = Acks()
        self.ended = ""  # why the broker ended it, or its consumer
        self.passing = True  # its end means nothing for the link: until `Link.keep`, and when we close it

    @property
    def closed(self) -> bool:
        return self.channel.is_closed or self._link.lost.done()

    async def consume(self, queue: str, *, prefetch: int = 0, **options: Any) -> str:
        """Have the tap fed from a queue; the tag that cancels it. `prefetch` 0 is without bound."""

        async def arrived(message: aiormq.abc.DeliveredMessage) -> None:  # where there is no byte path
            if self._tap.on_delivery is not None:
                self._tap.on_delivery(
                    Delivery(
                        message.body,
                        message.delivery_tag or 0,
                        bool(message.redelivered),
                        message.header.properties,
                    )
                )

        async def consume() -> str:
            if prefetch:
                await self.channel.basic_qos(prefetch_count=prefetch)
            return (await self.channel.basic_consume(queue, arrived, **options)).consumer_tag or ""

        return await self._link.own(consume())

    async def cancel(self, tag: str) -> None:
        """No more deliveries of this consumer; those that came can still be acknowledged."""
        if not self.closed:
            with contextlib.suppress(*GONE):
                await self._link.own(self.channel.basic_cancel(tag))

    def publish(
        self, exchange: str, keys: Iterable[str], body: bytes, tag: int = 0,
        *, persistent: bool = True, mandatory: bool = True, message_id: str = "", timestamp: int = 0,
    ) -> bytes:  # fmt: skip
        """The frames of a publish, for `Link.write`; nothing where aiormq publishes it. The confirm names
        `tag`, which counts from 1 on each wire.
        """
        message_id = message_id or str(tag)
        if not self._plain:
            return transport.publish(
                self.number, exchange, keys, body, persistent=persistent, mandatory=mandatory,
                message_id=message_id, frame_max=self._link.frame_max, timestamp=timestamp,
            )  # fmt: skip
        first, *others = keys
        properties = Basic.Properties(
            delivery_mode=2 if persistent else 1,
            message_id=message_id,
            timestamp=datetime.fromtimestamp(timestamp, UTC) if timestamp else None,
            headers={"CC": cast("Any", others)} if others else None,
        )

        async def publish() -> None:
            ok = True
            try:
                await self.channel.basic_publish(
                    body, exchange=exchange, routing_key=first, properties=properties, mandatory=mandatory
                )
            except aiormq.PublishError:
                if self._tap.on_return is not None:
                    self._tap.on_return(message_id)
            except aiormq.DeliveryError:
                ok = False
            if self._tap.on_confirm is not None:
                self._tap.on_confirm(tag, False, ok)

        self._link.spawn(publish())
        return b""

    def ask(self) -> None:
        """Have `on_answer` called when the broker has dealt with all that was published here before."""
        if not self._plain:
            self._link.write(transport.question(self.number))
            return

        async def ask() -> None:
            await self.channel.basic_qos(prefetch_count=0)
            if self._tap.on_answer is not None:
                self._tap.on_answer()

        self._link.spawn(ask())

    def opened(self, tag: int) -> None:
        """A delivery has come that is acknowledged, rejected or given back later."""
        self._acks.opened(tag)

    def ack(self, tag: int) -> None:
        """Done with a delivery. On a link that is gone nothing happens, here and below: the broker has
        already given it to someone else. The broker is told at the end of this turn of the loop.
        """
        if self._acks.add(tag):
            self._link.tell_soon(self)

    def ack_all(self, tag: int) -> None:
        """Done with a delivery and all before it, on a wire that is acknowledged in no other way."""
        self._answer(transport.ACK, tag, 1, self.channel.basic_ack, multiple=True)

    def reject(self, tag: int, *, requeue: bool) -> None:
        """A delivery has failed: back to the queue, one attempt more, or to the dead letters."""
        self._acks.ended(tag)
        self._answer(transport.REJECT, tag, int(requeue), self.channel.basic_reject, requeue=requeue)

    def give_back(self, tag: int) -> None:
        """A delivery was not tried: back to the queue. RabbitMQ counts no attempt for it from 4.3 on."""
        self._acks.ended(tag)
        self._answer(transport.NACK, tag, 2, self.channel.basic_nack, requeue=True)

    def tell(self) -> None:
        """Tell the broker what was acknowledged since."""
        for tag, multiple in self._acks.take():
            self._answer(transport.ACK, tag, int(multiple), self.channel.basic_ack, multiple=multiple)

    def _answer(
        self, method: int, tag: int, bits: int, call: Callable[..., Awaitable[None]], **options: bool
    ) -> None:
        async def answer() -> None:
            await call(tag, wait=False, **options)

        if self.closed:
            return
        if self._plain:
            self._link.spawn(answer())
        else:
            self._link.write(transport.answer(self.number, method, tag, bits))

    def give_up(self, reason: str) -> None:
        """Its link is of no use any more."""
        self._link.give_up(reason)

    async def close(self) -> None:
        """Done with this channel; what was delivered and not acknowledged goes back."""
        self.tell()
        if not self.closed:
            self.passing = True
            with contextlib.suppress(*GONE):
                await self._link.own(self.channel.close())
