"""The sending half of a session, in one event loop: writes what its outbox gives, and tells it what became of
it.

Two channels: one with confirms, one per batch, for what somebody waits for, and one without them for all
else. On that the broker is asked whether it has dealt with what came before: at once under load, where the
answer sets the pace, and a moment later for a batch alone, whose way it would slow down (a confirm is made
before the message is handed on, and takes a sixth of the time that the message takes).
"""

import asyncio
import functools
import re
import time
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from aiormq import ChannelNotFoundEntity

from .codec import Message, encode, encode_batch
from .config import Config
from .connection import Link
from .exceptions import BrokerUnavailable, ChannelFull, ConfigurationError, LayerError, describe, is_gone
from .lanes import Ticket
from .mailboxes import Parcel
from .outbox import BATCH_BYTES, Outbox
from .queues import declare_queue
from .supervisor import Supervisor
from .tickets import FutureTicket, Unwatched
from .topology import Destination, Queue
from .wire import Wire

ASK = 0.002  # seconds after which the broker is asked for a batch that left alone
UNWRITTEN = 1 << 20  # bytes in the socket's buffer beyond which nothing more is written
ASK_WHY = 2.0  # seconds for the question why a queue refused something
TICK = 0.1  # seconds between looks at deadlines, while anyone waits
_TOO_LARGE = re.compile(r"larger than (?:configured )?max size (\d+)")


