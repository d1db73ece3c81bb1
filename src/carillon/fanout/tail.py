"""The tail: one reader of the event stream in each daphne process, over one connection.

It begins some messages before the end, so that a process that has just started can serve those who were on
the one before; it goes on at its own offset after every reconnect; and it knows a gap when it meets one.

A stream is not synced to disk: a broker that loses power may lose its newest part, and then gives the same
offsets to other events. So a tail that comes back reads the last message once more. Where that is not there,
or is another, the log is not the one that was read: it counts as lost, and a new epoch takes its place.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from asgi_amqp import stream
from asgi_amqp.connection import Link
from asgi_amqp.exceptions import BrokerUnavailable
from asgi_amqp.options import Options
from asgi_amqp.position import Position, first_of, message_of
from asgi_amqp.supervisor import Supervisor
from carillon.events.event import Malformed, unpack
from carillon.fanout.hub import Hub

logger = logging.getLogger(__name__)

NEAREST, BACKLOG = 16, 1024
"""Stream messages before the end that a fresh process reads for its window: the fewest, and the most."""

PREFETCH = 512

FOLLOW = 0.5
"""Seconds between looks at which epoch is current."""

PATIENCE = 2.0
"""Seconds that a replica may be behind what this process has read before its stream counts as cut."""


def stream_name(epoch: str) -> str:
    """The name of the stream that holds the events of an epoch."""
    return f"carillon.events.{epoch}"


async def known(asked: Awaitable):
    """What `asked` answers; where it fails, for whatever reason, the supervisor is to try again later."""
    try:
        return await asked
    except BrokerUnavailable:
        raise
    except Exception as error:
        raise BrokerUnavailable(f"the current epoch is not known: {type(error).__name__}") from error


class Tail:
    """Feeds `hub` from the stream of the current epoch.

    `current()` tells which that is, with a position that its stream had reached (None: there is none yet).
    `on_gap(reason)` is called, after the hub has begun anew, when this process cannot know what its listeners
    have missed: `epoch` or `retention`. `replace(epoch)` is called when the stream of that epoch has lost
    what was read from it: a new epoch is to take its place.
    """

    def __init__(
        self,
        options: Options,
        hub: Hub,
        current: Callable[[], Awaitable[Position | None]],
        on_gap: Callable[[str], None],
        replace: Callable[[str], Awaitable[str]],
    ):
        self.hub = hub
        self.level = asyncio.Event()
        """Set while this process has caught up with what was in the stream when it began."""
        self.malformed = 0
        self._current = current
        self._on_gap = on_gap
        self._replace = replace
        self._reader: stream.StreamReader | None = None
        self._goal = 0
        self._number = 0
        self._last: tuple[int, bytes] | None = None
        """The last message that was read of this epoch."""
        self._verify = False
        """Whether the next message must be the last one again."""
        self._behind: tuple[float, float] | None = None
        """When the stream was first, and last, seen to end before what was read from it."""
        self._following: asyncio.Task[None] | None = None
        self._replacing: asyncio.Task[None] | None = None
        self.supervisor = Supervisor(options, self._attach, self._lost)

    def start(self) -> None:
        self.supervisor.start()
        self._following = asyncio.get_running_loop().create_task(self._follow())

    async def close(self) -> None:
        tasks = [task for task in (self._following, self._replacing) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.supervisor.close()

    @property
    def connected(self) -> bool:
        return self.supervisor.current is not None

    async def _follow(self) -> None:
        """Leave a stream whose epoch is over: nothing comes there any more, and no error says so."""
        while True:
            await asyncio.sleep(FOLLOW)
            link = self.supervisor.current
            if link is None:
                continue  # which epoch it is, _attach() asks anyway
            with suppress(Exception):  # the database is away: what is read goes on
                row = await self._current()
                if row is not None and row.epoch != self.hub.epoch and link is self.supervisor.current:
                    link.give_up(f"epoch {row.epoch} has begun")

    async def _attach(self, link: Link) -> None:
        row = await known(self._current())
        if row is None or not await stream.exists(link, stream_name(row.epoch)):
            raise BrokerUnavailable("there is no event stream yet: runworker makes it")
        epoch, name = row.epoch, stream_name(row.epoch)
        last = self._last if epoch == self.hub.epoch else None
        if self._reader is None or epoch != self.hub.epoch:
            start, fresh = await self._beginning(link, epoch, row.number), True
        elif last is None:
            start, fresh = self._reader.next, False
        else:
            start, fresh = last[0], False
            if await stream.end_of(link, name) < start:
                await self._cut(epoch)
        reader = stream.StreamReader(name, start, self._arrived, prefetch=PREFETCH)
        if fresh:
            before, self._reader = self.hub.epoch, reader
            self._number = 0
            self._last = None
            self.hub.begin(epoch, max(0, first_of(start) - 1))
            if before:
                self._on_gap("epoch")
            self._check_level()
        else:
            self._reader = reader
        self._behind = None
        self._verify = last is not None
        await reader.attach(link)

    async def _cut(self, epoch: str) -> None:
        """The stream of `epoch` ends before what was read from it. Raises BrokerUnavailable: try again, with
        another replica or, when they had their time, with the epoch that takes its place."""
        now = time.monotonic()
        first, latest = self._behind or (now, now)
        if now - latest > 2 * PATIENCE:  # that was another time
            first = now
        self._behind = (first, now)
        if now - first >= PATIENCE:
            logger.error("The event stream of epoch %s has lost its newest part", epoch)
            await known(self._replace(epoch))
        raise BrokerUnavailable(f"the stream of epoch {epoch} ends before what was read from it")

    async def _beginning(self, link: Link, epoch: str, reached: int) -> int:
        """Where a process that knows nothing of this stream begins: up to `BACKLOG` messages before its end,
        which must not lie before the offset that it once had reached.

        A message may hold one event or, after a burst, a thousand: clients wait while this is read, so it
        ends where half the window would be full. What lies before, a replay fetches for who asks for it.
        """
        name = stream_name(epoch)
        # runworker's first message is in a stream before anyone can know its epoch.
        end = start = await stream.end_of(link, name)
        if reached and end < message_of(reached):
            raise BrokerUnavailable(f"the stream of epoch {epoch} ends before where it once was")
        self._goal = end
        self.level.clear()
        size, back = 0, NEAREST
        while start > 0 and back <= BACKLOG:
            first, one = await stream.first_from(link, name, max(0, end - back))
            size += one * (start - first)  # a guess: as large as the oldest of them
            if size > self.hub.window.limit // 2 and back > NEAREST:
                break
            start = first
            if first > end - back:  # there is nothing older
                break
            back *= 2
        return max(0, start)

    def _lost(self, link: Link, reason: str) -> None:
        if self._reader is not None:
            self._reader.detach()

    def _arrived(self, messages) -> None:
        if self._verify and not self._is_the_same_log(messages):
            return
        if not messages:
            return
        self._last = messages[-1]
        events = []
        for message, body in messages:
            try:
                number, found = unpack(body, message)
            except Malformed:
                self.malformed += 1
                logger.error("Stream message %d is no batch of events: skipped", message)
                continue
            if number > self._number + 1 and self._number:
                logger.error("%d messages of the stream are gone", number - self._number - 1)
                self.hub.deliver(events)
                events = []
                self.hub.begin(self.hub.epoch, max(0, first_of(message) - 1))
                self._on_gap("retention")
            # Two relays that overlapped may have given a number twice.
            self._number = max(number, self._number)
            events += found
        self.hub.deliver(events)
        self.hub.advance(first_of(messages[-1][0]))
        if not self.level.is_set():
            self._check_level()

    def _is_the_same_log(self, messages) -> bool:
        """Takes the last message, which was asked for once more, out of `messages`. One that lies behind it
        comes first where retention has passed meanwhile: then the numbers tell what is missing."""
        self._verify = False
        if messages[0][0] > self._last[0]:
            return True
        if messages[0] == self._last:
            del messages[0]
            return True
        logger.error("Message %d of epoch %s is another than it was", messages[0][0], self.hub.epoch)
        self._reader.detach()
        self._replacing = asyncio.get_running_loop().create_task(self._leave(self.hub.epoch))
        return False

    async def _leave(self, epoch: str) -> None:
        """Have an epoch replaced whose log is no longer the one that was read; then read the new one."""
        while True:
            try:
                await self._replace(epoch)
            except Exception as error:
                logger.warning("A new epoch cannot be begun: %s", type(error).__name__)
                await asyncio.sleep(FOLLOW)
            else:
                break
        if (link := self.supervisor.current) is not None:
            link.give_up("the stream is another than it was")

    def _check_level(self):
        if self._reader is not None and (self._reader.next or 0) > self._goal:
            self.level.set()
