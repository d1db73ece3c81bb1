"""What lies before the window: read again from the stream, for everyone who waits for it at once.

A pass takes along those who want about the same part of the log. It begins at the oldest position among
theirs and goes on page by page; a page is what came from the stream last, and each rider is fed from it as
its reader takes it. A rider leaves where the window has the rest. The pass goes at the pace of its readers,
up to a point: one that is slower than the others leaves it, and has another when it wants more.

There are few passes at a time, and a log may take minutes to read. So a pass that somebody waits for has a
turn and no more: its riders go on with another one. Every second pass begins with whoever wants the newest,
for those are soon done, and every other one with whoever has waited for the longest.
"""

import asyncio
import logging
import sys
from collections.abc import Mapping

from asgi_amqp import LayerError, Link, Options, Supervisor, stream
from carillon.events.event import Malformed, unpack
from carillon.events.seen import Seen
from carillon.fanout.cursor import AHEAD
from carillon.fanout.feeder import Feeder
from carillon.fanout.hub import Listener
from carillon.fanout.log import NOWHERE, Reading, locate, stream_name
from carillon.fanout.window import Window

logger = logging.getLogger(__name__)

CHUNK = 8
"""Stream messages in hand, half a megabyte each at most, while the riders' readers take what is in them."""

REACH = 4096
"""Numbers by which the places of riders of one pass may lie apart from the place that it is for: who is near
waits for no more than that to be read for who is far. Half a full page; or five hundred pages, which is
a second or some, where each message has one event."""

TURN = 2.0
"""Seconds after which a pass that has come to its aim ends at its next page, where others wait: many times
what it takes to begin another."""

LATE = 1.0
"""Seconds that a pass waits for its slow riders once another has read the page."""

STALE = 0.1
"""Seconds between looks whether the hub has come over a jump of the log."""

STILL = 10.0
"""Seconds that it waits for anyone to read on, while nobody else waits for a pass, and for the log to say
more."""


def together(places: Mapping[Listener, float], newest: bool) -> tuple[set[Listener], float]:
    """Of those who want what lies behind these places, the longest waiting first, who rides on the next pass,
    and the place that it is for: the newest, or that of whoever has waited for the longest. Who wants
    something near it comes along. Pure."""
    if not places:
        return set(), 0
    aim = max(places.values()) if newest else next(iter(places.values()))
    return {who for who, place in places.items() if abs(place - aim) <= REACH}, aim


class Page(Window):
    """A part of the log."""

    def __init__(self, start: int):
        super().__init__(sys.maxsize)
        self.moved = asyncio.Event()
        self.mark(start)


