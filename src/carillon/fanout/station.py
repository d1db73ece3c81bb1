"""A process's end of the delivery: its hub, the tail that feeds it, and replays. One for each event loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from weakref import WeakKeyDictionary

from asgi_amqp import Position
from carillon.conf import conf
from carillon.events import broker, heads
from carillon.fanout.hub import Hub
from carillon.fanout.replay import Replayer
from carillon.fanout.tail import Tail
from carillon.fanout.window import Window
from carillon.metrics import names, shared
from carillon.metrics.sampled import Grown, sampled

logger = logging.getLogger(__name__)


class StreamUnavailable(Exception):
    """This process does not read the event stream yet: come back later."""


class Station:
    """`gap` hears, by reason, when this process cannot know what its listeners missed."""

    def __init__(self) -> None:
        self.hub = Hub(Window(conf.WINDOW_BYTES))
        self.gaps: list[Callable[[str], None]] = []
        self.tail: Tail | None = None
        self.replayer: Replayer | None = None
        self._events, self._doubles, self._delivered, self._scans = Grown(), Grown(), Grown(), Grown()
        sampled(self)
        shared.beside("history", self.hub.history.pack)

    def sample(self) -> None:
        """Its part of the metrics."""
        hub = self.hub
        names.FANOUT_POSITION.set(hub.number)
        names.FANOUT_LEVEL.set(self.tail is not None and self.tail.level.is_set())
        names.FANOUT_EVENTS.inc(self._events.by(hub.read))
        names.FANOUT_DOUBLES.inc(self._doubles.by(hub.doubles))
        names.DELIVERED.inc(self._delivered.by(hub.delivered))
        names.REPLAYS.inc(self._scans.by(self.replayer.scans if self.replayer else 0))
        names.WINDOW_BYTES.set(hub.window.size)
        behind = hub.feeder.behind
        names.SOCKETS_BEHIND.set(sum(not each.held for each in behind))
        names.SOCKETS_WAITING.set(sum(each.waiting for each in behind))

    def start(self) -> None:
        """Begin to tail the stream, over reconnects, until close(). Where the setting STREAM is None,
        in unit tests, the hub hears only what it is given."""
        if conf.STREAM is None:
            if not self.hub.epoch:
                self.hub.begin("none", 0)
        elif self.tail is None:
            options = broker.options("carillon tail")
            self.tail = Tail(options, self.hub, heads.current, self._gap)
            self.replayer = self.hub.feeder.log = Replayer(
                broker.options("carillon replay"), self.hub.feeder, scans=conf.RESUME_SCANS
            )
            self.hub.feeder.patience = conf.RESUME_SECONDS
            self.tail.start()

    async def ready(self, timeout: float) -> None:
        """Until this process has caught up with the stream for the first time. Raises StreamUnavailable."""
        self.start()
        if self.tail is not None and not self.tail.level.is_set():
            try:
                async with asyncio.timeout(timeout):
                    await self.tail.level.wait()
            except TimeoutError:
                raise StreamUnavailable("the event stream cannot be read yet") from None

    @property
    def position(self) -> Position:
        """Behind the last event that was written to this process's listeners."""
        return self.hub.position

    def _gap(self, reason: str) -> None:
        names.GAPS.labels(reason).inc()
        logger.error(
            "What happened meanwhile is not known (%s): %d listeners are told",
            reason,
            len(self.hub.listeners()),
        )
        for told in self.gaps:
            told(reason)

    async def close(self) -> None:
        if self.tail is not None:
            await self.tail.close()
        if self.replayer is not None:
            await self.replayer.close()


_stations: WeakKeyDictionary[asyncio.AbstractEventLoop, Station] = WeakKeyDictionary()


def station() -> Station:
    """The one of the running loop. It does nothing until it is started."""
    loop = asyncio.get_running_loop()
    found = _stations.get(loop)
    if found is None:
        found = _stations[loop] = Station()
    return found
