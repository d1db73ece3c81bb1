"""The relay, what `runworker` runs: takes events off the durable queue and appends them to the event stream.

One relay is active, the others stand by (the queue has a single active consumer), so the order of the queue
is the order of the stream. What has gathered while the last messages were on their way goes out as one
message. A relay that takes over reads the end of the stream first: what its forerunner had appended and not
acknowledged comes again, and is known by its id. What it decides is in `core`.
"""

import asyncio
import logging
import os
import time
from collections import deque
from contextlib import suppress
from functools import partial

from django.db import Error

from asgi_amqp import Delivery, LayerError, Link, Position, Supervisor, Wire, codec, declare_queue, stream
from carillon import tracing
from carillon.events import broker, heads
from carillon.events.event import END, Malformed, pack, unpack
from carillon.events.heads import Superseded
from carillon.fanout.log import stream_name
from carillon.metrics import names
from carillon.relay.core import RelayCore
from carillon.relay.judge import judge

logger = logging.getLogger(__name__)

PREFETCH = 512
"""Queue messages in hand: no more than this can come again after a crash."""

PREFETCH_BYTES = 64 * 2**20
"""Bytes of queue messages that may wait to be sent. A broker counts messages alone: where these are large,
the relay begins anew with an eighth in hand, and no fewer than PREFETCH_LEAST."""

PREFETCH_LEAST = 8

TAKEOVER = PREFETCH + 64
"""Stream messages that a relay reads when it takes over. Each carried one queue message at least, or part of
one."""

TAKEOVER_SECONDS = 30.0

NUMBERS = 2**20
"""Numbers that are reserved at a time. Half of them are left when the next are."""

NOTE_INTERVAL = 0.05
"""Seconds between two notes of how far the log goes, if the hands are not full before; what was noted is
taken off the queue."""

COUNT_INTERVAL = 5.0
"""Seconds between two looks at how many messages and dead letters wait."""

LOOK = 1.0
"""Seconds until a relay that has nothing to note looks whether it is still the one."""

TAKEOVER_PAUSE, TAKEOVER_PAUSE_MOST = 0.2, 5.0
"""Seconds between takeovers that lead to nothing, doubling: a relay that fails again and again must not spend
the machine on it. The first is tried at once."""