class Replayer:
    """Reads pages for listeners of `feeder`: at most `scans` passes at once, whoever comes later waits for
    another."""

    def __init__(self, options: Options, feeder: Feeder, *, scans: int = 2):
        self.scans = 0
        self._feeder = feeder
        self._hub = feeder.hub
        self._most = scans
        self._options = options
        self._wanting: dict[Listener, None] = {}
        self._riding: set[Listener] = set()
        self._starting = False
        self._newest = False
        self._tasks: set[asyncio.Task] = set()

    def want(self, listener: Listener) -> None:
        """This listener needs what lies before the window."""
        if listener not in self._riding:
            self._wanting.setdefault(listener)
            self._dispatch()

    def _dispatch(self):
        if self._wanting and not self._starting and len(self._tasks) < self._most:
            self._starting = True  # a turn of the loop later: whoever wants it by then comes along
            task = asyncio.get_running_loop().create_task(self._scan())
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task):
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("A pass over the stream failed", exc_info=task.exception())
        self._dispatch()

    def _rides(self, listener):
        """Whether it still needs more than the window has."""
        if listener.live or listener.ended:
            return False
        wanted = listener.wanted()
        return wanted < self._hub.number and not self._hub.window.covers(wanted)

    def _board(self):
        """Who rides on the pass that begins now, and the place that it is for; the others wait on."""
        places = {each: each.wanted() for each in self._wanting if self._rides(each)}
        self._newest = not self._newest
        riders, aim = together(places, self._newest)
        self._wanting = {each: None for each in places if each not in riders}
        self._riding |= riders
        self._starting = False
        self._dispatch()
        return riders, aim

    async def _scan(self):
        """One pass over the stream, with all who want about the same of it now."""
        riders, aim = self._board()
        if not riders:
            return
        self.scans += 1
        epoch = self._hub.epoch
        messages: asyncio.Queue = asyncio.Queue()
        name = stream_name(epoch)
        reader = stream.StreamReader(name, 0, messages.put_nowait, prefetch=CHUNK, manual=True)
        start = min(rider.wanted() for rider in riders)
        attached: list[Link] = []

        async def attach(link: Link) -> None:
            reader.next = await locate(link, name, start)
            await reader.attach(link)
            attached.append(link)

        def lost(link: Link, reason: str) -> None:
            if link in attached:  # not one that could not be read from: the supervisor tries the next broker
                messages.put_nowait(None)

        supervisor = Supervisor(self._options, attach, lost)
        try:
            await supervisor.link(AHEAD)
            await self._ride(epoch, start, aim, riders, messages, reader)
        except (LayerError, TimeoutError):
            pass
        finally:
            reader.detach()
            await supervisor.close()
            for rider in riders:
                self._let_go(rider, "unavailable")

    def _let_go(self, rider, reason: str = "", before: int | None = None):
        """It rides no more; with a reason, because what it wants cannot be had."""
        rider.page = None
        self._riding.discard(rider)
        if reason and self._rides(rider):
            self._feeder.lose(rider, reason, before)
        self._feeder.ready(rider)

    def _gone(self, riders, oldest: int):
        """Who has not heard all up to there has missed something."""
        for rider in [rider for rider in riders if self._rides(rider) and rider.wanted() < oldest]:
            riders.discard(rider)
            self._let_go(rider, "retention", oldest)

    async def _ride(self, epoch, start, aim, riders, messages, reader):
        """Page after page, until nobody needs more. Who is among `riders` in the end could not be served."""
        seen = Seen()
        reading = Reading()
        loop = asyncio.get_running_loop()
        turn = loop.time() + TURN
        while riders:
            async with asyncio.timeout(STILL):
                chunk = await messages.get()
            if chunk is None:
                return
            page = Page(start)
            for offset, body in chunk:
                await asyncio.sleep(0)  # a full one takes some milliseconds
                if self._hub.epoch != epoch:
                    return
                try:
                    found, missing = reading.take(unpack(body))
                except Malformed:
                    logger.error("Stream message %d is no batch of events: skipped", offset)
                    continue
                if reading.last is None:
                    continue
                if missing:
                    self._gone(riders, missing)
                if reading.jump is not None:
                    page.jump(*reading.jump)
                    for rider in riders:
                        rider.carry(reading.carried)
                    self._gone(riders, NOWHERE + 1)
                page.extend([event for event in found if seen.add(event.id)])
                page.mark(reading.last)
            while page.jumped(self._hub.number) and any(map(self._rides, riders)):  # noqa: ASYNC110
                await asyncio.sleep(STALE)  # the hub has yet to learn that the log lost where it is
            await self._read(page, riders)
            # Not before it has come to those whom it is for: they would never get on where all goes slowly.
            over = page.end > aim and loop.time() >= turn
            if over and any(map(self._rides, self._wanting)):
                for rider in riders:
                    self._let_go(rider)
                riders.clear()
            start = page.end
            reader.acknowledge()

    async def _read(self, page, riders):
        """Until the riders have read the page; those who no longer need a page, or are late, leave."""
        for rider in riders:
            rider.page = page
            self._feeder.ready(rider)
        loop = asyncio.get_running_loop()
        latest, still = None, loop.time() + STILL
        while True:
            reading = {rider for rider in riders if self._rides(rider) and rider.wanted() < page.end}
            if not reading:
                break
            if latest is None and len(reading) < len(riders):
                latest = loop.time() + LATE
            page.moved.clear()
            try:
                async with asyncio.timeout_at(min(latest or still, loop.time() + LATE)):
                    await page.moved.wait()
                still = loop.time() + STILL
            except TimeoutError:
                if self._wanting or loop.time() >= (latest or still):
                    break
        for rider in [rider for rider in riders if rider in reading or not self._rides(rider)]:
            riders.discard(rider)
            self._let_go(rider)

    async def close(self) -> None:
        self._most = 0
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
