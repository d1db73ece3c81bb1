"""The tail: one reader of the event stream in each daphne process, over one connection.

It begins some messages before the end, so that a process that has just started can serve those who were on
the one before; it goes on behind the number that it has read after every reconnect; and it knows a gap when
it meets one. What it decides is in `core`.

A stream is not synced to disk: a broker that loses power may lose its newest part, and then gives the same
offsets to other events. Numbers are never given twice, so a tail looks for its place by number.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from asgi_amqp import BrokerUnavailable, Link, Options, Position, Supervisor, stream
from carillon import tracing
from carillon.fanout.core import TailCore
from carillon.fanout.hub import Hub
from carillon.fanout.log import locate, stream_name
from carillon.metrics import names

logger = logging.getLogger(__name__)

NEAREST, BACKLOG = 16, 1024
"""Stream messages before the end that a fresh process reads for its window: the fewest, and the most."""

PREFETCH = 512

FOLLOW = 0.5
"""Seconds between looks at which epoch is current."""


class Tail:
    """Feeds `hub` from the stream of the current epoch.

    `current()` tells which that is, with a number that its log had reached (None: there is none yet).
    `on_gap(reason)` is called, after the hub has begun anew, when this process cannot know what its listeners
    have missed: `epoch` or `retention`.
    """

    def __init__(
        self,
        options: Options,
        hub: Hub,
        current: Callable[[], Awaitable[Position | None]],
        on_gap: Callable[[str], None],
    ):
        self.hub = hub
        self.core = TailCore()
        self.level = asyncio.Event()
        """Set while this process has caught up with what was in the log when it began."""
        self._current = current
        self._on_gap = on_gap
        self._reader: stream.StreamReader | None = None
        self._look = asyncio.Event()
        self._following: asyncio.Task[None] | None = None
        self.supervisor = Supervisor(options, self._attach, self._lost)

    def start(self) -> None:
        self.supervisor.start()
        self._following = asyncio.get_running_loop().create_task(self._follow())

    async def close(self) -> None:
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        await self.supervisor.close()

    async def _follow(self) -> None:
        """Leave a stream whose epoch is over."""
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._look.wait(), FOLLOW)
            self._look.clear()
            link = self.supervisor.current
            if link is None:
                continue  # which epoch it is, _attach() asks anyway
            with suppress(Exception):  # the database is away: what is read goes on
                if self.core.over(await self._current()):
                    link.give_up("another epoch has begun")

    async def _attach(self, link: Link) -> None:
        try:
            current = await self._current()
        except Exception as error:
            raise BrokerUnavailable(f"the current epoch is not known: {type(error).__name__}") from error
        if current is None or not await stream.exists(link, stream_name(current.epoch)):
            raise BrokerUnavailable("there is no event stream yet: runworker makes it")
        core, name = self.core, stream_name(current.epoch)
        core.attached(current)
        if core.place is None:
            self.level.clear()
            start = await self._beginning(link, name)
        else:
            start = await locate(link, name, core.last or 0, core.place)
            if start != core.place.offset:
                logger.error("The stream of epoch %s is not what was read: it has lost its end", core.epoch)
        self._reader = stream.StreamReader(name, start, self._arrived, prefetch=PREFETCH)
        await self._reader.attach(link)

    async def _beginning(self, link: Link, name: str) -> int:
        """Where a process that knows nothing of this stream begins: up to `BACKLOG` messages before its end.

        A message may hold one event or, after a burst, a thousand: clients wait while this is read, so it
        ends where half the window would be full. What lies before, a replay fetches for who asks for it.
        """
        end = start = await stream.end_of(link, name)
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
        for what, *about in self.core.arrived(messages):
            match what, about:
                case "events", (events,):
                    spans = tracing.begin("fan-out", events)
                    self.hub.deliver(events)
                    tracing.end(spans)
                    if self.level.is_set():
                        names.EVENT_AGE.observe(max(0.0, time.time() - events[0].stamp / 1000))
                case "reached", (number,):
                    self.hub.advance(number)
                case "jump", (before, after):
                    self.hub.window.jump(before, after)
                    self.hub.advance(after)
                case "begin", (number, reason):
                    self.hub.begin(self.core.epoch, number)
                    if reason:
                        self._on_gap(reason)
                case "malformed", (offset,):
                    logger.error("Stream message %d is no batch of events: skipped", offset)
                case "over", (epoch,):
                    logger.info("The log goes on in epoch %s", epoch)
                    self._look.set()
        if self.core.level:
            self.level.set()
