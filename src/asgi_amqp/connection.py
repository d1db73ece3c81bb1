"""One broker connection kept alive: a supervisor, a link for every generation of it, and wires on the link.

aiormq opens and closes the connection and does the calls that wait for an answer (declare, bind, consume), in
tasks of our own: a call that is cancelled costs its channel. Publishes, acknowledgements, deliveries and
confirms take the byte path (`transport`), or aiormq's own calls where there is none.

What must exist on the broker is rebuilt from our own state, by `setup`, on every new link.
"""

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeVar, cast

import aiormq
from pamqp.commands import Basic
from yarl import URL

from . import transport
from .exceptions import BrokerUnavailable, ConfigurationError
from .options import Options, Target
from .transport import Delivery, Factory, Tap

T = TypeVar("T")

ATTEMPTS = 8  # passing channels at once
ANSWER = 30.0  # seconds for an answer of the broker to one call
# What a call on a link that goes may raise.
GONE = (aiormq.AMQPError, BrokerUnavailable, OSError, RuntimeError, TimeoutError)


def describe(error: BaseException) -> str:
    """An error in words that hold no secret. aiormq's own texts name hosts and reasons, never passwords."""
    text = ", ".join(str(part) for part in error.args if part not in (None, "")) or type(error).__name__
    return "no answer in time" if isinstance(error, TimeoutError) else text


