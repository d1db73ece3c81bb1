"""The relay, what `runworker` runs: takes events off the durable queue and appends them to the event stream.

One relay is active, the others stand by (the queue has a single active consumer), so the order of the queue
is the order of the stream. What has gathered while the last messages were on their way goes out as one
message; a queue message is acknowledged when the stream has confirmed all of its events. A relay that takes
over reads the end of the stream first: what its forerunner had appended and not acknowledged comes again, and
is known by its id.
"""

import asyncio
import json
import logging
import os
import re
import time
from collections import deque
from collections.abc import Awaitable, Callable

from pamqp.commands import Basic

from asgi_amqp import codec, declare, stream
from asgi_amqp.connection import Link, Wire
from asgi_amqp.options import Options
from asgi_amqp.position import Position, first_of
from asgi_amqp.supervisor import Supervisor
from asgi_amqp.topology import Topology
from asgi_amqp.transport import Delivery
from carillon.events.event import GROUP, Event, Malformed, pack, unpack
from carillon.events.seen import Seen
from carillon.fanout.tail import known, stream_name

logger = logging.getLogger(__name__)

PREFETCH = 512
"""Queue messages in hand: no more than this can come again after a crash."""

BATCH_EVENTS = 1024
BATCH_BYTES = 512 * 1024
IN_FLIGHT = 4
"""Stream messages that wait for their confirm; events that come meanwhile gather into larger ones."""

TAKEOVER = PREFETCH + 64
"""Stream messages that a relay reads when it takes over. Each carried one queue message at least, or part of
one."""

MAX_TEXT = 1024 * 1024
MAX_AUDIENCE = 100_000
"""Tags of one event: with its text, far below what a broker takes in one message."""

TAKEOVER_PAUSE, TAKEOVER_PAUSE_MOST = 0.2, 5.0
"""Seconds between takeovers that lead to nothing, doubling: a relay that fails again and again must not spend
the machine on it. The first is tried at once."""


