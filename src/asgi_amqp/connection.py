"""One broker connection kept alive: a supervisor, and a link for every generation of the connection.

aio-pika opens and closes the connection and aiormq, the protocol library beneath it, does the calls that
wait for an answer (declare, bind, consume). The two hot paths pass them by: a link writes publishes straight
to the transport, and deliveries and confirms reach their taps in the very callback that read them.

Never `connect_robust`: what must exist on the broker is rebuilt from our own state, by `setup`, on every new
link.
"""

import asyncio
import contextlib
import functools
import logging
import random
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import aio_pika
import aiormq
import aiormq.abc
import aiormq.channel
import aiormq.connection
from aiormq.exceptions import AMQPError, AuthenticationError, ProbableAuthenticationError
from pamqp import commands
from pamqp import frame as frames
from yarl import URL

from .exceptions import BrokerUnavailable, ConfigurationError, LayerError
from .frames import BEAT, Splitter, Tap

log = logging.getLogger("asgi_amqp")

RETRY_FIRST, RETRY_MOST = 0.1, 3.0  # seconds between rounds over all hosts, doubling, with jitter
SULK = 5.0  # seconds for which a configuration error is repeated without asking the broker again


@dataclass(frozen=True)
class Target:
    """One broker. Neither repr nor str shows the password."""

    host: str
    port: int
    user: str
    password: str = field(repr=False)
    vhost: str
    tls: bool

    @classmethod
    def parse(cls, url: str) -> "Target":
        """From `amqp[s]://user:password@host:port/vhost`, each part percent-encoded; no vhost means "/"."""
        scheme, separator, rest = url.partition("://")
        if not separator or scheme not in ("amqp", "amqps"):
            raise ConfigurationError("a broker URL starts with amqp:// or amqps://")
        if "?" in rest or "#" in rest:
            raise ConfigurationError(
                "a broker URL has no query and no fragment: percent-encode ? as %3F and # as %23 "
                "in the password, and give TLS and heartbeat as options of the layer"
            )
        authority, slash, vhost = rest.partition("/")
        userinfo, _, address = authority.rpartition("@")
        user, _, password = userinfo.partition(":")
        host, colon, port = address.rpartition(":")
        if address.endswith("]") or not colon:
            host, port = address, ""
        if not host or "@" in userinfo or "/" in vhost or (port and not port.isdigit()):
            raise ConfigurationError(
                "a broker URL reads amqp://user:password@host:port/vhost; percent-encode @ : / # "
                "and % inside user, password and vhost"
            )
        return cls(
            host.strip("[]"),
            int(port or (5671 if scheme == "amqps" else 5672)),
            unquote(user) or "guest",
            unquote(password) or "guest",
            unquote(vhost) if slash and vhost else "/",
            scheme == "amqps",
        )

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Options:
    """How to connect. `heartbeat` in seconds: a broker that is silent for that long is given up."""

    targets: tuple[Target, ...]
    name: str
    heartbeat: int = 10
    connect_timeout: float = 5.0
    ssl_ca: str | None = None

    @functools.cached_property
    def tls(self) -> ssl.SSLContext | None:
        """Verification is always on; `ssl_ca` replaces the machine's own authorities."""
        if not any(target.tls for target in self.targets):
            return None
        try:
            return ssl.create_default_context(cafile=self.ssl_ca)
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(
                f"ssl_ca {self.ssl_ca}: cannot read authorities from it ({error})"
            ) from None


class Wire(aiormq.channel.Channel):
    """An AMQP channel."""

    retired = False  # closed by us: no reason to give up the link

    async def consume(self, queue: str, *, prefetch: int = 0, **options: Any) -> str:
        """Have the wire's tap fed from a queue; the tag that cancels it. `prefetch` 0 is without bound."""

        async def nothing(message: object) -> None:
            """aiormq wants a callback; the tap has taken the message before."""

        if prefetch:
            await self.basic_qos(prefetch_count=prefetch)
        return (await self.basic_consume(queue, nothing, **options)).consumer_tag or ""


