"""Streams of RabbitMQ: to append to with confirms, to tail, and to read again from any offset.

A stream keeps its messages for a time whoever has read them; reading takes nothing away and costs the broker
no binding. Each message has an offset. Offsets grow, with a hole here and there: RabbitMQ takes one for a
record of its own when a segment begins. An offset outside the log is not an error for the broker, it is
*clamped* to the nearest message, also that of a reader so slow that retention overtakes it: whoever reads
compares what comes, first and later, with what it expects.

What is here lives on a `Link` and dies with it: whoever uses it attaches anew on the next. `event_stream` has
the whole of it for an application.
"""

import asyncio
import functools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .connection import Link
from .exceptions import BrokerUnavailable
from .queues import ensure
from .queues import exists as exists
from .transport import Delivery
from .wire import Wire

LAST = "last"
"""Where to begin reading: at the newest chunk (one message or more)."""

FIRST = "first"
"""Where to begin reading: at the oldest message that is still there."""

Messages = list[tuple[int, bytes]]
"""Offsets and bodies, in order."""

Waiting = deque[tuple[int, "asyncio.Future[None]"]]
"""Tags of what was published, and who waits for each, in order."""


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


async def declare(link: Link, stream: Stream) -> None:
    """Make the stream if it is not there. One that exists with other limits is used as it is."""
    await ensure(link, stream.name, stream.arguments())


