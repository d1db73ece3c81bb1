"""Positions older than the window: read again from the stream, for everyone who waits for it at once.

A scan begins at the oldest position wanted and ends where the window takes over; there each rider is served
the rest from the window and joins the live events, in one step. A listener that takes its past in pieces is
given the next one when there is room; one that is slower than a scan leaves it, and has another when there is
room again. A resume is whole or it is refused: `Unrecoverable` says why.
"""

import asyncio
import logging
from collections.abc import Iterator

from asgi_amqp import stream
from asgi_amqp.connection import Link
from asgi_amqp.exceptions import LayerError
from asgi_amqp.options import Options
from asgi_amqp.position import Position
from asgi_amqp.supervisor import Supervisor
from carillon.events.event import Malformed, unpack
from carillon.events.seen import Seen
from carillon.fanout.hub import Hub, Listener
from carillon.fanout.log import Reading, locate, stream_name

logger = logging.getLogger(__name__)

AHEAD = 5.0
"""Seconds that this process may be behind the one a client comes from."""

CHUNK = 32
"""Stream messages in hand while the riders' sockets take what was written."""


class Unrecoverable(Exception):
    """What was missed cannot be had, or not in time: the client must fetch its state anew. `reason` is one
    word."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


class Past:
    """What one listener has not heard yet: `groups` behind `since`, which moves on as it hears them. When
    `closed`, nothing more of it is written."""

    __slots__ = ("closed", "groups", "since")

    def __init__(self, groups: frozenset[bytes], since: Position):
        self.groups = groups
        self.since = since
        self.closed = False


class Rider:
    """One listener in a scan. `done`: its past has moved on to where the window, or another scan, has the
    rest."""

    __slots__ = ("done", "listener", "past")

    def __init__(self, listener: Listener, past: Past):
        self.listener = listener
        self.past = past
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Replayer:
    """Resumes listeners of `hub`: at most `scans` at once, whoever comes later waits for the next; each may
    take `patience` seconds before its riders are told to fetch their state anew. `budget`: bytes that a
    reader may leave waiting."""

    def __init__(
        self,
        options: Options,
        hub: Hub,
        *,
        patience: float = 30.0,
        scans: int = 2,
        budget: int = 1024 * 1024,
    ):
        self.hub = hub
        self._patience = patience
        self._most = scans
        self.scans = 0
        self._options = options
        self._budget = budget
        self._riders: list[Rider] = []
        self._tasks: set[asyncio.Task] = set()

    async def resume(self, listener: Listener, past: Past, join) -> None:
        """Write to the listener what it missed, then call `join()` in the same step: it subscribes. Raises
        Unrecoverable; join() has not been called then."""
        hub = self.hub
        if past.since.epoch != hub.epoch:
            raise Unrecoverable("epoch")
        while True:
            if past.since.number > hub.number and not await hub.reached(past.since.number, AHEAD):
                raise Unrecoverable("ahead")
            if await from_window(hub, listener, past, join):
                return
            rider = Rider(listener, past)
            self._riders.append(rider)
            self._dispatch()
            try:
                async with asyncio.timeout(self._patience):
                    await rider.done
            except TimeoutError:
                raise Unrecoverable("timeout") from None
            finally:
                rider.done.cancel()

    def _dispatch(self):
        if self._riders and len(self._tasks) < self._most:
            riders, self._riders = self._riders, []
            task = asyncio.get_running_loop().create_task(self._scan(riders))
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task):
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("A scan of the stream failed", exc_info=task.exception())
        self._dispatch()

    async def _scan(self, riders):
        """One pass over the stream; every rider's future ends, or holds Unrecoverable."""
        self.scans += 1
        epoch = self.hub.epoch
        messages: asyncio.Queue = asyncio.Queue()
        name = stream_name(epoch)
        reader = stream.StreamReader(name, 0, messages.put_nowait, prefetch=CHUNK, manual=True)
        attached: list[Link] = []

        async def attach(link: Link) -> None:
            reader.next = await locate(link, name, min(rider.past.since.number for rider in riders))
            await reader.attach(link)
            attached.append(link)

        def lost(link: Link, reason: str) -> None:
            if link in attached:  # not one that could not be read from: the supervisor tries the next broker
                messages.put_nowait(None)

        supervisor = Supervisor(self._options, attach, lost)
        try:
            await supervisor.link(AHEAD)
            await self._ride(epoch, riders, messages, reader)
        except LayerError:
            self._fail(riders, "unavailable")
        finally:
            reader.detach()
            await supervisor.close()
            self._fail(riders, "unavailable")

    async def _ride(self, epoch, riders, messages, reader):
        seen = Seen()
        reading = Reading()
        while riders:
            chunk = await messages.get()
            if chunk is None:
                return
            for offset, body in chunk:
                try:
                    found, missing = reading.take(unpack(body))
                except Malformed:
                    logger.error("Stream message %d is no batch of events: skipped", offset)
                    continue
                if reading.last is None:
                    continue
                if missing or reading.jump:
                    for rider in riders:
                        number = rider.past.since.number
                        if number < missing:
                            _settle(rider, Unrecoverable("retention"))
                        rider.past.since = Position(epoch, reading.carried(number))
                events = [event for event in found if seen.add(event.id)]
                reached = reading.last
                riders = [rider for rider in riders if not rider.done.done()]
                for rider in riders:
                    self._serve(rider, events, Position(epoch, reached))
                if self.hub.epoch != epoch:
                    self._fail(riders, "epoch")
                if self.hub.window.covers(reached):
                    for rider in riders:
                        _settle(rider)
                    return
                await self._wait_for_readers(riders)
            reader.acknowledge()

    def _serve(self, rider, events, reached: Position):
        past = rider.past
        if past.closed or reached.number <= past.since.number:
            return
        self.hub.tell(
            rider.listener,
            [
                event
                for event in events
                if event.number > past.since.number
                and event.group in past.groups
                and rider.listener.hears(event)
            ],
        )
        past.since = reached

    async def _wait_for_readers(self, riders):
        """The scan goes at the pace of the slowest reader, up to a point: then that one leaves it, or is cut
        off by its budget."""
        for _ in range(100):
            slow = [rider for rider in riders if rider.listener.held >= self._budget // 2]
            if not slow:
                return
            await asyncio.sleep(0.01)
        for rider in slow:
            if rider.listener.piece is not None:
                _settle(rider)

    def _fail(self, riders, reason):
        for rider in riders:
            _settle(rider, Unrecoverable(reason))

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def from_window(hub: Hub, listener: Listener, past: Past, join) -> bool:
    """Write what the window has of a listener's past, and join(). False: it does not have all of it. Raises
    Unrecoverable."""
    while True:
        await listener.room()
        # From here on nothing is awaited until a piece has been written, or the listener has joined.
        if past.since.epoch != hub.epoch:
            raise Unrecoverable("epoch")
        events = hub.missed(listener, past.groups, past.since.number)
        if events is None:
            return False
        pieces = list(_pieces(events, listener.piece))
        if len(pieces) <= 1:
            hub.tell(listener, events)
            join()
            return True
        for piece in pieces:
            hub.tell(listener, piece)
            past.since = Position(past.since.epoch, piece[-1].number)
            await listener.room()
            if past.since.epoch != hub.epoch:
                raise Unrecoverable("epoch")


def _pieces(events: list, most: int | None) -> Iterator[list]:
    """The events, cut where a piece has reached `most` bytes."""
    if most is None:
        yield events
        return
    piece, size = [], 0
    for event in events:
        piece.append(event)
        size += event.size
        if size >= most:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece


def _settle(rider, problem: Unrecoverable | None = None):
    if rider.done.done():
        return
    if problem is None:
        rider.done.set_result(None)
    else:
        rider.done.set_exception(problem)
        rider.done.exception()