class Sender:
    """See the module. What waits is bounded in bytes: where there is no room, senders wait in their order."""

    def __init__(self, config: Config, on_lost: Callable[[], None]) -> None:
        self.loop = asyncio.get_running_loop()
        self.stats = config.stats
        self.outbox = Outbox(config.stats, config.buffer_bytes, config.max_message_bytes, config.expiry)
        self.supervisor = Supervisor(config.options.named("publishes"), self._setup, self._lost, self._failed)
        self._topology = config.topology
        self._on_lost = on_lost
        self._link: Link | None = None
        self._confirming: Wire
        self._plain: Wire
        self._closed: LayerError | None = None
        self._scheduled = self._draining = False
        # Senders that wait for room, and those for whom confirmed events leave none: they hold up no other.
        self._queues: tuple[deque[asyncio.Event], deque[asyncio.Event]] = deque(), deque()
        self._ticking: asyncio.TimerHandle | None = None
        self._asking: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def send(self, destination: Destination, data: bytes, timeout: float) -> None:
        """Confirmed: back when the broker has it. Else: back when it is accepted to leave in this turn of
        the loop.
        """
        if self._queues[destination.confirmed] or self.outbox.full(destination):
            timeout = await self._room(destination, timeout)
        if self._link is not None and not destination.confirmed and not self.outbox.crowded:
            self.outbox.accept(destination, data, None, time.monotonic(), watched=False)
            if not self._scheduled:
                self._schedule()
            return
        ticket = FutureTicket(1, timeout)
        self.submit(destination, data, ticket, watched=False)
        await self._settled(ticket)

    async def send_many(self, events: list[tuple[Destination, bytes]], timeout: float) -> None:
        """All under way at once; back when the broker has the confirmed ones. The first error is raised after
        all are settled.
        """
        for destination, _ in events:
            if self._queues[destination.confirmed] or self.outbox.full(destination):
                timeout = await self._room(destination, timeout)
                break
        ticket = FutureTicket(len(events), timeout)
        for destination, data in events:
            self.submit(destination, data, ticket, watched=False)
        await self._settled(ticket)

    async def _settled(self, ticket: FutureTicket) -> None:
        try:
            await ticket.settled()
        except asyncio.CancelledError:
            self.outbox.cancelled = True  # until the next tick what it waited for takes up room
            raise

    async def _room(self, destination: Destination, timeout: float) -> float:
        """Until there is room, one after the other; the seconds that are left."""
        deadline = time.monotonic() + timeout
        mine, queue = asyncio.Event(), self._queues[destination.confirmed]
        queue.append(mine)
        try:
            async with asyncio.timeout(timeout):
                while queue[0] is not mine or self.outbox.full(destination):
                    self.supervisor.begin()
                    mine.clear()
                    await mine.wait()
            return deadline - time.monotonic()
        except TimeoutError:
            raise BrokerUnavailable(
                f"{self._state()}: {self.outbox.buffered} bytes wait to be sent or confirmed, the most that "
                "buffer_bytes allows"
            ) from None
        finally:
            queue.remove(mine)
            self._wake()

    def _wake(self) -> None:
        """Whoever is first in a queue looks whether there is room."""
        for queue in self._queues:
            if queue:
                queue[0].set()

    def submit(
        self, destination: Destination, data: bytes, ticket: Ticket | None, *, watched: bool = True
    ) -> None:
        """Accept an event from this loop's thread; its ticket is settled once the broker has confirmed it, or
        without `watched`, for one that is sent at most once, when it leaves.
        """
        try:
            hopeless = self._closed or (self.supervisor.hopeless if self._link is None and ticket else None)
            if hopeless is not None:
                raise hopeless
            self.outbox.accept(destination, data, ticket, time.monotonic(), watched=watched)
        except LayerError as error:
            if ticket is None:
                self.stats.lose("unsent" if self._closed else "too_large", 1)
            else:
                ticket.settle(error)
            return
        if ticket is not None and self._ticking is None:
            self._ticking = self.loop.call_later(TICK, self._tick)
        if self.outbox.to_declare:
            self._do(self.outbox.to_declare, self._declare)
        if not self._scheduled:
            self._schedule()

    def _do(self, queues: list[Queue], call: Callable[[Queue], Coroutine[Any, Any, None]]) -> None:
        """What the outbox wants for these queues."""
        for queue in queues:
            self._spawn(call(queue))
        queues.clear()

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = self.loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # Writing

    def _schedule(self) -> None:
        """See to it that what has gathered leaves: at once when nothing is under way, or when there is enough
        for a message of its own; else at the end of this turn of the loop.
        """
        if self._link is None:
            self.supervisor.start()
        elif not self.outbox.takable:
            pass  # what ends that calls this again
        elif not self.outbox.under_way or self.outbox.size > BATCH_BYTES:
            self._write()
        elif not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        self._write()

    def _write(self) -> None:
        """Write what may leave, as far as the socket takes it."""
        link, outbox = self._link, self.outbox
        while link is not None and not self._draining and outbox.takable:
            resting = not outbox.under_way
            batches = outbox.take(time.monotonic())
            out = []
            try:
                for batch in batches:
                    wire = self._confirming if batch.confirmed else self._plain
                    out.append(
                        wire.publish(
                            self._topology.exchange,
                            batch.keys,
                            encode_batch(batch.parts),
                            batch.tag,
                            persistent=batch.lane.again,
                            mandatory=batch.mandatory,
                            message_id=batch.identity,
                        )
                    )
            except Exception as error:  # the tags that were given out are not those that the broker counts
                return link.give_up(f"an event could not be written: {error!r}")
            link.write(out[0] if len(out) == 1 else b"".join(out))
            if not (resting and len(batches) == 1):
                self._ask()
            elif self._asking is None and not batches[0].confirmed:
                self._asking = self.loop.call_later(ASK, self._ask)
            if link.unwritten > UNWRITTEN:
                self._draining = True
                self._spawn(self._drain(link))
        self._wake()

    async def _drain(self, link: Link) -> None:
        try:
            while link.unwritten > UNWRITTEN // 2:
                if (await asyncio.wait([link.lost], timeout=0.004))[0]:
                    break
        finally:
            self._draining = False
            self._write()

    def _ask(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            self._asking = None
        if self._link is not None and self.outbox.ask():
            self._plain.ask()

    # What the broker says

    def _answered(self) -> None:
        self.outbox.answered()
        self._go_on()

    def _confirm(self, tag: int, multiple: bool, ok: bool) -> None:
        self.outbox.confirm(tag, multiple, ok, time.monotonic())
        self._do(self.outbox.to_declare, self._declare)
        self._do(self.outbox.to_ask, self._why_refused)
        self._go_on()

    def _go_on(self) -> None:
        if self.outbox.takable and not self._scheduled:
            self._schedule()
        self._wake()

    async def _declare(self, queue: Queue) -> None:
        """Declare a queue, then let go what is held for it."""
        while self._closed is None:
            link = None
            try:
                link = await self.supervisor.link(1.0)
                await declare_queue(link, self._topology, queue)
            except ConfigurationError as error:
                return self.outbox.undeclared(queue, error)
            except (BrokerUnavailable, TimeoutError):  # it may be blocked, and not say no
                await asyncio.sleep(TICK)
            except Exception as error:
                await asyncio.sleep(0.05)  # a lost link is known to be one a moment later
                if link is not None and link is self._link and not link.lost.done():
                    problem = f"queue {queue.name} cannot be declared: {describe(error)}"
                    return self.outbox.undeclared(queue, ConfigurationError(problem))
            else:
                self.outbox.declared(queue, time.monotonic())
                return self._go_on()

    async def _why_refused(self, queue: Queue) -> None:
        channel, gone = queue.key[2:], False
        error: Exception = BrokerUnavailable(
            f"the broker refused an event for channel {channel!r}, whose queue is not full: it has no leader "
            "just now, or was deleted"
        )
        try:
            async with asyncio.timeout(ASK_WHY):
                link = await self.supervisor.link(ASK_WHY)
                found = await link.attempt(lambda channel: channel.queue_declare(queue.name, passive=True))
            # What waits in a queue that was made since says nothing of the one before.
            declared, left = self.outbox.refused_since(queue)
            if found.message_count and declared < left:
                error = ChannelFull(f"the queue of channel {channel!r} is full")
        except ChannelNotFoundEntity as problem:
            gone = is_gone(problem)
        except Exception as problem:  # of the question alone; the refusal stands
            error = BrokerUnavailable(
                f"the broker refused an event for channel {channel!r} and does not say why: "
                f"{describe(problem)}"
            )
        finally:
            self.outbox.refused(queue, error, gone=gone)

    def _tick(self) -> None:
        """Give up tickets past their deadline."""
        waiting = self.outbox.tick(time.monotonic(), self._state())
        self._ticking = self.loop.call_later(TICK, self._tick) if waiting else None
        self._wake()

    def _state(self) -> str:
        if self._link is None:
            return str(self.supervisor.problem or "no connection to the broker")
        blocked = "the broker has blocked its publishers (memory or disk alarm)"
        return blocked if self.blocked else "the broker is slow"

    @property
    def blocked(self) -> bool:
        return self._link is not None and self._link.blocked

    # The link

    async def _setup(self, link: Link) -> None:
        exchange = self._topology.exchange
        await link.attempt(lambda channel: channel.exchange_declare(exchange, durable=True))
        outbox = self.outbox
        self._confirming = await link.wire(
            on_confirm=self._confirm, on_return=functools.partial(outbox.returned, confirmed=True)
        )
        self._plain = await link.wire(
            on_answer=self._answered, on_return=functools.partial(outbox.returned, confirmed=False)
        )
        self._link = link
        outbox.up(time.monotonic())
        self._write()

    def _lost(self, link: Link, reason: str) -> None:
        if self._link is not link:
            return
        self._link = None
        self.stats.reconnects += 1
        self.outbox.lost(reason)
        too_large = _TOO_LARGE.search(reason)
        if too_large is not None:
            self.outbox.shrink(int(too_large[1]))
        self._on_lost()

    def _failed(self, error: LayerError) -> None:
        """There will be no link: who waits hears why, and who waits for room."""
        self.outbox.fail(error)
        self._wake()

    async def flush(self, timeout: float) -> bool:
        """Wait until nothing is left to be sent or confirmed, at most `timeout` seconds; whether that is so,
        and nothing was lost meanwhile."""
        deadline, lost = time.monotonic() + timeout, self.stats.lost.total()
        while not self.outbox.idle:
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(0.005)
        return self.stats.lost.total() == lost

    async def close(self, error: LayerError, timeout: float = 2.0) -> None:
        """Send what has gathered, for at most `timeout` seconds, and disconnect; what is left is lost, and
        who waits for it hears `error`.
        """
        try:
            if self._link is not None:
                self._write()
            if self._link is not None or self.supervisor.problem is None:
                await self.flush(timeout)
        finally:
            self._closed = error
            self.outbox.close(error)
            self._link = None  # nothing is accepted on the way out
            for task in list(self._tasks):
                task.cancel()
            for timer in (self._ticking, self._asking):
                if timer is not None:
                    timer.cancel()
            await self.supervisor.close(error)
            self._wake()


@dataclass(frozen=True, slots=True)
class Forward:
    """A normal channel as a member of a group."""

    channel: str
    sender: Sender
    destination: Destination
    timeout: float

    def put(self, parcel: Parcel, messages: list[Message], now: float) -> None:
        for message in messages:
            if self.sender.outbox.full(self.destination):
                self.sender.stats.lose("overflow", 1, self.channel)
            else:
                ticket = Unwatched(self.timeout, self.sender.stats)
                self.sender.submit(self.destination, encode(message), ticket)
