"""AMQP frames of the hot paths, read and written without a protocol library in between. Pure: no I/O.

A publish is put together from bytes that are known before. What the broker sends is divided as it comes in:
deliveries, confirms and returns of tapped channels go to their taps at once; all else is left for aiormq.
"""

import logging
import struct
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any, cast

from pamqp import commands, encode
from pamqp import frame as frames
from pamqp.header import ContentHeader

log = logging.getLogger("asgi_amqp")

METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
END = b"\xce"
BEAT = b"\x08\0\0\0\0\0\0" + END
_FRAME = struct.Struct(">BHI")  # type, channel, size of the payload
_CONTENT = struct.Struct(">HHQH")  # class, weight, size of the body, flags of the properties that follow
_ANSWER = struct.Struct(">QB")  # delivery tag, bits
_METHOD = struct.Struct(">I")  # class and method
DELIVER, RETURN, ACK, NACK, QOS_OK = (60 << 16 | method for method in (60, 50, 80, 120, 11))
HEADERS_SET, MODE_SET, ID_SET = 1 << 13, 1 << 12, 1 << 7


class Delivery:
    """One AMQP message as it came. `tag` acknowledges it on the wire that brought it."""

    def __init__(self, body: bytes, tag: int, redelivered: bool, header: bytes) -> None:
        self.body = body
        self.tag = tag
        self.redelivered = redelivered
        self._header = header

    @cached_property
    def properties(self) -> commands.Basic.Properties:
        frame = _FRAME.pack(HEADER, 1, len(self._header)) + self._header + END
        return cast("ContentHeader", frames.unmarshal(frame)[2]).properties

    @property
    def headers(self) -> dict[str, Any]:
        return cast("dict[str, Any]", self.properties.headers or {})


class Tap:
    """What becomes of the hot frames of one channel. A `polite` one lets the event loop turn after every
    delivery, so that whoever it woke runs before the next: a reader that keeps up never overflows.
    """

    def __init__(
        self,
        on_delivery: Callable[[Delivery], None] | None = None,
        on_confirm: Callable[[int, bool, bool], None] | None = None,
        on_return: Callable[[str], None] | None = None,
        on_answer: Callable[[], None] | None = None,
        polite: bool = False,
    ) -> None:
        self.polite = polite
        self._on_delivery = on_delivery
        self._on_confirm = on_confirm
        self._on_return = on_return
        self._on_answer = on_answer
        self._open = 0  # DELIVER or RETURN, while its content is awaited
        self._tag = self._flags = self._left = 0
        self._header = b""
        self._pieces: list[bytes] = []

    def take(self, kind: int, data: bytes, start: int, end: int) -> int:
        """Handle the frame whose payload is data[start:end]: 0 if it is none of ours, 2 if it completed a
        delivery.
        """
        if kind == METHOD:
            (method,) = _METHOD.unpack_from(data, start)
            if method == DELIVER:
                self._tag, self._flags = _ANSWER.unpack_from(data, start + 5 + data[start + 4])
            elif method in (ACK, NACK) and self._on_confirm is not None:
                tag, flags = _ANSWER.unpack_from(data, start + 4)
                self._on_confirm(tag, bool(flags & 1), method == ACK)
                return 1
            elif method == QOS_OK and self._on_answer is not None:
                self._on_answer()
                return 1
            elif method != RETURN:
                return 0
            self._open = method
            return 1
        if not self._open:
            return 0
        if kind == HEADER:
            self._header = data[start:end]
            self._left = _CONTENT.unpack_from(data, start)[2]
            self._pieces = []
        else:
            self._pieces.append(data[start:end])
            self._left -= end - start
        if self._left > 0:
            return 1
        body = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        delivery = Delivery(body, self._tag, bool(self._flags & 1), self._header)
        what, self._open, self._pieces = self._open, 0, []
        try:
            if what == RETURN:
                if self._on_return is not None:
                    self._on_return(delivery.properties.message_id or "")
            elif self._on_delivery is not None:
                self._on_delivery(delivery)
        except Exception:  # one poisonous message must not end the connection of everyone
            log.exception("a message could not be taken in and was dropped")
        return 2