class Wire:
    """An AMQP channel. `channel` is aiormq's, for the calls that wait for an answer."""

    def __init__(self, link: "Link", channel: aiormq.abc.AbstractChannel, tap: Tap) -> None:
        self.channel = channel
        self.number = channel.number
        self._link = link
        self._tap = tap
        self._plain = link.plain
        self._confirms = tap.on_confirm is not None

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
        *, persistent: bool = True, mandatory: bool = True, message_id: str = "",
    ) -> bytes:  # fmt: skip
        """The frames of a publish, for `Link.write`; nothing where aiormq publishes it. The confirm names
        `tag`, which counts from 1 on each wire.
        """
        message_id = message_id or str(tag)
        if not self._plain:
            return transport.publish(
                self.number, exchange, keys, body, persistent=persistent, mandatory=mandatory,
                message_id=message_id, frame_max=self._link.frame_max,
            )  # fmt: skip
        first, *others = keys
        properties = Basic.Properties(
            delivery_mode=2 if persistent else 1,
            message_id=message_id,
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

    def ack(self, tag: int, *, multiple: bool = False) -> None:
        """Done with a delivery, or all up to it. On a link that is gone nothing happens, here and below: the
        broker has already given it to someone else.
        """
        self._answer(transport.ACK, tag, int(multiple), self.channel.basic_ack, multiple=multiple)

    def reject(self, tag: int, *, requeue: bool) -> None:
        """A delivery has failed: back to the queue, one attempt more, or to the dead letters."""
        self._answer(transport.REJECT, tag, int(requeue), self.channel.basic_reject, requeue=requeue)

    def give_back(self, tag: int) -> None:
        """A delivery was not tried: back to the queue. RabbitMQ counts no attempt for it from 4.3 on."""
        self._answer(transport.NACK, tag, 2, self.channel.basic_nack, requeue=True)

    def _answer(
        self, method: int, tag: int, bits: int, call: Callable[..., Awaitable[None]], **options: bool
    ) -> None:
        if self.closed:
            return
        if self._plain:
            self._link.spawn(_await(call(tag, wait=False, **options)))
        else:
            self._link.write(transport.answer(self.number, method, tag, bits))

    def give_up(self, reason: str) -> None:
        """Its link is of no use any more."""
        self._link.give_up(reason)

    async def close(self) -> None:
        """Done with this channel; what was delivered and not acknowledged goes back."""
        if not self.closed:
            self._link.passing.add(self.number)
            with contextlib.suppress(*GONE):
                await self._link.own(self.channel.close())


class Link:
    """One generation of the connection. It ends once and for ever: `lost` is then done."""

    def __init__(
        self, target: Target, generation: int, connection: aiormq.Connection, factory: Factory, plain: bool
    ) -> None:
        tune = connection.connection_tune
        self.target = target
        self.generation = generation
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.frame_max = tune.frame_max
        self.plain = factory.transport is None or factory.transport.plain or plain
        self.passing: set[int] = set()  # channels whose end means nothing for the link
        self._most = tune.channel_max or 65535
        self._taps: dict[int, Tap] = {}  # of the channels, by their numbers
        self._attempts = asyncio.Semaphore(max(1, min(ATTEMPTS, self._most - 4)))
        self._connection = connection
        self._transport = factory.transport
        if self._transport is not None and not self.plain:
            self._transport.taps = self._taps
        self._tasks: set[asyncio.Task[Any]] = set()
        connection.closing.add_done_callback(lambda future: self.give_up(self.refusal or _reason(future)))

    async def wire(self, *, passing: bool = False, **callbacks: Any) -> Wire:
        """A new AMQP channel; `callbacks` are those of a Tap. When the broker closes it or ends its consumer,
        the whole link is given up and built anew, unless it is a `passing` one.
        """
        return await self.own(self._open(passing, Tap(**callbacks)))

    async def _open(self, passing: bool, tap: Tap) -> Wire:
        number = next((each for each in range(1, self._most + 1) if each not in self._taps), None)
        if number is None:
            raise BrokerUnavailable(
                f"{self.target}: all of its {self._most} channels are in use: raise RabbitMQ's channel_max"
            )
        self._taps[number] = tap  # where opening fails, nobody knows whether the broker has it
        channel = await self._connection.channel(number, publisher_confirms=tap.on_confirm is not None)
        channel.closing.add_done_callback(lambda future: self._closed(number, _reason(future)))
        if passing:
            self.passing.add(number)
        else:
            channel.on_consumer_cancel_callbacks.add(
                lambda frame: self.give_up(f"the broker ended a consumer ({frame.consumer_tag})")
            )
        return Wire(self, channel, tap)

    def _closed(self, number: int, reason: str) -> None:
        self._taps.pop(number, None)
        if number in self.passing:
            self.passing.discard(number)
        else:
            self.give_up(reason)

    async def attempt(self, call: Callable[[aiormq.abc.AbstractChannel], Coroutine[Any, Any, T]]) -> T:
        """Calls that may fail without taking the link with them, on a channel of their own. Those of more
        than a few tasks wait for each other.
        """

        async def run() -> T:
            try:
                wire = await self._open(True, Tap())
                try:
                    return await call(wire.channel)
                finally:
                    await wire.close()
            finally:
                self._attempts.release()

        await self._attempts.acquire()
        return await self.own(run())

    async def own(self, call: Coroutine[Any, Any, T]) -> T:
        """Run a call to its end, whoever waits for it and is cancelled: cut off, it would cost its channel,
        whose number would be used again while the broker still has it. BrokerUnavailable when the link ends
        it: who waits has not been cancelled, and must not hear that it was.
        """
        task = self.spawn(call)
        await asyncio.wait([task])
        if task.cancelled():  # with its link, and not who waits for it
            raise BrokerUnavailable(f"{self.target}: the connection is going")
        return task.result()

    def spawn(self, call: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Run a call that the loss of this link may end. One that has no answer in time costs the link."""

        async def run() -> T:
            try:
                async with asyncio.timeout(ANSWER):
                    return await call
            except TimeoutError:
                if not self.blocked:
                    self.give_up(f"no answer within {ANSWER:g} s")
                raise
            except Exception as error:
                if type(error) is not Exception:
                    raise
                raise BrokerUnavailable(f"{self.target}: the connection is going") from None  # aiormq's word

        def ended(task: "asyncio.Task[T]") -> None:
            self._tasks.discard(task)
            call.close()  # it may have been cancelled before it began
            if not task.cancelled():
                task.exception()  # nobody need wait for it

        task = asyncio.get_running_loop().create_task(run())
        self._tasks.add(task)
        task.add_done_callback(ended)
        return task

    def give_up(self, reason: str) -> None:
        """Done with this link; its supervisor closes it and makes the next."""
        if not self.lost.done():
            self.lost.set_result(reason)
            for tap in self._taps.values():
                tap.mute()

    def write(self, data: bytes) -> None:
        """Frames of a wire, straight to the socket. Never raises: what a link that is going did not take is
        what was in flight when it was lost.
        """
        if self._transport is not None and data:
            try:
                self._transport.socket.write(data)
            except RuntimeError:  # aiormq has answered the broker's goodbye, and closed its half
                self.give_up("the connection is being closed")

    @property
    def unwritten(self) -> int:
        """Bytes that the socket has not taken yet."""
        return 0 if self._transport is None else self._transport.socket.get_write_buffer_size()

    @property
    def blocked(self) -> bool:
        """Whether the broker has stopped reading from its publishers (memory or disk alarm)."""
        return self._transport is not None and self._transport.blocked

    @property
    def refusal(self) -> str:
        """What the broker said when it closed the connection."""
        return "" if self._transport is None else self._transport.closed

    async def watch(self, heartbeat: int) -> str:
        """Why the link was lost, once it is; a broker that is silent for longer than `heartbeat` counts as
        lost. aiormq judges by what reaches it, so where all goes to taps it gets an answer to hear.
        """
        told = time.monotonic()
        while not self.lost.done():
            await asyncio.wait([self.lost], timeout=1)
            link, now = self._transport, time.monotonic()
            if link is None or not heartbeat or self.lost.done():
                continue
            if now - link.heard > heartbeat:
                self.abort()
                self.give_up(f"silent for {now - link.heard:.0f} s")
            elif link.tapped and now - told > heartbeat:
                link.tapped, told = False, now
                self.spawn(self.attempt(_nothing))
        return self.lost.result()

    async def close(self, deadline: float = 2.0) -> None:
        """Say goodbye if the broker listens, then cut. Takes at most `deadline` seconds."""
        self.give_up("closed")
        for task in list(self._tasks):
            task.cancel()
        try:
            async with asyncio.timeout(deadline):
                await self._connection.close()
        except GONE:
            pass
        finally:
            self.abort()

    def abort(self) -> None:
        """Cut it, from any thread: also when its event loop has ended."""
        if self._transport is not None:
            with contextlib.suppress(OSError, RuntimeError):
                self._transport.socket.get_extra_info("socket").shutdown(socket.SHUT_RDWR)
            with contextlib.suppress(RuntimeError):
                self._transport.socket.abort()


async def _await(call: Awaitable[None]) -> None:
    await call


async def _nothing(channel: aiormq.abc.AbstractChannel) -> None:
    """A channel that opens and closes."""


def _reason(future: "asyncio.Future[Any]") -> str:
    error = None if future.cancelled() else future.exception()
    return "closed" if error is None or isinstance(error, asyncio.CancelledError) else describe(error)


async def connect(target: Target, options: Options, generation: int, patience: float = 1.0) -> Link:
    """Open one link, or raise BrokerUnavailable or ConfigurationError, naming host, port and cause.

    `patience` stretches the deadline: a broker that is slow because everyone reconnects must get there in
    the end.
    """
    factory = Factory(target.host, target.port, options.tls if target.tls else None)
    url = URL.build(
        scheme="amqp",
        host=target.host,
        port=target.port,
        user=target.user,
        password=target.password,
        path="/" + target.vhost.removeprefix("/"),
        query={"heartbeat": str(options.heartbeat), "name": options.name, "auth": options.auth},
    )
    connection = aiormq.Connection(url, transport_factory=factory, client_properties={"product": "asgi_amqp"})
    try:
        async with asyncio.timeout(options.connect_timeout * patience):
            await connection.connect()
    except (aiormq.ProbableAuthenticationError, aiormq.AuthenticationError) as error:
        raise ConfigurationError(
            f"{target}: the broker refuses user {target.user!r}: {describe(error)}"
        ) from None
    except GONE as error:
        cause: BaseException = error.__cause__ or error
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise ConfigurationError(
                f"{target}: its certificate is not to be trusted: {cause.verify_message}. "
                "Is ssl_ca the authority that signed it?"
            ) from None
        text = (factory.transport and factory.transport.closed) or describe(error)
        if "NOT_ALLOWED" in text or "ACCESS_REFUSED" in text:
            raise ConfigurationError(
                f"{target}: user {target.user!r} may not use vhost {target.vhost!r}, or there is none: {text}"
            ) from None
        raise BrokerUnavailable(f"{target}: {text}") from None
    return Link(target, generation, connection, factory, not options.byte_path)