class Relay:
    """Moves events from `topology`'s queue of the durable channel `channel` to the stream of the current
    epoch.

    `open_epoch(end, position)` returns the epoch to append to; `end(epoch)` asks for the offset of the last
    message of that epoch's stream (-1: it is empty, None: there is no such stream), and `position` is what
    the stream had confirmed. `declaration(name)` says how a stream is made; `counted(what, count)` hears of
    `relayed`, `double` and `poison`.
    """

    def __init__(
        self,
        options: Options,
        topology: Topology,
        queue,
        *,
        open_epoch: Callable[[Callable[[str], Awaitable[int | None]], Position | None], Awaitable[str]],
        declaration: Callable[[str], stream.Stream],
        counted: Callable[[str, int], None] = lambda what, count: None,
    ):
        self.position: Position | None = None
        """Behind the last event that the stream has confirmed."""
        self.relayed = 0
        self.doubles = 0
        self.poisoned = 0
        self._topology = topology
        self._queue = queue
        self._open_epoch = open_epoch
        self._declaration = declaration
        self._counted = counted
        self._seen = Seen(250_000)
        self._unconfirmed: set[bytes] = set()
        self._newest: asyncio.Future[None] | None = None
        self._epoch = ""
        self._next = 0
        self._number = 0
        self._pulse: asyncio.Event | None = None
        self._warm = False
        self._stopping = False
        self._writer: stream.StreamWriter | None = None
        self._wire: Wire | None = None
        self._consumer = ""
        self._link: Link | None = None
        self._pending: deque[tuple[Event | None, int]] = deque()
        self._pending_bytes = 0
        self._arrivals: deque[Delivery] = deque()
        self._wake = asyncio.Event()
        self._task: asyncio.Task | None = None
        self._in_flight = 0
        self._fruitless = 0
        """Links lost since the stream last confirmed something."""
        self.supervisor = Supervisor(options, self._attach, self._lost)

    async def run(self) -> None:
        """Relay until stop(); what is in hand is finished first."""
        self.supervisor.start()
        try:
            while not self._stopping or self._arrivals or self._pending or self._in_flight:
                await self._wake.wait()
                self._wake.clear()
        finally:
            await self.supervisor.close()
            if self._task is not None:
                self._task.cancel()
                await asyncio.gather(self._task, return_exceptions=True)

    async def stop(self) -> None:
        """Take nothing more from the queue; run() returns when all that is in hand has been confirmed."""
        self._stopping = True
        wire = self._wire
        if wire is not None:
            await wire.cancel(self._consumer)
        self._wake.set()

    def follow(self, epoch: str | None) -> None:
        """`epoch` is the current one: if another was opened meanwhile, go on with that."""
        if self._link is not None and epoch not in (None, self._epoch):
            self._link.give_up(f"epoch {epoch} has begun")

    @property
    def epoch(self) -> str:
        """What this relay appends to; "" while it is not attached."""
        return self._epoch if self._link is not None else ""

    # The link

    async def _attach(self, link: Link) -> None:
        async def end(epoch):
            if not await stream.exists(link, stream_name(epoch)):
                return None
            return await stream.end_of(link, stream_name(epoch))

        await asyncio.sleep(pause_before(self._fruitless))
        await declare.declare(link, self._topology, self._queue)
        epoch = await known(self._open_epoch(end, self.position))
        await stream.declare(link, self._declaration(stream_name(epoch)))
        writer = stream.StreamWriter(stream_name(epoch))
        await writer.attach(link)
        self._epoch = epoch
        self._number = 0
        self._link, self._writer = link, writer
        self._warm = False
        self._wire = wire = await link.wire(on_delivery=self._arrived)
        if await stream.end_of(link, stream_name(epoch)) < 0:
            # The first message says that the stream is there, and that every event lies behind position 0.
            await writer.publish(pack([]))
        if not self._stopping:
            self._consumer = await wire.consume(self._queue.name, prefetch=PREFETCH)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._work())
        self._wake.set()

    def _lost(self, link: Link, reason: str) -> None:
        self._fruitless += 1
        if self._writer is not None:
            self._writer.lost(reason)
        self._link = self._writer = self._wire = None
        self._arrivals.clear()
        # Whether these are in the stream, the stream itself will say: the queue gives them out again.
        for id in self._unconfirmed:
            self._seen.discard(id)
        for event, _ in self._pending:
            if event is not None:
                self._seen.discard(event.id)
        self._unconfirmed.clear()
        self._pending.clear()
        self._pending_bytes = 0
        if self._task is not None:
            self._task.cancel()
            self._task = None
        self._in_flight = 0
        self._wake.set()

    # From the queue

    def _arrived(self, delivery: Delivery) -> None:
        self._arrivals.append(delivery)
        self._wake.set()
        if self._pulse is not None:
            self._pulse.set()

    async def _work(self):
        """Warm up once per link, then: arrivals to events, events to stream messages."""
        pulse = self._pulse = asyncio.Event()
        slots = asyncio.Semaphore(IN_FLIGHT)
        try:
            while True:
                if not self._arrivals and not self._pending:
                    await pulse.wait()
                pulse.clear()
                if not self._warm:
                    await self._learn_ids()
                    self._warm = True
                while self._arrivals:
                    await self._take_in(self._arrivals.popleft())
                while self._pending:
                    await slots.acquire()
                    while self._arrivals:
                        await self._take_in(self._arrivals.popleft())
                    self._send(slots)
                    await asyncio.sleep(0)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            logger.exception("The relay starts anew")
            if self._link is not None:
                self._link.give_up(f"the relay failed: {type(error).__name__}")

    async def _learn_ids(self):
        """Append a mark and read the end of the stream up to it: the ids there are done with."""
        writer, link = self._writer, self._link
        mark = os.urandom(16)
        end = await stream.end_of(link, writer.name)
        read: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def note(messages):
            for message, body in messages:
                try:
                    number, events = unpack(body, message)
                except Malformed:
                    continue
                self._number = max(number, self._number)
                for event in events:
                    self._seen.add(event.id)
                if body.endswith(mark) and not read.done():
                    # From here on this relay is the only writer: it can count.
                    self._next = message + 1
                    read.set_result(None)

        reader = stream.StreamReader(writer.name, max(0, end - TAKEOVER), note, passing=True)
        reader.next = None
        await reader.attach(link)
        await writer.publish(pack([], mark=mark))
        try:
            async with asyncio.timeout(30):
                await read
        finally:
            await reader.close()
        logger.info("The relay has taken over: %d events known", len(self._seen))

    async def _take_in(self, delivery: Delivery):
        """The events of one queue message; None closes it, so that its tag is known to be complete."""
        try:
            messages = [message for _, message in codec.decode(delivery.body)]
        except ValueError as error:
            await self._bury(delivery.body, f"not a batch: {error}")
            messages = []
        fresh = 0
        for message in messages:
            try:
                event = event_of(message)
            except Malformed as error:
                await self._bury(_as_it_was(message), str(error))
                continue
            if not self._seen.add(event.id):
                self.doubles += 1
                self._counted("double", 1)
                continue
            fresh += 1
            self._pending.append((event, 0))
            self._pending_bytes += event.size
        if fresh:
            event, _ = self._pending.pop()
            self._pending.append((event, delivery.tag))
        else:
            self._pending.append((None, delivery.tag))

    async def _bury(self, body: bytes, reason: str):
        """To the dead-letter queue, with the reason; the rest flows on."""
        self.poisoned += 1
        self._counted("poison", 1)
        logger.error("An event that cannot be delivered goes to %s: %s", self._queue.dead, reason)
        properties = Basic.Properties(delivery_mode=2, headers={"x-carillon-reason": reason[:500]})
        await self._link.attempt(
            lambda channel: channel.basic_publish(body, routing_key=self._queue.dead, properties=properties)
        )

    # To the stream

    def _send(self, slots):
        """Append what has gathered as one message; acknowledge what it completes once it is confirmed."""
        pending = self._pending
        events = []
        size = tag = 0
        while pending and len(events) < BATCH_EVENTS and size < BATCH_BYTES:
            event, closes = pending.popleft()
            if event is not None:
                events.append(event)
                size += event.size
            tag = closes or tag
        self._pending_bytes -= size
        wire = self._wire
        if not events:  # only doubles: done with, as soon as all that was appended before is
            slots.release()
            if self._newest is None or self._newest.done():
                self._acknowledge(wire, tag)
            else:
                self._newest.add_done_callback(lambda done: _succeeded(done) and self._acknowledge(wire, tag))
            return
        self._in_flight += 1
        self._unconfirmed.update(event.id for event in events)
        future = self._newest = self._writer.publish(pack(events, self._number + 1))
        self._number += 1
        position = Position(self._epoch, first_of(self._next) + len(events) - 1)
        self._next += 1

        def confirmed(done):
            slots.release()
            if self._wire is not wire:
                return
            self._in_flight -= 1
            self._wake.set()
            if not _succeeded(done):
                if self._link is not None:
                    self._link.give_up("the stream did not confirm")
                return
            self.position = position
            self._fruitless = 0
            self._unconfirmed.difference_update(event.id for event in events)
            self.relayed += len(events)
            self._counted("relayed", len(events))
            if tag:
                self._acknowledge(wire, tag)

        future.add_done_callback(confirmed)

    def _acknowledge(self, wire, tag):
        """Everything up to `tag` is in the stream. On a link that is gone the queue gives it out again."""
        if self._wire is not wire:
            return
        wire.ack(tag, multiple=True)
        self._wake.set()


