"""The byte path: the frames of the hot paths, read and written without a protocol library in between.

It hangs on aiormq's public `transport_factory`, which hands over both ends of the socket. A publish is put
together from bytes that are known before and written to the transport. What the broker sends is divided as it
comes in: deliveries, confirms and returns of tapped channels go to their taps at once, all else to aiormq.
Bytes that are not as expected end the dividing: everything then goes to aiormq (`plain`).
"""

import asyncio
import logging
import ssl
import struct
import time
from collections.abc import Callable, Iterable
from typing import Any, cast

import aiormq
from pamqp import commands, encode
from pamqp import frame as frames
from pamqp.header import ContentHeader

log = logging.getLogger("asgi_amqp")

METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
END = b"\xce"
_FRAME = struct.Struct(">BHI")  # type, channel, size of the payload
_CONTENT = struct.Struct(">HHQH")  # class, weight, size of the body, flags of the properties that follow
_ANSWER = struct.Struct(">QB")  # delivery tag, bits
_METHOD = struct.Struct(">I")  # class and method
DELIVER, RETURN, ACK, REJECT, NACK, QOS_OK = (60 << 16 | method for method in (60, 50, 80, 90, 120, 11))
CLOSE, BLOCKED, UNBLOCKED = (10 << 16 | method for method in (50, 60, 61))
HEADERS_SET, MODE_SET, ID_SET, TIME_SET = 1 << 13, 1 << 12, 1 << 7, 1 << 6


class Delivery:
    """One AMQP message as it came. `tag` acknowledges it on the wire that brought it."""

    __slots__ = ("_header", "body", "redelivered", "tag")

    def __init__(
        self, body: bytes, tag: int, redelivered: bool, header: bytes | commands.Basic.Properties
    ) -> None:
        self.body = body
        self.tag = tag
        self.redelivered = redelivered
        self._header = header

    @property
    def properties(self) -> commands.Basic.Properties:
        if isinstance(self._header, bytes):  # few ask
            frame = _FRAME.pack(HEADER, 1, len(self._header)) + self._header + END
            self._header = cast("ContentHeader", frames.unmarshal(frame)[2]).properties
        return self._header

    @property
    def headers(self) -> dict[str, Any]:
        return cast("dict[str, Any]", self.properties.headers or {})


class Tap:
    """What becomes of the hot frames of one channel."""

    def __init__(
        self,
        on_delivery: Callable[[Delivery], None] | None = None,
        on_confirm: Callable[[int, bool, bool], None] | None = None,
        on_return: Callable[[str], None] | None = None,
        on_answer: Callable[[], None] | None = None,
    ) -> None:
        self.on_delivery = on_delivery
        self.on_confirm = on_confirm
        self.on_return = on_return
        self.on_answer = on_answer
        self._open = 0  # DELIVER or RETURN, while its content is awaited
        self._tag = self._flags = self._left = 0
        self._header = b""
        self._pieces: list[bytes] = []

    def mute(self) -> None:
        """Its link is lost: what still comes is for nobody, least of all for those on the next one."""
        for name in ("on_delivery", "on_confirm", "on_return", "on_answer"):
            if getattr(self, name) is not None:
                setattr(self, name, lambda *_: None)

    def take(self, kind: int, data: bytes, start: int, end: int) -> bool:
        """Handle the frame whose payload is data[start:end], if it is one of ours."""
        if kind == METHOD:
            (method,) = _METHOD.unpack_from(data, start)
            if method == DELIVER and self.on_delivery is not None:
                self._tag, self._flags = _ANSWER.unpack_from(data, start + 5 + data[start + 4])
            elif method in (ACK, NACK) and self.on_confirm is not None:
                tag, flags = _ANSWER.unpack_from(data, start + 4)
                self.on_confirm(tag, bool(flags & 1), method == ACK)
                return True
            elif method == QOS_OK and self.on_answer is not None:
                self.on_answer()
                return True
            elif method != RETURN or self.on_return is None:
                return False
            self._open = method
            return True
        if not self._open:
            return False
        if kind == HEADER:
            self._header = data[start:end]
            self._left = _CONTENT.unpack_from(data, start)[2]
            if not self._left:
                self._complete(b"")
        elif self._left == end - start and not self._pieces:  # most are whole
            self._complete(data[start:end])
        else:
            self._pieces.append(data[start:end])
            self._left -= end - start
            if self._left <= 0:
                body, self._pieces = b"".join(self._pieces), []
                self._complete(body)
        return True

    def _complete(self, body: bytes) -> None:
        what, self._open = self._open, 0
        delivery = Delivery(body, self._tag, bool(self._flags & 1), self._header)
        try:
            if what == RETURN and self.on_return is not None:
                self.on_return(delivery.properties.message_id or "")
            elif self.on_delivery is not None:
                self.on_delivery(delivery)
        except Exception:  # one poisonous message must not end the connection of everyone
            log.exception("A message could not be taken in and was dropped")


