"""Positions older than the window: read again from the stream, for everyone who waits for it at once.

A scan begins at the oldest position wanted and ends where the window takes over; there each rider is served
the rest from the window and joins the live events, in one step. A resume is whole or it is refused:
`Unrecoverable` says why.
"""

import asyncio
import logging

from asgi_amqp import stream
from asgi_amqp.connection import Link, Options, Supervisor
from asgi_amqp.exceptions import LayerError
from asgi_amqp.position import Position, first_of, message_of
from carillon.delivery.event import unpack
from carillon.delivery.hub import Hub, Listener
from carillon.delivery.seen import Seen
from carillon.delivery.tail import stream_name

logger = logging.getLogger(__name__)

OVERLAP = 64
"""Messages read before the oldest position, to know a double whose first copy lies just before it."""

SCANS = 2
"""Scans at once; whoever comes later waits for the next one."""

PATIENCE = 30.0
"""Seconds that a resume may take before the client is told to fetch its state anew."""

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


class Rider:
    """One listener that waits for its past."""

    __slots__ = ("done", "events", "groups", "listener", "since")

    def __init__(self, listener, groups, since, done):
        self.listener = listener
        self.groups = groups
        self.since = since
        self.done = done


class Replayer:
    """Resumes listeners of `hub`. `held(listener)` tells how many bytes still wait for its reader."""

    def __init__(self, options: Options, hub: Hub, *, budget: int = 1024 * 1024):
        self.hub = hub
        self.scans = 0
        self._options = options
        self._budget = budget
        self._riders: list[Rider] = []
        self._tasks: set[asyncio.Task] = set()

    async def resume(self, listener: Listener, groups, since: Position, join) -> None:
        """Write to the listener what it missed of `groups` behind `since`, then call `join()` in the same
        step: it subscribes. Raises Unrecoverable; join() has not been called then."""
        hub = self.hub
        if since.epoch != hub.epoch:
            raise Unrecoverable("epoch")
        if since.offset > hub.offset and not await hub.reached(since.offset, AHEAD):
            raise Unrecoverable("ahead")
        if since.epoch != hub.epoch:
            raise Unrecoverable("epoch")
        if hub.replay(listener, groups, since.offset):
            join()
            return
        done = asyncio.get_running_loop().create_future()
        rider = Rider(listener, groups, since, done)
        self._riders.append(rider)
        self._dispatch()
        try:
            async with asyncio.timeout(PATIENCE):
                while True:
                    reached = await done
                    # From here on nothing is awaited until the listener has joined.
                    if since.epoch != hub.epoch:
                        raise Unrecoverable("epoch")
                    if hub.replay(listener, groups, reached):
                        join()
                        return
                    # The window has moved on meanwhile: one more round from where this one came to.
                    rider.since = Position(since.epoch, reached)
                    done = rider.done = asyncio.get_running_loop().create_future()
                    self._riders.append(rider)
                    self._dispatch()
        except TimeoutError:
            raise Unrecoverable("timeout") from None
        finally:
            done.cancel()

    def _dispatch(self):
        if self._riders and len(self._tasks) < SCANS:
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
        """One pass over the stream; every rider's future ends with the offset it came to, or
        Unrecoverable."""
        self.scans += 1
        epoch = self.hub.epoch
        messages: asyncio.Queue = asyncio.Queue()
        reader = stream.Reader(
            stream_name(epoch),
            max(0, message_of(min(rider.since.offset for rider in riders)) - OVERLAP),
            messages.put_nowait,
            prefetch=CHUNK,
            manual=True,
        )
        reader.next = None
        attached: list[Link] = []

        async def attach(link: Link) -> None:
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
        first = None
        last_number = 0
        while riders := [rider for rider in riders if not rider.done.done()]:
            chunk = await messages.get()
            if chunk is None:
                return
            if first is None:
                first = chunk[0][0]
                for rider in riders:
                    if first > message_of(rider.since.offset):
                        _settle(rider, Unrecoverable("retention"))
            for message, body in chunk:
                number, found = unpack(body, message)
                if number > last_number + 1 and last_number:
                    self._fail(riders, "retention")
                    return
                last_number = max(number, last_number)
                events = [event for event in found if seen.add(event.id)]
                reached = events[-1].offset if events else first_of(message)
                for rider in riders:
                    if not rider.done.done():
                        self._serve(rider, events)
                if self.hub.epoch != epoch:
                    self._fail(riders, "epoch")
                if self.hub.window.covers(reached):
                    for rider in riders:
                        _settle(rider, max(reached, rider.since.offset))
                    return
            await self._wait_for_readers(riders)
            reader.acknowledge()

    def _serve(self, rider, events):
        wanted = [
            event
            for event in events
            if event.offset > rider.since.offset
            and event.group in rider.groups
            and rider.listener.hears(event)
        ]
        if wanted:
            form = rider.listener.form
            pieces = [form.piece(event, rider.since.epoch) for event in wanted]
            rider.listener.write(form.join(pieces), wanted[-1].offset)

    async def _wait_for_readers(self, riders):
        """The scan goes at the pace of the slowest reader, up to a point: then that one is cut off by its
        budget."""
        for _ in range(50):
            if all(rider.listener.held < self._budget // 2 for rider in riders):
                return
            await asyncio.sleep(0.02)

    def _fail(self, riders, reason):
        for rider in riders:
            _settle(rider, Unrecoverable(reason))

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _settle(rider, outcome):
    if rider.done.done():
        return
    if isinstance(outcome, Exception):
        rider.done.set_exception(outcome)
        rider.done.exception()
    else:
        rider.done.set_result(outcome)
