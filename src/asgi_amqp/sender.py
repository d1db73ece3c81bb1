"""The sending half of a session: gathers, publishes, waits for confirms, retries what may be retried.

Runs in one event loop. An event is accepted into the batcher; a flush, called once per turn of the loop,
publishes all that has gathered, on two channels: with confirms, one per batch, what somebody waits for, and
without them all else. There the broker is asked whether it has dealt with what came before: at once under
load, where the answer sets the pace, and a moment later for a batch alone, whose way it would slow down (a
confirm is made before the message is handed on, and takes a sixth of the time that the message takes). So
at a cut it is known what was in flight: confirmed batches leave again on the next link, others are reported
lost.
"""

import asyncio
import functools
import math
import time
from collections import deque
from collections.abc import Coroutine
from typing import Any

from aiormq.exceptions import ChannelNotFoundEntity

from .batcher import Batch, Batcher, Ticket
from .codec import encode_batch
from .config import Config
from .connection import Link, Supervisor, describe
from .declare import declare
from .exceptions import BrokerUnavailable, ChannelFull, ConfigurationError, Unroutable
from .frames import Publisher, question
from .metrics import Stats
from .topology import Destination, Queue

WINDOW = 64  # batches that may be under way; beyond it events gather into larger batches
ASK = 0.002  # seconds after which the broker is asked for a batch that left alone
UNWRITTEN = 1 << 20  # bytes in the transport beyond which nothing more is written
FULL = 120_000  # bytes that are not left to gather until the turn of the loop ends
HIGH = 1 << 20  # bytes gathered beyond which coroutines wait
ASK_WHY = 2.0  # seconds for the question why a queue refused something
SWEEP = 0.1  # seconds between looks at deadlines, while anyone waits