class Splitter:
    """Divides a connection's bytes between `taps`, by the number of their channel, and aiormq."""

    def __init__(self) -> None:
        self.taps: dict[int, Tap] = {}
        self.hot = False  # whether taps took something since this was last reset
        self._data = b""

    def feed(self, data: bytes) -> None:
        self._data = self._data + data if self._data else data

    @property
    def waiting(self) -> int:
        """Bytes that have not been divided yet."""
        return len(self._data)

    def read(self) -> tuple[bytes, bool]:
        """What is for aiormq, up to the first delivery of a polite tap or the last whole frame; whether
        there is more.
        """
        data, taps = self._data, self.taps
        size = len(data)
        at = 0
        rest: list[bytes] = []
        more = False
        while size - at >= 8:
            kind, number, length = _FRAME.unpack_from(data, at)
            if kind not in (METHOD, HEADER, BODY, HEARTBEAT):  # a broker of another protocol: aiormq's matter
                rest.append(data[at:])
                at = size
                break
            after = at + 8 + length
            if after > size:
                break
            tap = taps.get(number)
            took = tap.take(kind, data, at + 7, after - 1) if tap is not None else 0
            if tap is None or not took:
                rest.append(data[at:after])
            else:
                self.hot = True
                more = took == 2 and tap.polite
            at = after
            if more:  # even with nothing left: what the socket gives within this turn waits for the next, too
                break
        self._data = data[at:]
        return b"".join(rest), more


class Publisher:
    """Builds the frames of publishes on one channel."""

    def __init__(self, number: int, exchange: str, frame_max: int) -> None:
        self.number = number
        self._exchange = exchange
        self._room = frame_max - 8  # of a body frame: 7 bytes of header, 1 of end
        self._heads: dict[tuple[str, bool], bytes] = {}
        self.tag = 0

    def frames(self, body: bytes, keys: Iterable[str], *, persistent: bool, mandatory: bool) -> bytes:
        """One publish to the queues bound to any of `keys`; `tag` is then its number for the confirm.

        A mandatory one carries its tag as message id, so that a return can be told from others.
        """
        self.tag += 1
        number = self.number
        first, *others = keys
        head = self._heads.get((first, mandatory))
        if head is None:
            if len(self._heads) > 10_000:
                self._heads.clear()
            method = commands.Basic.Publish(exchange=self._exchange, routing_key=first, mandatory=mandatory)
            head = self._heads[first, mandatory] = frames.marshal(method, number)
        flags, values = MODE_SET, b"\x02" if persistent else b"\x01"
        if others:
            flags |= HEADERS_SET
            values = encode.field_table({"CC": cast("Any", others)}) + values
        if mandatory:
            flags |= ID_SET
            identity = b"%d" % self.tag
            values += bytes((len(identity),)) + identity
        pieces = [
            head, _FRAME.pack(HEADER, number, 14 + len(values)), _CONTENT.pack(60, 0, len(body), flags),
            values, END,
        ]  # fmt: skip
        for start in range(0, len(body), self._room):
            piece = body if len(body) <= self._room else body[start : start + self._room]
            pieces += (_FRAME.pack(BODY, number, len(piece)), piece, END)
        return b"".join(pieces)


def question(number: int) -> bytes:
    """A method that changes nothing on a channel that consumes nothing: the broker answers it (`on_answer`)
    once it has dealt with all that was published on the channel before.
    """
    return frames.marshal(commands.Basic.Qos(prefetch_count=0), number)


def answer(number: int, method: int, tag: int, bits: int = 0) -> bytes:
    """An ACK or NACK of a delivery; of an ACK bit 0 means all up to it, of a NACK bit 1 means back to the
    queue.
    """
    return b"".join((_FRAME.pack(METHOD, number, 13), _METHOD.pack(method), _ANSWER.pack(tag, bits), END))
