"""One broker connection kept alive: a supervisor, and a link for every generation of the connection.

aio-pika opens and closes the connection and aiormq, the protocol library beneath it, does the calls that
wait for an answer (declare, bind, consume). The two hot paths bypass their queues: a link writes publishes
straight to the transport, and a wire (an AMQP channel) sees deliveries and confirms as soon as their frames
are read.

Never `connect_robust`: what must exist on the broker is rebuilt from our own state, by `setup`, on every new
link.
"""

import asyncio
import contextlib
import functools
import logging
import random
import ssl
import struct
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, NamedTuple, cast
from urllib.parse import unquote

import aio_pika
import aiormq
import aiormq.abc
import aiormq.channel
import aiormq.connection
from aiormq.exceptions import AMQPError, AuthenticationError, ProbableAuthenticationError
from pamqp import commands
from pamqp import frame as frames
from pamqp.body import ContentBody
from pamqp.header import ContentHeader
from yarl import URL

from .exceptions import BrokerUnavailable, ConfigurationError, LayerError

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


class Delivery(NamedTuple):
    """One AMQP message as it came. `tag` acknowledges it on the wire that brought it."""

    body: bytes
    tag: int
    redelivered: bool
    headers: dict[str, Any]
    message_id: str


class Wire(aiormq.channel.Channel):
    """An AMQP channel whose deliveries, confirms and returns go straight to callbacks, in the order of
    arrival.
    """

    def __init__(
        self,
        connection: aiormq.abc.AbstractConnection,
        number: int,
        *,
        confirms: bool = False,
        on_delivery: Callable[[Delivery], None] | None = None,
        on_confirm: Callable[[int, bool, bool], None] | None = None,
        on_return: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__(connection, number, publisher_confirms=confirms)
        self.retired = False  # closed by us: no reason to give up the link
        self.frames = _Tap(self.frames, on_delivery, on_confirm, on_return)


class _Tap(asyncio.Queue[Any]):
    """Stands where aiormq's reader puts the frames of a channel: takes out the hot ones, passes on the
    rest.
    """

    def __init__(
        self,
        rest: "asyncio.Queue[Any]",
        on_delivery: Callable[[Delivery], None] | None,
        on_confirm: Callable[[int, bool, bool], None] | None,
        on_return: Callable[[str], None] | None,
    ) -> None:
        super().__init__(rest.maxsize)
        self._on_delivery = on_delivery
        self._on_confirm = on_confirm
        self._on_return = on_return
        self._method: commands.Basic.Deliver | commands.Basic.Return | None = None
        self._header: ContentHeader | None = None
        self._body = BytesIO()

    async def put(self, item: tuple[int, Any]) -> None:
        frame = item[1]
        kind = type(frame)
        if kind is commands.Basic.Deliver or kind is commands.Basic.Return:
            self._method = frame
        elif kind is ContentHeader and self._method is not None:
            self._header, self._body = frame, BytesIO()
            if not frame.body_size:
                self._complete(frame, b"")
        elif kind is ContentBody and self._header is not None:
            header = self._header
            if len(frame.value) == header.body_size:
                self._complete(header, frame.value)
            else:
                self._body.write(frame.value)
                if self._body.tell() >= header.body_size:
                    self._complete(header, self._body.getvalue())
            # Whoever this woke runs before the next batch is read: a reader that keeps up never overflows.
            if self._method is None:
                await asyncio.sleep(0)
        elif kind is commands.Basic.Ack or kind is commands.Basic.Nack:
            if self._on_confirm is not None:
                self._on_confirm(frame.delivery_tag, frame.multiple, kind is commands.Basic.Ack)
        else:
            await super().put(item)

    def _complete(self, header: ContentHeader, body: bytes) -> None:
        method, self._method, self._header = self._method, None, None
        properties = header.properties
        if isinstance(method, commands.Basic.Return):
            if self._on_return is not None:
                self._on_return(properties.message_id or "")
        elif method is not None and self._on_delivery is not None:
            try:
                self._on_delivery(
                    Delivery(
                        body,
                        method.delivery_tag or 0,
                        bool(method.redelivered),
                        cast("dict[str, Any]", properties.headers or {}),
                        properties.message_id or "",
                    )
                )
            except Exception:  # one poisonous message must not end the connection of everyone
                log.exception("a message could not be taken in and was dropped")


class _Reader(asyncio.StreamReader):
    """Knows when the broker was last heard of."""

    heard = 0.0
    last = b""

    def feed_data(self, data: Any) -> None:
        self.heard = time.monotonic()
        self.last = data
        super().feed_data(data)

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
        self.reader = _Reader(limit=1 << 20, loop=loop)
        protocol = asyncio.StreamReaderProtocol(self.reader, loop=loop)
        try:
            transport, _ = await loop.create_connection(
                lambda: protocol, self.target.host, self.target.port, ssl=self.tls
            )
        except OSError as error:
            raise aiormq.exceptions.AMQPConnectionError(*error.args) from error
        self.writer = asyncio.StreamWriter(transport, protocol, self.reader, loop)
        self.reader.heard = time.monotonic()
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
        self._numbers = 0
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
        """A new AMQP channel whose end means nothing for the link."""
        self._numbers += 1
        wire = Wire(self._low, self._numbers, **callbacks)
        self._low.channels[self._numbers] = wire
        await wire.open()
        return wire

    def give_up(self, reason: str) -> None:
        """Done with this link; its supervisor closes it and makes the next."""
        if not self.lost.done():
            self.lost.set_result(reason)

    def write(self, data: bytes) -> None:
        """Frames of a wire that nothing else writes to, straight to the transport."""
        self._streams.writer.write(data)

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
        self._waiters: set[asyncio.Future[Link]] = set()
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
        self._waiters.add(waiter)
        try:
            async with asyncio.timeout(timeout):
                return await waiter
        except TimeoutError:
            raise BrokerUnavailable(
                f"no connection to the broker within {timeout:g} s: {self.problem or 'it does not answer'}"
            ) from None
        finally:
            self._waiters.discard(waiter)

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
                except (LayerError, AMQPError, OSError, TimeoutError, RuntimeError) as error:
                    if link is not None:
                        self._lost(link, describe(error))
                        await link.close()
                        link = None
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


class Publisher:
    """Builds the frames of publishes on one wire; what repeats is packed once."""

    def __init__(self, wire: Wire, exchange: str, frame_max: int) -> None:
        self._number = wire.number
        self._exchange = exchange
        self._room = frame_max - 8  # of a body frame: 7 bytes of header, 1 of end
        self._heads: dict[tuple[str, bool], bytes] = {}
        self._headers: dict[bool, tuple[bytes, bytes]] = {}
        self.tag = 0

    def frames(self, body: bytes, keys: Iterable[str], *, persistent: bool, mandatory: bool) -> bytes:
        """One publish to the queues bound to any of `keys`; `tag` is then its number for the confirm.

        A mandatory one carries its tag as message id, so that a return can be told from others.
        """
        self.tag += 1
        first, *others = keys
        head = self._heads.get((first, mandatory))
        if head is None:
            if len(self._heads) > 10_000:
                self._heads.clear()
            head = self._heads[first, mandatory] = frames.marshal(
                commands.Basic.Publish(exchange=self._exchange, routing_key=first, mandatory=mandatory),
                self._number,
            )
        size = struct.pack(">Q", len(body))
        if others or mandatory:
            properties = commands.Basic.Properties(
                delivery_mode=2 if persistent else 1,
                message_id=str(self.tag) if mandatory else None,
                headers={"CC": cast("Any", others)} if others else None,
            )
            before, after = self._split(properties)
        else:
            if persistent not in self._headers:
                self._headers[persistent] = self._split(
                    commands.Basic.Properties(delivery_mode=2 if persistent else 1)
                )
            before, after = self._headers[persistent]
        if 0 < len(body) <= self._room:
            return b"".join(
                (
                    head,
                    before,
                    size,
                    after,
                    b"\x03",
                    struct.pack(">HI", self._number, len(body)),
                    body,
                    b"\xce",
                )
            )
        pieces = [head, before, size, after]
        for start in range(0, len(body), self._room):
            piece = body[start : start + self._room]
            pieces += (b"\x03", struct.pack(">HI", self._number, len(piece)), piece, b"\xce")
        return b"".join(pieces)

    def _split(self, properties: commands.Basic.Properties) -> tuple[bytes, bytes]:
        """A content header's bytes before and after its body size."""
        frame = frames.marshal(ContentHeader(body_size=0, properties=properties), self._number)
        return frame[:11], frame[19:]