class Relay:
    """Moves events from the durable queue to the stream of the current epoch."""

    def __init__(self):
        self.core = RelayCore()
        self._queue = broker.queue()
        self._epoch = ""
        self._stopping = False
        self._link: Link | None = None
        self._writers: list[stream.StreamWriter] = []
        self._arrivals: deque[Delivery] = deque()
        self._arrived_bytes = 0
        self._prefetch = PREFETCH
        self._pulse = asyncio.Event()
        self._full = asyncio.Event()
        self._settled = asyncio.Event()
        self._tasks: list[asyncio.Task] = []
        self._spans = tracing.Underway()
        self._fruitless = 0
        """Links lost since the stream last confirmed something."""
        self.supervisor = Supervisor(broker.options("carillon relay"), self._attach, self._lost)

    async def run(self) -> None:
        """Relay until stop(); what was sent is finished first, the rest stays on the queue."""
        self.supervisor.start()
        try:
            await self._settled.wait()
        finally:
            await self.supervisor.close()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def stop(self) -> None:
        """Send nothing more; run() returns when all that was sent has been confirmed and taken off the queue,
        which gives nothing to the next relay before that."""
        self._stopping = True
        if self._link is None:
            self._settled.set()
        self._pulse.set()

    # The link

    async def _attach(self, link: Link) -> None:
        await asyncio.sleep(pause_before(self._fruitless))
        await declare_queue(link, broker.topology(), self._queue)
        self._link = link
        wire = await link.wire(on_delivery=self._arrived)
        work = asyncio.get_running_loop().create_task(self._guarded(self._work(link, wire)))
        self._tasks = [work]
        await wire.consume(self._queue.name, prefetch=self._prefetch)
        # Whoever is the active relay knows it by a message, and takes over at once: this one is empty.
        nothing = codec.encode_batch([])
        link.spawn(link.attempt(lambda channel: channel.basic_publish(nothing, routing_key=self._queue.name)))

    def _lost(self, link: Link, reason: str) -> None:
        self._fruitless += 1
        names.RELAY_LINKS_LOST.inc()
        for gauge in (names.RELAY_ACTIVE, names.DEAD_LETTERS, names.QUEUE_MESSAGES):
            gauge.set(0)  # the relay that is active now counts
        for writer in self._writers:
            writer.lost(reason)
        self._link = None
        self._writers = []
        self._arrivals.clear()
        self._arrived_bytes = 0
        self.core.lost()
        self._spans.lost("the link was lost")
        for task in self._tasks:
            task.cancel()
        if self._stopping:
            self._settled.set()

    async def _guarded(self, work) -> None:
        """What one link is worked on with; where it fails, the next link begins anew."""
        link = self._link
        try:
            await work
        except Exception as error:
            if not isinstance(error, Superseded | Error | LayerError | TimeoutError):
                logger.exception("The relay starts anew")
            if link is not None:
                link.give_up(f"the relay starts anew: {error or type(error).__name__}")

    def _arrived(self, delivery: Delivery) -> None:
        self._arrivals.append(delivery)
        self._arrived_bytes += len(delivery.body)
        self._pulse.set()
        waiting = self._arrived_bytes + self.core.waiting
        if waiting > PREFETCH_BYTES and self._prefetch > PREFETCH_LEAST and self._link is not None:
            self._prefetch //= 8
            self._link.give_up(f"{waiting} bytes are in hand: {self._prefetch} messages at a time from now")

    # From the queue to the log

    async def _work(self, link: Link, wire: Wire) -> None:
        """Stand by until the queue gives something; then take over, and relay."""
        core, pulse = self.core, self._pulse
        while not self._arrivals or self._stopping:
            if self._stopping:
                self._settled.set()
            await pulse.wait()
            pulse.clear()
        letters = await self._writer(link, self._queue.dead)
        writer = await self._take_over(link)
        loop = asyncio.get_running_loop()
        for task in (self._keep_row(), self._count_letters(link)):
            self._tasks.append(loop.create_task(self._guarded(task)))
        while True:
            while self._arrivals and not self._stopping:
                await self._take_in(self._arrivals.popleft(), letters)
            while not self._stopping and (body := core.send(time.time_ns() // 1_000_000)) is not None:
                writer.publish(body).add_done_callback(partial(self._confirmed, link, loop.time()))
            if tag := core.done():
                wire.ack_all(tag)
            if core.in_hand > self._prefetch // 2:
                self._full.set()
            if self._stopping and core.settled:
                self._settled.set()
            await pulse.wait()
            pulse.clear()

    async def _take_in(self, delivery: Delivery, letters: stream.StreamWriter) -> None:
        """The events of one queue message, when its dead letters are on disk."""
        self._arrived_bytes -= len(delivery.body)
        events, dead = judge(delivery.body)
        for reason, body in dead:
            logger.error("An event that cannot be delivered goes to %s: %s", self._queue.dead, reason)
            await letters.publish(body, int(time.time()))
            names.RELAYED.labels("poison").inc()
        spans = tracing.begin("relay", events)
        doubles = self.core.arrived(delivery.tag, events)
        self._spans.sent(spans, len(events) - doubles)
        names.RELAYED.labels("double").inc(doubles)

    def _confirmed(self, link: Link, sent: float, done: asyncio.Future) -> None:
        if done.cancelled() or done.exception() is not None:
            link.give_up("the stream did not confirm")
        elif link is self._link:
            if count := self.core.confirmed():
                names.RELAYED.labels("relayed").inc(count)
                self._spans.there(count)
                names.RELAY_SECONDS.observe(asyncio.get_running_loop().time() - sent)
                self._fruitless = 0
            self._pulse.set()

    async def _writer(self, link: Link, name: str) -> stream.StreamWriter:
        writer = stream.StreamWriter(name)
        await writer.attach(link)
        self._writers.append(writer)
        return writer

    async def _count_letters(self, link: Link) -> None:
        while True:
            for name, gauge in (
                (self._queue.dead, names.DEAD_LETTERS),
                (self._queue.name, names.QUEUE_MESSAGES),
            ):
                found = await link.attempt(partial(_count, name))
                gauge.set(found.message_count or 0)
            await asyncio.sleep(COUNT_INTERVAL)

    # Taking over

    async def _take_over(self, link: Link) -> stream.StreamWriter:
        """The log is this relay's from now on; see RelayCore."""
        core, loop = self.core, asyncio.get_running_loop()
        async with asyncio.timeout(TAKEOVER_SECONDS):
            epoch = await self._current_epoch(link)
            name = stream_name(epoch)
            end = await stream.end_of(link, name)
            writer = await self._writer(link, name)
            read = asyncio.Event()

            def note(messages) -> None:
                for _, body in messages:
                    with suppress(Malformed):
                        core.read(unpack(body))
                read.set()

            reader = stream.StreamReader(name, max(0, end - TAKEOVER), note, passing=True)
            await reader.attach(link)
            try:
                await writer.publish(core.fenced_by(epoch, os.urandom(16)))
                while not core.fenced:
                    await read.wait()
                    read.clear()
                known, first = await heads.reserve(epoch, core.last, NUMBERS)
                if known.number > core.last:
                    logger.error("The log of epoch %s has lost what it had after %d", epoch, core.last)
                given = (event for each in tuple(self._arrivals) for event in judge(each.body)[0])
                mark = core.took_over(known.number, first, first - 1 + NUMBERS, given)
                writer.publish(mark).add_done_callback(partial(self._confirmed, link, loop.time()))
                while not core.active:
                    await read.wait()
                    read.clear()
            finally:
                await reader.close()
        names.RELAY_TAKEOVERS.inc()
        names.RELAY_ACTIVE.set(1)
        logger.info("The relay has taken over epoch %s from %d on", epoch, first)
        return writer

    async def _current_epoch(self, link: Link) -> str:
        """The epoch to append to, its stream made. A stream that is gone takes its epoch with it; one that
        is still there, of an epoch that somebody took away, gets an end."""
        current = await heads.current()
        epoch = None if current is None else current.epoch
        # A row without numbers is that of an epoch which has just begun, and may have no stream yet.
        if epoch is None or (current.number and not await stream.exists(link, stream_name(epoch))):
            logger.warning("There is no event stream of epoch %s: a new epoch begins", epoch)
            epoch = await heads.begin(epoch)
        await stream.declare(link, broker.declaration(stream_name(epoch)))
        before, self._epoch = self._epoch, epoch
        if before not in ("", epoch) and await stream.exists(link, stream_name(before)):
            writer = await self._writer(link, stream_name(before))
            await writer.publish(pack([], word=END + epoch.encode()))
        return epoch

    # The row

    async def _keep_row(self) -> None:
        """Note how far the log goes, and reserve numbers, while this is the active relay. What is not noted
        is not taken off the queue: without a database the relay goes on until its hands are full."""
        core = self.core
        looked = 0.0
        loop = asyncio.get_running_loop()
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._full.wait(), NOTE_INTERVAL)
            self._full.clear()
            try:
                if core.short(NUMBERS // 2):
                    core.extended(await heads.extend(core.epoch, core.reserved, NUMBERS))
                reached = core.to_note()
                if reached is None and core.in_row and loop.time() - looked >= LOOK:
                    reached = Position(core.epoch, core.in_row)
                if reached is not None:
                    await heads.note(reached, core.reserved)
                    core.noted(reached.number)
                    names.RELAY_POSITION.set(reached.number)
                    looked = loop.time()
                    self._pulse.set()
            except Error as error:
                logger.warning("The position cannot be noted: %s", type(error).__name__)
                await asyncio.sleep(LOOK)


def _count(name: str, channel):
    return channel.queue_declare(name, passive=True)


def pause_before(fruitless: int) -> float:
    """Seconds to wait before a takeover, after so many that led to nothing."""
    return min(TAKEOVER_PAUSE_MOST, TAKEOVER_PAUSE * 2 ** (fruitless - 2)) if fruitless > 1 else 0.0