class FutureTicket(Ticket):
    """A ticket that an asyncio task awaits in the sender's own loop."""

    __slots__ = ("future",)

    def __init__(self, left: int, deadline: float, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(left, deadline)
        self.future: asyncio.Future[None] = loop.create_future()

    def finish(self) -> None:
        if not self.future.done():
            if self.error is None:
                self.future.set_result(None)
            else:
                self.future.set_exception(self.error)


class Unwatched(Ticket):
    """For a confirmed event that nobody waits for: its failure is reported as a loss."""

    __slots__ = ("_stats",)

    def __init__(self, deadline: float, stats: Stats) -> None:
        super().__init__(1, deadline)
        self._stats = stats

    def finish(self) -> None:
        if self.error is not None:
            self._stats.lose("refused" if isinstance(self.error, ChannelFull) else "unconfirmed", 1)


class Sender:
    """See the module. What waits is bounded in bytes; a full buffer makes senders wait, then fail."""

    def __init__(self, config: Config) -> None:
        self.loop = asyncio.get_running_loop()
        self.batcher = Batcher(time.monotonic)
        self.supervisor = Supervisor(config.connect("publishes"), self._setup, self._lost)
        self.stats = config.stats
        self.unconfirmed: dict[int, Batch] = {}  # under way with confirms, by their numbers
        self.unsure: dict[int, Batch] = {}  # and without
        self.under_way_bytes = 0
        self.blocked = False
        self._topology = config.topology
        self._most = config.buffer_bytes
        self._expiry = config.expiry
        self._link: Link | None = None
        self._confirming: Publisher
        self._plain: Publisher
        self._asked: deque[int] = deque()  # the last number on the plain channel before each open question
        self._asking: asyncio.TimerHandle | None = None
        self._scheduled = self._draining = False
        self._room: asyncio.Event = asyncio.Event()
        self._line: dict[object, None] = {}  # who waits for a link or for room, in the order of the calls
        self._declared: dict[str, float] = {}
        self._refused: dict[str, list[Batch]] = {}  # by queue, while the broker is asked why
        self._tasks: set[asyncio.Task[None]] = set()
        self._sweeper: asyncio.TimerHandle | None = None

    @property
    def buffered(self) -> int:
        return self.batcher.size + self.under_way_bytes

    @property
    def under_way(self) -> int:
        """Batches that have left and are not settled."""
        return len(self.unconfirmed) + len(self.unsure)

    async def send(self, destination: Destination, data: bytes, timeout: float) -> None:
        """Confirmed: back when the broker has it. Else: back when it is accepted to leave in this turn of
        the loop.
        """
        if destination.confirmed:
            if self.buffered > self._most or (self._line and self._link is not None):
                await self._wait_for_room(timeout)
            ticket = FutureTicket(1, time.monotonic() + timeout, self.loop)
            self.submit(destination, data, ticket)
            try:
                await ticket.future
            finally:
                ticket.done = True  # cancelled: withdraw what has not left
            return
        if self._link is None or self._line or self._full():
            await self._wait_for_room(timeout)
        self.stats.sent += 1
        self.batcher.add(destination, data)
        if not self._scheduled or self.batcher.size > FULL:
            self._schedule()

    async def send_many(self, events: list[tuple[Destination, bytes]], timeout: float) -> None:
        """All under way at once; back when the broker has the confirmed ones. The first error is raised after
        all are settled.
        """
        if self._link is None or self._line or self._full():
            await self._wait_for_room(timeout)
        ticket = FutureTicket(
            sum(destination.confirmed for destination, _ in events), time.monotonic() + timeout, self.loop
        )
        for destination, data in events:
            self.submit(destination, data, ticket if destination.confirmed else None)
        if ticket.left:
            try:
                await ticket.future
            finally:
                ticket.done = True

    def _full(self) -> bool:
        return self.batcher.size > HIGH or self.buffered > self._most

    async def _wait_for_room(self, timeout: float) -> None:
        """In the order of the calls: whoever comes when there is room goes behind those who wait for it."""
        deadline = time.monotonic() + timeout
        place = object()
        self._line[place] = None
        try:
            while True:
                await self.supervisor.link(max(0.0, deadline - time.monotonic()))
                if not self._full() and next(iter(self._line)) is place:
                    return
                self._room.clear()
                try:
                    async with asyncio.timeout_at(self.loop.time() + deadline - time.monotonic()):
                        await self._room.wait()
                except TimeoutError:
                    raise BrokerUnavailable(
                        f"{self._state()}: {self.buffered} bytes wait to be sent or confirmed, the most that "
                        "buffer_bytes allows"
                    ) from None
        finally:
            del self._line[place]
            self._room.set()  # the next in the line looks again

    def submit(self, destination: Destination, data: bytes, ticket: Ticket | None) -> None:
        """Accept an event from this loop's thread; its ticket is settled once the broker has confirmed it."""
        self.stats.sent += 1
        if ticket is not None and self._sweeper is None:
            self._sweeper = self.loop.call_later(SWEEP, self._sweep)
        queue = destination.queue
        if (
            queue is not None
            and time.monotonic() - self._declared.get(queue.key, -1e9) > self._expiry
            and queue.key not in self.batcher.held
        ):
            self.batcher.held.add(queue.key)
            self._spawn(self._declare(queue))
        self.batcher.add(destination, data, ticket)
        if not self._scheduled or self.batcher.size > FULL:
            self._schedule()

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = self.loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _declare(self, queue: Queue) -> None:
        """Declare a queue, then let go what is held for it."""
        error: Exception | None = None
        while error is None and self._waiting(queue.key):
            link = None
            try:
                link = await self.supervisor.link(1.0)
                await declare(link, self._topology, queue)
            except BrokerUnavailable:
                continue
            except ConfigurationError as problem:
                error = problem
            except Exception as problem:
                await asyncio.sleep(0.05)  # a lost link is known to be one a moment later
                if link is None or (link is self._link and not link.lost.done()):
                    error = ConfigurationError(f"queue {queue.name} cannot be declared: {describe(problem)}")
            else:
                self._declared[queue.key] = time.monotonic()
                break
        self.batcher.held.discard(queue.key)
        if error is not None:
            for batch in self.batcher.remove(lambda batch: batch.destination.lane == queue.key):
                for ticket in batch.tickets:
                    ticket.settle(error)
        self._schedule()

    def _waiting(self, lane: str) -> bool:
        """Whether anybody still waits for what is held in this lane."""
        batches = (batch for batch in self.batcher if batch.destination.lane == lane)
        return any(not ticket.done for batch in batches for ticket in batch.tickets)

    def _schedule(self) -> None:
        """See to it that what has gathered leaves: at once when nothing is under way, or when there is enough
        for a message of its own; else at the end of this turn of the loop.
        """
        if self._link is None:
            self.supervisor.start()
        elif self._draining or self.under_way >= WINDOW:
            pass  # what ends that calls this again
        elif not self.under_way or self.batcher.size > FULL:
            self._flush()
        elif not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        self._flush()

    def _flush(self) -> None:
        """Publish what has gathered, as far as the window and the transport allow."""
        link = self._link
        if link is None or self._draining:
            return
        out = []
        now = time.monotonic()
        before = len(self.unsure)
        while self.under_way < WINDOW:
            batch = self.batcher.take()
            if batch is None:
                break
            publisher, under_way = (
                (self._confirming, self.unconfirmed) if batch.lane else (self._plain, self.unsure)
            )
            mandatory = batch.confirmed or (len(batch.keys) == 1 and batch.destination.key.startswith("p."))
            out.append(
                publisher.frames(
                    encode_batch(batch.parts), batch.keys, persistent=batch.confirmed, mandatory=mandatory
                )
            )
            batch.since = now
            batch.returned = False
            under_way[publisher.tag] = batch
            self.under_way_bytes += batch.size
        if not self._full():
            self._room.set()
        if out:
            self.stats.batches_out += len(out)
            left = len(self.unsure)
            alone = left == 1 > before
            if left > before and not alone:
                out.append(self._question())
            link.write(out[0] if len(out) == 1 else b"".join(out))
            if alone and self._asking is None:
                self._asking = self.loop.call_later(ASK, self._ask)
            if link.unwritten > UNWRITTEN:
                self._draining = True
                self._spawn(self._drain(link))

    async def _drain(self, link: Link) -> None:
        try:
            await link.drain()
        except OSError:
            pass  # the supervisor hears of it too
        finally:
            self._draining = False
            self._schedule()

    def _question(self) -> bytes:
        self._asked.append(self._plain.tag)
        return question(self._plain.number)

    def _ask(self) -> None:
        self._asking = None
        asked = bool(self._asked) and self._asked[-1] == self._plain.tag
        if self._link is not None and self.unsure and not asked:
            self._link.write(self._question())

    def _answered(self) -> None:
        if self._asked:  # else of a link that has been given up
            self._confirm(self.unsure, self._asked.popleft(), True, True)

    def _confirm(self, under_way: dict[int, Batch], tag: int, multiple: bool, ok: bool) -> None:
        if multiple:
            tags = []
            for earlier in under_way:
                if earlier > tag:
                    break
                tags.append(earlier)
        else:
            tags = [tag]
        now = time.monotonic()
        for each in tags:
            batch = under_way.pop(each, None)
            if batch is not None:
                self.under_way_bytes -= batch.size
                self._settle(batch, ok, now)
        if not self._full():
            self._room.set()
        if len(self.batcher):
            self._schedule()

    def _settle(self, batch: Batch, ok: bool, now: float) -> None:
        if batch.returned and batch.confirmed:  # its queue is gone: declare it anew and send again
            queue = batch.destination.queue
            if queue is not None:
                self._declared.pop(queue.key, None)
            for part, ticket in zip(batch.parts, batch.tickets, strict=True):
                if queue is None:
                    ticket.settle(Unroutable(f"nothing is bound to {batch.destination.key}: was it deleted?"))
                elif not ticket.done:
                    self.submit(batch.destination, part[len(batch.destination.target) :], ticket)
            return
        if batch.returned:
            self.stats.lose("no_receiver", batch.count)
        elif ok:
            self.stats.confirmed += batch.count
            if batch.lane:
                self.stats.confirm_took(now - batch.since)
        else:
            self.stats.refused += batch.count
            self._refuse(batch)
            return
        for ticket in batch.tickets:
            ticket.settle(None)

    def _refuse(self, batch: Batch) -> None:
        """A classic queue refuses only when it is full; a quorum queue (which has dead letters) also while it
        has no leader or is being deleted. Not sent again then: what came after it may be in the queue by now.
        """
        queue = batch.destination.queue
        if queue is None or not queue.dead:
            self._fail([batch], ChannelFull(f"the queue of channel {batch.destination.key[2:]!r} is full"))
        elif (asking := self._refused.get(queue.key)) is not None:
            asking.append(batch)
        else:
            self._refused[queue.key] = [batch]
            self._spawn(self._why_refused(queue))

    async def _why_refused(self, queue: Queue) -> None:
        channel = queue.key[2:]
        error: Exception = BrokerUnavailable(
            f"the broker refused an event for channel {channel!r}, whose queue is not full: it has no leader "
            "just now, or was deleted"
        )
        try:
            async with asyncio.timeout(ASK_WHY):
                link = await self.supervisor.link(ASK_WHY)
                async with link.attempt() as wire:
                    ready = (await wire.queue_declare(queue.name, passive=True)).message_count
            # What waits in a queue that was made since says nothing of the one before.
            if ready and self._declared.get(queue.key, math.inf) < self._refused[queue.key][0].since:
                error = ChannelFull(f"the queue of channel {channel!r} is full")
        except ChannelNotFoundEntity:
            self._declared.pop(queue.key, None)
        except Exception as problem:  # of the question alone; the refusal stands
            error = BrokerUnavailable(
                f"the broker refused an event for channel {channel!r} and does not say why: "
                f"{describe(problem)}"
            )
        finally:
            self._fail(self._refused.pop(queue.key), error)

    @staticmethod
    def _fail(batches: list[Batch], error: Exception) -> None:
        for batch in batches:
            for ticket in batch.tickets:
                ticket.settle(error)

    def _returned(self, under_way: dict[int, Batch], message_id: str) -> None:
        batch = under_way.get(int(message_id)) if message_id.isdigit() else None
        if batch is not None:
            batch.returned = True

    def _sweep(self) -> None:
        """Give up tickets past their deadline, and what has waited unsent for longer than the expiry."""
        now = time.monotonic()
        waiting = False
        for batch in (*self.batcher, *self.unconfirmed.values()):
            for ticket in batch.tickets:
                waiting = waiting or not ticket.done
                if not ticket.done and ticket.deadline < now:
                    ticket.give_up(BrokerUnavailable(f"not confirmed in time: {self._state()}"))
        self._sweeper = self.loop.call_later(SWEEP, self._sweep) if waiting else None

    def _state(self) -> str:
        if self._link is None:
            return str(self.supervisor.problem or "no connection to the broker")
        return (
            "the broker has blocked its publishers (memory or disk alarm)"
            if self.blocked
            else "the broker is slow"
        )

    async def _setup(self, link: Link) -> None:
        async with link.attempt() as wire:
            await wire.exchange_declare(self._topology.exchange, exchange_type="direct", durable=True)
        confirms = await link.wire(
            on_confirm=functools.partial(self._confirm, self.unconfirmed),
            on_return=functools.partial(self._returned, self.unconfirmed),
        )
        plain = await link.wire(
            on_answer=self._answered, on_return=functools.partial(self._returned, self.unsure)
        )
        self._confirming, self._plain = (
            Publisher(wire.number, self._topology.exchange, link.frame_max) for wire in (confirms, plain)
        )
        self._link = link
        self.blocked = False
        oldest = time.monotonic() - self._expiry
        expired = self.batcher.remove(lambda batch: not batch.confirmed and batch.since < oldest)
        if expired:
            self.stats.lose("expired", sum(batch.count for batch in expired))
        self._spawn(self._watch(link))
        self._schedule()

    async def _watch(self, link: Link) -> None:
        while not link.lost.done():
            self.blocked = await link.blocked()
            await asyncio.wait([link.lost], timeout=1)

    def _lost(self, link: Link, reason: str) -> None:
        if self._link is not link:
            return
        self._link = None
        self.blocked = False
        self.stats.reconnects += 1
        again = []
        gone = 0
        for batch in (*self.unconfirmed.values(), *self.unsure.values()):
            if batch.confirmed:
                again.append(batch.live())
            else:
                gone += batch.count
                for ticket in batch.tickets:
                    ticket.settle(BrokerUnavailable(f"in flight when the connection was lost: {reason}"))
        for waiting in (self.unconfirmed, self.unsure, self._asked):
            waiting.clear()
        self.under_way_bytes = 0
        self.batcher.put_back([batch for batch in again if batch.count])
        if gone:
            self.stats.lose("in_flight", gone)

    async def flush(self, timeout: float) -> bool:
        """Wait until all that was accepted is confirmed, at most `timeout` seconds; whether it is."""
        deadline = time.monotonic() + timeout
        while self.batcher.count or self.under_way:
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(0.005)
        return True

    async def close(self, timeout: float = 2.0) -> None:
        """Send what has gathered, for at most `timeout` seconds, and disconnect; what is left is lost."""
        if self._link is not None:
            self._flush()
        await self.flush(timeout)
        left = self.batcher.count
        if left:
            self.stats.lose("unsent", left)
        await self.supervisor.close()
        for task in list(self._tasks):
            task.cancel()
        for timer in (self._sweeper, self._asking):
            if timer is not None:
                timer.cancel()