class _Reader(asyncio.StreamReader):
    """Gives taps their frames and aiormq the rest. Knows when the broker was last heard of."""

    MOST = 1 << 20  # bytes that wait for polite taps before the socket is no longer read

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(limit=1 << 20, loop=loop)
        self.splitter = Splitter()
        self.heard = self._told = time.monotonic()
        self.last = b""
        self.transport: asyncio.Transport
        self._more = self._held = False
        self._turn = loop.call_soon

    def feed_data(self, data: Any) -> None:
        self.heard = time.monotonic()
        self.last = data
        self.splitter.feed(data)
        if not self._more:
            self._divide()
        elif self.splitter.waiting > self.MOST and not self._held:
            self._held = True
            self.transport.pause_reading()

    def _divide(self) -> None:
        rest, self._more = self.splitter.read()
        if self.splitter.hot and self.heard - self._told > 1:
            rest += BEAT  # aiormq must not take a broker for dead whose every word went to taps
            self.splitter.hot = False
            self._told = self.heard
        if rest:
            super().feed_data(rest)
        if self._more:
            self._turn(self._divide)
        elif self._held:
            self._held = False
            with contextlib.suppress(RuntimeError):
                self.transport.resume_reading()

    def feed_eof(self) -> None:
        while self._more:
            rest, self._more = self.splitter.read()
            super().feed_data(rest) if rest else None
        super().feed_eof()

    def refusal(self) -> str:
        """What the broker said when it closed the connection at once; aiormq's error does not tell."""
        with contextlib.suppress(Exception):
            frame = frames.unmarshal(bytes(self.last))[2]
            if isinstance(frame, commands.Connection.Close):
                return f"{frame.reply_code} {frame.reply_text}"
        return ""