class StreamReader:
    """Reads one stream from an offset on, on one link.

    `on_messages(messages)` gets (offset, body) pairs in order, all that arrived in one turn of the loop at
    once; it must not block. Messages are acknowledged after it returns or, with `manual`, when
    `acknowledge()` is called, so at most `prefetch` are in hand. A consumer that the broker ends takes the
    link with it; a `passing` one does not, and ends alone, with its link or without, by `on_end()`.
    Nothing is said of offsets that do not come: some are the broker's own, others may be gone.
    """

    def __init__(
        self,
        name: str,
        start: int | str,
        on_messages: Callable[[Messages], None],
        *,
        prefetch: int = 256,
        manual: bool = False,
        passing: bool = False,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self.next = start
        self._on_messages = on_messages
        self._on_end = on_end
        self._prefetch = prefetch
        self._manual = manual
        self._passing = passing
        self._inbox: Messages = []
        self._tag = self._handed = 0
        self._link: Link | None = None
        self._wire: Wire | None = None

    async def attach(self, link: Link) -> None:
        """Start reading."""
        wire: Wire

        def arrived(delivery: Delivery) -> None:
            self._arrived(delivery, wire)

        wire = await link.wire(passing=self._passing, on_delivery=arrived)
        self._link, self._wire = link, wire
        if self._passing:
            wire.channel.closing.add_done_callback(lambda _: self._ended(wire))
            wire.channel.on_consumer_cancel_callbacks.add(lambda _: self._ended(wire))
        try:
            await wire.consume(self.name, prefetch=self._prefetch, arguments={"x-stream-offset": self.next})
        except BaseException:  # cancelled, it may consume all the same
            if wire is self._wire:
                self.detach()
            link.spawn(wire.close())
            raise

    def _ended(self, wire: Wire) -> None:
        if wire is self._wire:
            self.detach()
            self._on_end()

    def detach(self) -> None:
        """Hand over nothing more. Reading ends with the link."""
        self._wire = self._link = None
        self._handed = 0
        self._inbox.clear()

    async def close(self) -> None:
        """Stop reading; for a passing reader, whose link lives on."""
        wire = self._wire
        self.detach()
        if wire is not None:
            await wire.close()

    def _arrived(self, delivery: Delivery, wire: Wire) -> None:
        offset = delivery.headers.get("x-stream-offset")
        if not isinstance(offset, int) or wire is not self._wire:
            return
        if not self._inbox:
            asyncio.get_running_loop().call_soon(self._hand_over)
        self._inbox.append((offset, delivery.body))
        self._tag = delivery.tag

    def _hand_over(self) -> None:
        messages, self._inbox = self._inbox, []
        if self._wire is None or not messages:
            return
        self.next = messages[-1][0] + 1
        self._handed = self._tag
        try:
            self._on_messages(messages)
        finally:
            if not self._manual:
                self.acknowledge()

    def acknowledge(self) -> None:
        """Everything handed over so far is done with: the broker may send as much again."""
        tag, self._handed = self._handed, 0
        if tag and self._wire is not None:
            self._wire.ack_all(tag)

    async def settled(self) -> None:
        """Until all that the broker had begun to send is here: it answers in order."""
        if self._wire is not None and self._link is not None:
            await self._link.own(self._wire.channel.basic_qos(prefetch_count=self._prefetch))


async def end_of(link: Link, name: str, timeout: float = 10.0) -> int:
    """Offset of the last message of a stream; -1 when it has none. BrokerUnavailable: the broker does not
    say."""
    newest = await last_chunk(link, name, timeout)
    return newest[-1][0] if newest else -1


async def last_chunk(link: Link, name: str, timeout: float) -> Messages:
    """The end of a stream: one message or more, none if it is empty."""
    found = await link.attempt(lambda channel: channel.queue_declare(name, passive=True))
    count = found.message_count or 0
    newest = await peek(link, name, LAST, timeout if count else 1.0)
    if count and not newest:
        raise BrokerUnavailable(
            f"{name} holds {count} messages, and its last did not come within {timeout:g} s"
        )
    return newest


async def first_from(link: Link, name: str, wanted: int, timeout: float = 10.0) -> tuple[int, int]:
    """The offset that a reader at `wanted` begins with (that, or the oldest that is left), and how many bytes
    that message has."""
    found = await peek(link, name, wanted, timeout)
    if not found:
        raise BrokerUnavailable(f"{name} gave nothing from message {wanted} on")
    offset, body = found[0]
    return offset, len(body)


async def peek(link: Link, name: str, start: int | str, timeout: float, most: int = 1) -> Messages:
    """What comes first to a reader at `start`: of the last chunk all, else one message or more, `most` at
    most."""
    found: Messages = []
    arrived = asyncio.Event()

    def note(messages: Messages) -> None:
        found.extend(messages)
        arrived.set()

    reader = StreamReader(
        name,
        start,
        note,
        passing=True,
        manual=True,
        prefetch=65535 if start == LAST else most,
        on_end=arrived.set,
    )
    await reader.attach(link)
    try:
        async with asyncio.timeout(timeout):
            await arrived.wait()
            await reader.settled()
    except TimeoutError:
        pass
    finally:
        await reader.close()
    return found


class StreamWriter:
    """Appends to one stream on one link, in order, each message confirmed.

    `publish` returns at once; its future is done when the broker has the message on disk of a majority, or
    holds BrokerUnavailable: then nobody knows whether it arrived.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._link: Link | None = None
        self._wire: Wire | None = None
        self._tag = 0
        self._waiting: Waiting = deque()

    async def attach(self, link: Link) -> None:
        """Open the wire to publish on."""
        waiting: Waiting = deque()  # a late word from the wire before is for those who waited on that
        self._wire = await link.wire(
            on_confirm=functools.partial(self._confirmed, waiting, set()),
            on_return=lambda _: self._fail(waiting, "there is no such stream"),
        )
        self._waiting, self._tag, self._link = waiting, 0, link

    def publish(self, body: bytes, timestamp: int = 0) -> "asyncio.Future[None]":
        """Append one message; `timestamp`, seconds since 1970, is a property of it."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._link is None or self._wire is None:
            future.set_exception(BrokerUnavailable("the stream is not attached"))
            return future
        self._tag += 1
        # Mandatory: without it the broker confirms what it threw away because the stream is gone.
        self._link.write(self._wire.publish("", (self.name,), body, self._tag, timestamp=timestamp))
        self._waiting.append((self._tag, future))
        return future

    def lost(self, reason: str) -> None:
        """The link is gone: what was not confirmed never will be."""
        self._fail(self._waiting, reason)

    def _fail(self, waiting: Waiting, reason: str) -> None:
        if waiting is self._waiting:
            self._link = self._wire = None
        while waiting:
            _, future = waiting.popleft()
            if not future.done():
                future.set_exception(BrokerUnavailable(reason))
                future.exception()  # whoever has stopped waiting need not hear of it

    def _confirmed(self, waiting: Waiting, early: set[int], tag: int, multiple: bool, ok: bool) -> None:
        """Confirms may come in any order; futures are done in the order of the stream."""
        if not ok:
            self._fail(waiting, "the broker refused a message")
        if not multiple:
            early.add(tag)
        while waiting and (waiting[0][0] in early or (multiple and waiting[0][0] <= tag)):
            number, future = waiting.popleft()
            early.discard(number)
            if not future.done():
                future.set_result(None)
