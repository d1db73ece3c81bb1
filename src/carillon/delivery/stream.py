"""Event streams: a RabbitMQ stream to append to with confirms, to tail, and to read again from any offset.

A stream keeps its messages for a time whoever has read them; reading takes nothing away and costs the broker
no binding. Each message has an offset. Offsets grow, with a hole here and there: RabbitMQ takes one for a
record of its own when a segment begins. An offset outside the log is not an error for the broker, it is
*clamped* to the nearest message. So offsets say where to read, and not whether something is missing: messages
need numbers of their own for that. Everything here lives on a `Link` and dies with it: whoever uses it
attaches anew on the next.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aiormq.exceptions import ChannelNotFoundEntity, ChannelPreconditionFailed

from asgi_amqp.connection import Delivery, Link, Publisher, Wire
from asgi_amqp.exceptions import BrokerUnavailable, ConfigurationError

LAST = "last"
"""Where to begin reading: at the newest chunk (one message or more)."""

FIRST = "first"
"""Where to begin reading: at the oldest message that is still there."""


@dataclass(frozen=True, slots=True)
class Stream:
    """What is declared. Retention works by whole segments, and one segment always stays: keep `segment_bytes`
    (the broker's default is 500 MB) well below `max_bytes`. `max_age` is in seconds."""

    name: str
    max_bytes: int = 4 * 1024**3
    max_age: int = 24 * 3600
    segment_bytes: int = 16 * 1024**2

    def arguments(self) -> dict[str, Any]:
        return {
            "x-queue-type": "stream",
            "x-max-length-bytes": self.max_bytes,
            "x-max-age": f"{self.max_age}s",
            "x-stream-max-segment-size-bytes": self.segment_bytes,
        }


async def exists(link: Link, name: str) -> bool:
    """Whether the stream (or any queue) is there."""
    try:
        async with link.attempt() as wire:
            await wire.queue_declare(name, passive=True)
    except ChannelNotFoundEntity:
        return False
    return True


async def declare(link: Link, stream: Stream) -> None:
    """Make the stream if it is not there. One that exists with other limits is used as it is."""
    try:
        async with link.attempt() as wire:
            await wire.queue_declare(stream.name, durable=True, arguments=stream.arguments())
    except ChannelPreconditionFailed:
        if not await exists(link, stream.name):
            raise ConfigurationError(f"{stream.name} cannot be declared as a stream") from None


class Reader:
    """Reads one stream from an offset on, on one link.

    `on_messages(messages)` gets (offset, body) pairs in order, all that arrived in one turn of the loop at
    once; it must not block. Messages are acknowledged after it returns or, with `manual`, when
    `acknowledge()` is called, so at most `prefetch` are in hand.
    Nothing is said of offsets that do not come: some are the broker's own, others may be gone.
    """

    def __init__(
        self,
        name: str,
        start: int | str,
        on_messages: Callable[[list[tuple[int, bytes]]], None],
        *,
        prefetch: int = 256,
        manual: bool = False,
        passing: bool = False,
    ) -> None:
        self.name = name
        self.start = start
        self.next: int | None = start if isinstance(start, int) else None
        self._on_messages = on_messages
        self._prefetch = prefetch
        self._manual = manual
        self._passing = passing
        self._inbox: list[tuple[int, bytes]] = []
        self._tag = self._handed = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._wire: Wire | None = None
        self._consumer = ""

    async def attach(self, link: Link) -> None:
        """Start reading. A consumer that the broker ends takes the link with it, unless it is a passing
        one."""
        open_wire = link.passing if self._passing else link.wire
        wire = self._wire = await open_wire(on_delivery=self._arrived)
        await wire.basic_qos(prefetch_count=self._prefetch)
        start = self.next if self.next is not None else self.start
        answer = await wire.basic_consume(self.name, _nothing, arguments={"x-stream-offset": start})
        self._consumer = answer.consumer_tag or ""

    def detach(self) -> None:
        """Hand over nothing more. Reading ends with the link."""
        self._wire = None
        self._inbox.clear()

    async def close(self) -> None:
        """Stop reading; for a passing reader, whose link lives on."""
        wire = self._wire
        self.detach()
        if wire is not None and not wire.is_closed:
            await wire.close()

    def _arrived(self, delivery: Delivery) -> None:
        offset = delivery.headers.get("x-stream-offset")
        if not isinstance(offset, int) or self._wire is None:
            return
        if not self._inbox:
            asyncio.get_running_loop().call_soon(self._hand_over)
        self._inbox.append((offset, delivery.body))
        self._tag = delivery.tag

    def _hand_over(self) -> None:
        messages, self._inbox = self._inbox, []
        wire, tag = self._wire, self._tag
        if wire is None or not messages:
            return
        self.next = messages[-1][0] + 1
        try:
            self._on_messages(messages)
        finally:
            self._handed = tag
            if not self._manual:
                self.acknowledge()

    def acknowledge(self) -> None:
        """Everything handed over so far is done with: the broker may send as much again."""
        wire, tag = self._wire, self._handed
        if wire is not None and tag:
            self._handed = 0
            task = asyncio.ensure_future(_ack(wire, tag))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)