class Transport(asyncio.StreamReaderProtocol):
    """The socket's protocol: gives taps their frames and aiormq the rest."""

    def __init__(self, reader: asyncio.StreamReader, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(reader, loop=loop)
        self.taps: dict[int, Tap] = {}
        self.heard = time.monotonic()
        self.tapped = False  # whether taps took something since this was last reset
        self.plain = False
        self.blocked = False  # the broker has stopped reading from its publishers (memory or disk alarm)
        self.closed = ""  # why the broker has closed the connection
        self.socket: asyncio.Transport
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.socket = cast("asyncio.Transport", transport)
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        self.heard = time.monotonic()
        rest = data if self.plain else self._divide(self._data + data if self._data else data)
        if rest:
            super().data_received(rest)

    def _divide(self, data: bytes) -> bytes:
        """What is for aiormq of the whole frames in `data`; what is left of it is kept."""
        taps, size, at, head = self.taps, len(data), 0, _FRAME.unpack_from
        rest: list[bytes] = []
        while size - at >= 8:
            kind, number, length = head(data, at)
            if kind not in (METHOD, HEADER, BODY, HEARTBEAT):  # a broker of another protocol
                self.plain = True
                rest.append(data[at:])
                at = size
                break
            after = at + 8 + length
            if after > size:
                break
            tap = taps.get(number)
            if tap is not None and tap.take(kind, data, at + 7, after - 1):
                self.tapped = True
            else:
                if number == 0 and kind == METHOD:
                    self._note(data[at:after])
                rest.append(data[at:after])
            at = after
        self._data = data[at:]
        return b"".join(rest)

    def _note(self, frame: bytes) -> None:
        """What the broker says of the connection, which is aiormq's to answer."""
        (method,) = _METHOD.unpack_from(frame, 7)
        if method in (BLOCKED, UNBLOCKED):
            self.blocked = method == BLOCKED
        elif method == CLOSE:
            close = cast("commands.Connection.Close", frames.unmarshal(frame)[2])
            self.closed = f"{close.reply_code} {close.reply_text}"


class Factory(aiormq.TransportFactory):
    """Opens the socket for aiormq and keeps hold of it."""

    transport: Transport | None = None

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None) -> None:
        self._host, self._port, self._tls = host, port, tls

    async def create(self, url: object, **_: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=1 << 20, loop=loop)
        protocol = Transport(reader, loop)
        try:
            socket, _protocol = await loop.create_connection(
                lambda: protocol, self._host, self._port, ssl=self._tls
            )
        except OSError as error:
            raise aiormq.AMQPConnectionError(*error.args) from error
        self.transport = protocol
        return reader, asyncio.StreamWriter(socket, protocol, reader, loop)


_heads: dict[tuple[int, str, str, bool], bytes] = {}


def publish(
    number: int,
    exchange: str,
    keys: Iterable[str],
    body: bytes,
    *,
    persistent: bool,
    mandatory: bool,
    message_id: str,
    frame_max: int,
    timestamp: int = 0,
) -> bytes:
    """The frames of a publish on channel `number` to the queues bound to any of `keys`. The message id of a
    mandatory one tells it from others when it is given back. `timestamp`: seconds since 1970; 0: none.
    """
    first, *others = keys
    head = _heads.get((number, exchange, first, mandatory))
    if head is None:
        if len(_heads) > 10_000:
            _heads.clear()
        method = commands.Basic.Publish(exchange=exchange, routing_key=first, mandatory=mandatory)
        head = _heads[number, exchange, first, mandatory] = frames.marshal(method, number)
    flags, values = MODE_SET, b"\x02" if persistent else b"\x01"
    if others:
        flags |= HEADERS_SET
        values = encode.field_table({"CC": cast("Any", others)}) + values
    if mandatory:
        flags |= ID_SET
        values += bytes((len(message_id),)) + message_id.encode()
    if timestamp:
        flags |= TIME_SET
        values += timestamp.to_bytes(8)
    pieces = [
        head, _FRAME.pack(HEADER, number, 14 + len(values)), _CONTENT.pack(60, 0, len(body), flags),
        values, END,
    ]  # fmt: skip
    room = frame_max - 8 if frame_max else len(body) + 1  # 7 bytes of header, 1 of end; 0: no limit
    for start in range(0, len(body), room):
        piece = body if len(body) <= room else body[start : start + room]
        pieces += (_FRAME.pack(BODY, number, len(piece)), piece, END)
    return b"".join(pieces)


def question(number: int) -> bytes:
    """A method that changes nothing on a channel that consumes nothing: the broker answers it (`on_answer`)
    once it has dealt with all that was published on the channel before.
    """
    return frames.marshal(commands.Basic.Qos(prefetch_count=0), number)


def answer(number: int, method: int, tag: int, bits: int = 0) -> bytes:
    """ACK, NACK or REJECT of a delivery. Bits of ACK: 1, all up to it; of REJECT: 1, back to the queue; of
    NACK: 2, back to the queue.
    """
    return b"".join((_FRAME.pack(METHOD, number, 13), _METHOD.pack(method), _ANSWER.pack(tag, bits), END))