class _Streams(aiormq.connection.TransportFactory):
    """Opens the socket for aiormq and keeps hold of both its ends."""

    reader: _Reader
    writer: asyncio.StreamWriter

    def __init__(self, target: Target, tls: ssl.SSLContext | None) -> None:
        self.target = target
        self.tls = tls if target.tls else None

    async def create(self, url: URL, **kwargs: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        loop = asyncio.get_running_loop()
        self.reader = _Reader(loop)
        protocol = asyncio.StreamReaderProtocol(self.reader, loop=loop)
        try:
            transport, _ = await loop.create_connection(
                lambda: protocol, self.target.host, self.target.port, ssl=self.tls
            )
        except OSError as error:
            raise aiormq.exceptions.AMQPConnectionError(*error.args) from error
        self.writer = asyncio.StreamWriter(transport, protocol, self.reader, loop)
        self.reader.transport = transport
        return self.reader, self.writer


class Link:
    """One generation of the connection. It ends once and for ever: `lost` is then done."""

    def __init__(
        self, target: Target, generation: int, connection: aio_pika.Connection, streams: _Streams
    ) -> None:
        assert connection.transport is not None
        self.target = target
        self.generation = generation
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._connection = connection
        self._low = connection.transport.connection
        self._streams = streams
        self._number = 0
        self._low.closing.add_done_callback(lambda future: self.give_up(_reason(future)))

    async def wire(self, **callbacks: Any) -> Wire:
        """A new AMQP channel. When the broker closes it, the whole link is given up and built anew."""
        wire = await self.passing(**callbacks)
        wire.closing.add_done_callback(lambda future: None if wire.retired else self.give_up(_reason(future)))
        wire.on_consumer_cancel_callbacks.add(
            lambda frame: self.give_up(f"the broker cancelled a consumer ({frame.consumer_tag})")
        )
        return wire

    @contextlib.asynccontextmanager
    async def attempt(self) -> Any:
        """A passing AMQP channel for a declaration that may fail without taking the link with it."""
        wire = await self.passing()
        try:
            yield wire
        finally:
            if not wire.is_closed:
                await wire.close()

    async def passing(self, **callbacks: Any) -> Wire:
        """A new AMQP channel whose end means nothing for the link. `callbacks` are those of a Tap."""
        channels, most = self._low.channels, self._low.connection_tune.channel_max or 65535
        if len(channels) >= most:
            raise BrokerUnavailable(f"{self.target}: all of its {most} channels are in use")
        self._number = self._number % most + 1
        while self._number in channels:
            self._number = self._number % most + 1
        wire = Wire(self._low, self._number, publisher_confirms="on_confirm" in callbacks)
        channels[wire.number] = wire
        taps = self._streams.reader.splitter.taps
        tap = taps[wire.number] = Tap(**callbacks)
        wire.closing.add_done_callback(
            lambda _: taps.pop(wire.number) if taps.get(wire.number) is tap else None
        )
        await wire.open()
        return wire

    def give_up(self, reason: str) -> None:
        """Done with this link; its supervisor closes it and makes the next."""
        if not self.lost.done():
            self.lost.set_result(reason)

    def write(self, data: bytes) -> None:
        """Frames of a wire that nothing else writes to, straight to the transport. Never raises: what a link
        that is going did not take is what was in flight when it was lost.
        """
        try:
            self._streams.reader.transport.write(data)
        except RuntimeError:  # aiormq has answered the broker's goodbye, and closed its half
            self.give_up("the connection is being closed")

    @property
    def unwritten(self) -> int:
        """Bytes that the transport still holds."""
        return self._streams.writer.transport.get_write_buffer_size()

    async def drain(self) -> None:
        await self._streams.writer.drain()

    @property
    def silence(self) -> float:
        """Seconds since the broker was last heard of."""
        return time.monotonic() - self._streams.reader.heard

    async def blocked(self) -> bool:
        """Whether the broker has stopped reading from its publishers (memory or disk alarm)."""
        try:
            async with asyncio.timeout(0.001):
                await self._low.ready()
        except TimeoutError:
            return True
        return False

    @property
    def frame_max(self) -> int:
        return self._low.connection_tune.frame_max

    async def close(self, deadline: float = 2.0) -> None:
        """Say goodbye if the broker listens, then cut. Takes at most `deadline` seconds."""
        self.give_up("closed")
        try:
            async with asyncio.timeout(deadline):
                await self._connection.close()
        except (Exception, asyncio.CancelledError) as error:
            self._streams.writer.transport.abort()
            if isinstance(error, asyncio.CancelledError):
                raise

    def abort(self) -> None:
        self._streams.writer.transport.abort()


def _reason(future: "asyncio.Future[Any]") -> str:
    if future.cancelled():
        return "closed"
    error = future.exception()
    return "closed" if error is None or isinstance(error, asyncio.CancelledError) else describe(error)


def describe(error: BaseException) -> str:
    """An error in words that hold no secret. aiormq's own texts name hosts and reasons, never passwords."""
    text = ", ".join(str(part) for part in error.args if part not in (None, "")) or type(error).__name__
    return "no answer in time" if isinstance(error, TimeoutError) else text


async def connect(target: Target, options: Options, generation: int, patience: float = 1.0) -> Link:
    """Open one link, or raise BrokerUnavailable or ConfigurationError, naming host, port and cause.

    `patience` stretches the deadline: a broker that is slow because everyone reconnects must get there in
    the end.
    """
    streams = _Streams(target, options.tls)
    url = URL.build(
        scheme="amqp",
        host=target.host,
        port=target.port,
        user=target.user,
        password=target.password,
        path="/" + target.vhost.removeprefix("/"),
        query={"heartbeat": str(options.heartbeat), "name": options.name},
    )
    connection = aio_pika.Connection(url, client_properties={"product": "asgi_amqp"})
    connection.kwargs["transport_factory"] = streams
    try:
        async with asyncio.timeout(options.connect_timeout * patience):
            await connection.connect()
    except (ProbableAuthenticationError, AuthenticationError) as error:
        raise ConfigurationError(
            f"{target}: the broker refuses user {target.user!r}: {describe(error)}"
        ) from None
    except (AMQPError, OSError, TimeoutError) as error:
        cause: BaseException | None = error.__cause__ or error
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise ConfigurationError(
                f"{target}: its certificate is not to be trusted: {cause.verify_message}. "
                "Is ssl_ca the authority that signed it?"
            ) from None
        text = (getattr(streams, "reader", None) and streams.reader.refusal()) or describe(error)
        if "NOT_ALLOWED" in text or "ACCESS_REFUSED" in text:
            raise ConfigurationError(
                f"{target}: user {target.user!r} may not use vhost {target.vhost!r}, or there is none: {text}"
            ) from None
        raise BrokerUnavailable(f"{target}: {text}") from None
    return Link(target, generation, connection, streams)


class Supervisor:
    """Keeps one link open in the running loop.

    `setup(link)` rebuilds what must be there, `lost(link, reason)` hears of a link's end, `failed(error)` of
    the end of all attempts; `link(timeout)` waits for one.
    """

    def __init__(
        self,
        options: Options,
        setup: Callable[[Link], Awaitable[None]],
        lost: Callable[[Link, str], None],
        failed: Callable[[LayerError], None] = lambda error: None,
    ) -> None:
        self.options = options
        self.current: Link | None = None
        self.reconnects = 0
        self.problem: LayerError | None = None
        self._setup = setup
        self._lost = lost
        self._failed = failed
        self._task: asyncio.Task[None] | None = None
        self._waiters: dict[asyncio.Future[Link], None] = {}  # in the order in which they came
        self._failed_at = 0.0
        self._generation = 0
        self._first = random.randrange(len(options.targets))  # noqa: S311 - spreads clients over a cluster

    def start(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run(), name="asgi_amqp supervisor")

    async def link(self, timeout: float) -> Link:
        """The open link, or the one that opens within `timeout` seconds; BrokerUnavailable,
        ConfigurationError.
        """
        if self.current is not None:
            return self.current
        if isinstance(self.problem, ConfigurationError) and time.monotonic() - self._failed_at < SULK:
            raise self.problem
        self.start()
        waiter: asyncio.Future[Link] = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = None
        try:
            async with asyncio.timeout(timeout):
                return await waiter
        except TimeoutError:
            raise BrokerUnavailable(
                f"no connection to the broker within {timeout:g} s: {self.problem or 'it does not answer'}"
            ) from None
        finally:
            del self._waiters[waiter]

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _run(self) -> None:
        attempt = 0
        link: Link | None = None
        try:
            while True:
                try:
                    patience = min(4.0, 1 + attempt / 2)
                    link = await self._next(patience)
                    async with asyncio.timeout(self.options.connect_timeout * 2 * patience):
                        await self._setup(link)
                    if link.lost.done():
                        raise BrokerUnavailable(f"{link.target}: {link.lost.result()}")
                except ConfigurationError as error:
                    log.error("giving up: %s", error)
                    self._fail(error)
                    return
                except Exception as error:  # whatever `setup` met: to end unseen helps nobody
                    if link is not None:
                        self._lost(link, describe(error))
                        await link.close()
                        link = None
                        # It answers and is of no use, as a broker without a copy of the stream: to the next.
                        self._first += 1
                    self.problem = (
                        error if isinstance(error, LayerError) else BrokerUnavailable(describe(error))
                    )
                    pause = min(RETRY_MOST, RETRY_FIRST * 2**attempt) * random.uniform(0.5, 1)  # noqa: S311
                    log.warning("no broker: %s; next attempt in %.1f s", self.problem, pause)
                    attempt += 1
                    await asyncio.sleep(pause)
                    continue
                attempt = 0
                self._ready(link)
                reason = await self._watch(link)
                self.current = None
                self.reconnects += 1
                self.problem = BrokerUnavailable(f"{link.target}: {reason}")
                log.warning("lost the connection to %s: %s", link.target, reason)
                self._lost(link, reason)
                await link.close(0.5)
                link = None
        except asyncio.CancelledError:
            self.current = None
            if link is not None:
                self._lost(link, "closed")
                await link.close()
            raise

    async def _next(self, patience: float) -> Link:
        """A link to the first host that answers, each tried once, beginning after the last that failed us."""
        targets = self.options.targets
        problems = []
        for turn in range(len(targets)):
            target = targets[(self._first + turn) % len(targets)]
            self._generation += 1
            try:
                link = await connect(target, self.options, self._generation, patience)
            except BrokerUnavailable as error:
                problems.append(str(error))
            else:
                self._first = (self._first + turn) % len(targets)
                return link
        raise BrokerUnavailable("; ".join(problems))

    async def _watch(self, link: Link) -> str:
        """Until the link is lost; a broker that is silent for longer than the heartbeat counts as lost."""
        while not link.lost.done():
            await asyncio.wait([link.lost], timeout=1)
            if link.silence > self.options.heartbeat and not link.lost.done():
                link.abort()
                link.give_up(f"silent for {link.silence:.0f} s")
        return link.lost.result()

    def _ready(self, link: Link) -> None:
        log.info("connected to %s", link.target)
        self.current = link
        self.problem = None
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(link)

    def _fail(self, error: LayerError) -> None:
        self.problem = error
        self._failed_at = time.monotonic()
        self._failed(error)
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(error)