def _succeeded(done: asyncio.Future) -> bool:
    return not done.cancelled() and done.exception() is None


def pause_before(fruitless: int) -> float:
    """Seconds to wait before a takeover, after so many that led to nothing."""
    return min(TAKEOVER_PAUSE_MOST, TAKEOVER_PAUSE * 2 ** (fruitless - 2)) if fruitless > 1 else 0.0


def _as_it_was(message: object) -> bytes:
    """The body of a dead letter: a batch of one, or what can be said of a message that cannot be packed."""
    try:
        return codec.encode_batch([codec.encode_target("") + codec.encode(message)])
    except Exception:
        return repr(message)[:MAX_TEXT].encode("utf-8", "backslashreplace")


def event_of(message: dict) -> Event:
    """The event in a queue message `{"id", "group", "text", "audience", "stamp"}`. Raises Malformed, and
    nothing else: what one message holds must not stop those around it."""
    try:
        event = _event_of(message)
        pack([event])
    except Malformed:
        raise
    except Exception as error:
        raise Malformed(f"not an event: {type(error).__name__}") from None
    return event


def _event_of(message: dict) -> Event:
    try:
        group = message["group"].encode()
        text = message["text"].encode()
        id = message["id"]
        audience = message.get("audience")
        stamp = message.get("stamp", 0)
    except (KeyError, AttributeError, UnicodeEncodeError) as error:
        raise Malformed(f"not an event: {type(error).__name__} {error}") from None
    if not GROUP.fullmatch(group):
        raise Malformed("its group is no group's name")
    if len(text) > MAX_TEXT:
        raise Malformed(f"{len(text)} bytes of payload: {MAX_TEXT} are the most")
    if not isinstance(id, bytes) or len(id) != 16:
        raise Malformed("its id is not 16 bytes")
    try:
        if not isinstance(json.loads(text), dict):
            raise Malformed("its payload is no JSON object")
    except (ValueError, RecursionError):
        raise Malformed("its payload is no JSON, or nested too deeply") from None
    if "\n" in message["text"] or "\r" in message["text"]:
        text = re.sub(rb"[\r\n]+", b" ", text)
    if audience is not None:
        audience = tuple(str(tag)[:64] for tag in audience)
        if len(audience) > MAX_AUDIENCE:
            raise Malformed(f"an audience of {len(audience)}: {MAX_AUDIENCE} tags are the most")
    return Event(group, text, audience, id, int(stamp or time.time() * 1000))