async def _ack(wire: Wire, tag: int) -> None:
    with contextlib.suppress(Exception):  # the link is gone, and with it what was to be acknowledged
        await wire.basic_ack(tag, multiple=True, wait=False)


async def _nothing(message: object) -> None:
    """aiormq wants a callback; the wire has taken the message before."""


async def end_of(link: Link, name: str, timeout: float = 10.0) -> int:
    """Offset of the last message of a stream; -1 when it has none. BrokerUnavailable: the broker does not
    say."""
    async with link.attempt() as wire:
        count = (await wire.queue_declare(name, passive=True)).message_count or 0
    newest = await _peek(link, name, LAST, timeout if count else 1.0)
    if newest:
        return newest[-1][0]
    if count:
        raise BrokerUnavailable(
            f"{name} holds {count} messages, and its last did not come within {timeout:g} s"
        )
    return -1


async def first_from(link: Link, name: str, wanted: int, timeout: float = 10.0) -> int:
    """The offset that a reader at `wanted` begins with: that, or the oldest that is left."""
    found = await _peek(link, name, wanted, timeout)
    if not found:
        raise BrokerUnavailable(f"{name} gave nothing from message {wanted} on")
    return found[0][0]


async def _peek(link: Link, name: str, start: int | str, timeout: float) -> list[tuple[int, bytes]]:
    """What comes first to a reader at `start`."""
    found: asyncio.Future[list[tuple[int, bytes]]] = asyncio.get_running_loop().create_future()

    def note(messages: list[tuple[int, bytes]]) -> None:
        if not found.done():
            found.set_result(messages)

    reader = Reader(name, start, note, passing=True)
    reader.next = None
    await reader.attach(link)
    try:
        async with asyncio.timeout(timeout):
            return await found
    except TimeoutError:
        return []
    finally:
        await reader.close()


class Writer:
    """Appends to one stream on one link, in order, each message confirmed.

    `publish` returns at once; its future is done when the broker has the message on disk of a majority, or
    holds BrokerUnavailable: then nobody knows whether it arrived.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._link: Link | None = None
        self._publisher: Publisher | None = None
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._out_of_order: set[int] = set()

    @property
    def unconfirmed(self) -> int:
        return len(self._waiting)

    async def attach(self, link: Link) -> None:
        """Open the wire to publish on."""
        wire = await link.wire(confirms=True, on_confirm=self._confirmed, on_return=self._returned)
        self._publisher = Publisher(wire, "", link.frame_max)
        self._link = link

    def publish(self, body: bytes) -> "asyncio.Future[None]":
        """Append one message."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._link is None or self._publisher is None:
            future.set_exception(BrokerUnavailable("the stream is not attached"))
            return future
        # Mandatory: without it the broker confirms what it threw away because the stream is gone.
        self._link.write(self._publisher.frames(body, (self.name,), persistent=True, mandatory=True))
        self._waiting.append((self._publisher.tag, future))
        return future

    def lost(self, reason: str) -> None:
        """The link is gone: what was not confirmed never will be."""
        self._link = self._publisher = None
        waiting, self._waiting = self._waiting, deque()
        for _, future in waiting:
            if not future.done():
                future.set_exception(BrokerUnavailable(reason))
                future.exception()  # whoever has stopped waiting need not hear of it

    def _returned(self, message_id: str) -> None:
        self.lost("there is no such stream")

    def _confirmed(self, tag: int, multiple: bool, ok: bool) -> None:
        """Confirms may come in any order; futures are done in the order of the stream."""
        waiting = self._waiting
        if not ok:
            self.lost("the broker refused a message")
            return
        if not multiple:
            self._out_of_order.add(tag)
        while waiting and (waiting[0][0] in self._out_of_order or (multiple and waiting[0][0] <= tag)):
            number, future = waiting.popleft()
            self._out_of_order.discard(number)
            if not future.done():
                future.set_result(None)
