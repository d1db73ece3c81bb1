"""One generation of a broker connection: a link, and the calls on it.

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
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

import aiormq
from yarl import URL

from .exceptions import GONE, BrokerUnavailable, ConfigurationError, describe
from .options import Options, Target
from .transport import Factory, Tap
from .wire import Wire

T = TypeVar("T")

ATTEMPTS = 8  # passing channels at once
UNKNOWN_SIGNER = (18, 19, 20, 21)  # of OpenSSL
ANSWER = 30.0  # seconds for an answer of the broker to one call


@contextlib.contextmanager
def unasked() -> Iterator[None]:
    """Around aiormq's own calls: as its connection goes it throws CancelledError into them. A task would end
    by that, and nobody would hear of it: unless somebody has cancelled the task, it is BrokerUnavailable.
    """
    try:
        yield
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise BrokerUnavailable("the connection is going") from None


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
        self._most = tune.channel_max or 65535
        self._taps: dict[int, Tap] = {}  # of the channels, by their numbers
        self._attempts = asyncio.Semaphore(max(1, min(ATTEMPTS, self._most - 4)))
        self._connection = connection
        self._transport = factory.transport
        if self._transport is not None and not self.plain:
            self._transport.taps = self._taps
        self.steps = 0  # of its set-up, as far as they are counted
        self._telling: list[Wire] = []  # with acknowledgements that the broker has not been told
        self._tasks: set[asyncio.Task[Any]] = set()
        connection.closing.add_done_callback(
            lambda future: self.give_up((factory.transport and factory.transport.closed) or _reason(future))
        )

    async def wire(self, *, passing: bool = False, **callbacks: Any) -> Wire:
        """A new AMQP channel; `callbacks` are those of a Tap. When the broker closes it or ends its consumer,
        the whole link is given up and built anew, unless it is a `passing` one.
        """
        wanted = True
        made: Wire | None = None

        async def open_wire() -> Wire:
            nonlocal made
            made = await self._open(Tap(**callbacks))
            if not wanted:
                await made.close()
            return made

        try:
            wire = await self.own(open_wire())
        except asyncio.CancelledError:
            wanted = False
            if made is not None:  # it came in the same turn
                self.spawn(made.close())
            raise
        if not passing:
            self.keep(wire)
        return wire

    def keep(self, wire: Wire) -> None:
        """The end of this wire, or of its consumer, is from now on the end of the link."""
        wire.passing = False
        if wire.ended:
            self.give_up(wire.ended)

    async def _open(self, tap: Tap) -> Wire:
        number = next((each for each in range(1, self._most + 1) if each not in self._taps), None)
        if number is None:
            raise BrokerUnavailable(
                f"{self.target}: all of its {self._most} channels are in use: raise RabbitMQ's channel_max"
            )
        self._taps[number] = tap  # where opening fails, nobody knows whether the broker has it
        channel = await self._connection.channel(number, publisher_confirms=tap.on_confirm is not None)
        wire = Wire(self, channel, tap)

        def closed(future: "asyncio.Future[Any]") -> None:
            self._taps.pop(number, None)
            self._ended(wire, _reason(future))

        channel.closing.add_done_callback(closed)
        channel.on_consumer_cancel_callbacks.add(
            lambda frame: self._ended(wire, f"the broker ended a consumer ({frame.consumer_tag})")
        )
        return wire

    def _ended(self, wire: Wire, reason: str) -> None:
        wire.ended = reason
        if not wire.passing:
            self.give_up(reason)

    async def attempt(self, call: Callable[[aiormq.abc.AbstractChannel], Coroutine[Any, Any, T]]) -> T:
        """Calls that may fail without taking the link with them, on a channel of their own. Those of more
        than a few tasks wait for each other.
        """

        async def run() -> T:
            wire = await self._open(Tap())
            try:
                return await call(wire.channel)
            finally:
                await wire.close()

        await self._attempts.acquire()
        task = self.spawn(run())
        task.add_done_callback(lambda _: self._attempts.release())  # one that never began has its end, too
        return await self._outcome(task)

    async def own(self, call: Coroutine[Any, Any, T]) -> T:
        """Run a call to its end, whoever waits for it and is cancelled: cut off, it would cost its channel,
        whose number would be used again while the broker still has it. BrokerUnavailable when the link ends
        it: who waits has not been cancelled, and must not hear that it was.
        """
        return await self._outcome(self.spawn(call))

    async def _outcome(self, task: "asyncio.Task[T]") -> T:
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

    def tell_soon(self, wire: Wire) -> None:
        """Tell the broker at the end of this turn what was acknowledged in it."""
        if not self._telling:
            asyncio.get_running_loop().call_soon(self._tell)
        self._telling.append(wire)

    def _tell(self) -> None:
        telling, self._telling = self._telling, []
        for wire in telling:
            wire.tell()

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
                self.spawn(self.attempt(lambda _: asyncio.sleep(0)))  # a channel opens and closes
        return self.lost.result()

    async def close(self, deadline: float = 2.0) -> None:
        """Say goodbye if the broker listens, then cut. Takes at most `deadline` seconds."""
        self._tell()
        self.give_up("closed")
        for task in list(self._tasks):
            task.cancel()
        try:
            with contextlib.suppress(*GONE), unasked():
                async with asyncio.timeout(deadline):
                    await self._connection.close()
        finally:
            self.abort()

    def abort(self) -> None:
        """Cut it, from any thread: also when its event loop has ended."""
        if self._transport is not None:
            with contextlib.suppress(OSError, RuntimeError):
                self._transport.socket.get_extra_info("socket").shutdown(socket.SHUT_RDWR)
            with contextlib.suppress(RuntimeError):
                self._transport.socket.abort()


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
        path="/" if target.vhost == "/" else f"/{target.vhost}",
        query={"heartbeat": str(options.heartbeat), "name": options.name, "auth": options.auth},
    )
    connection = aiormq.Connection(url, transport_factory=factory, client_properties={"product": "asgi_amqp"})
    try:
        with unasked():
            async with asyncio.timeout(options.connect_timeout * patience):
                await connection.connect()
    except (aiormq.ProbableAuthenticationError, aiormq.AuthenticationError) as error:
        raise ConfigurationError(
            f"{target}: the broker refuses user {target.user!r}: {describe(error)}"
        ) from None
    except GONE as error:
        cause: BaseException = error.__cause__ or error
        if isinstance(cause, ssl.SSLCertVerificationError):
            hint = ". Is ssl_ca the authority that signed it?" if cause.verify_code in UNKNOWN_SIGNER else ""
            raise ConfigurationError(
                f"{target}: its certificate is not to be trusted: {cause.verify_message}{hint}"
            ) from None
        text = (factory.transport and factory.transport.closed) or describe(error)
        if ("NOT_ALLOWED" in text and "connection limit" not in text) or "ACCESS_REFUSED" in text:
            raise ConfigurationError(
                f"{target}: user {target.user!r} may not use vhost {target.vhost!r}, or there is none: {text}"
            ) from None
        raise BrokerUnavailable(f"{target}: {text}") from None
    return Link(target, generation, connection, factory, not options.byte_path)
