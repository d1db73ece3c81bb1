"""Feeds the listeners that are behind: a piece at a time, as their readers take it, from the window or from
the page of the log that has been read for them. The shell of their cursors.

However many there are, the loop is given way to after a moment of it, and each piece goes to another one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from carillon.fanout.hub import Hub, Listener
    from carillon.fanout.replay import Replayer

logger = logging.getLogger(__name__)

MOMENT = 0.002
"""Seconds of feeding after which others have their turn."""

TICK = 0.5


class Feeder:
    """`log` reads what lies before the window; `patience`: seconds that somebody may wait for it."""

    def __init__(self, hub: Hub):
        self.hub = hub
        self.log: Replayer | None = None
        self.patience = 30.0
        self._behind: set[Listener] = set()
        self._ahead: set[Listener] = set()
        self._ready: OrderedDict[Listener, None] = OrderedDict()
        self._feeding: asyncio.Task | None = None
        self._ticking: asyncio.TimerHandle | None = None

    def ready(self, listener: Listener) -> None:
        """Something has changed for this listener: it is fed, where it is behind and its reader has room."""
        if listener.live or listener.ended:
            self._behind.discard(listener)
            return
        self._behind.add(listener)
        self._ready[listener] = None
        loop = asyncio.get_running_loop()
        if self._feeding is None:
            self._feeding = loop.create_task(self._feed())
        if self._ticking is None:
            self._ticking = loop.call_later(TICK, self._tick)

    @property
    def behind(self) -> list[Listener]:
        """Who is behind, or held, now. A copy, made in one step: any thread may ask."""
        return list(self._behind)

    def advanced(self) -> None:
        """The log has been read further: perhaps as far as somebody has come from."""
        if self._ahead:
            ahead, self._ahead = self._ahead, set()
            for listener in ahead:
                self.ready(listener)

    def lose(self, listener: Listener, reason: str, before: int | None = None) -> None:
        """What a listener waits for cannot be had: see Cursor.lose."""
        self._tell(listener, listener.lose(reason, self.hub.position, before))
        self.ready(listener)

    async def _feed(self) -> None:
        begun = time.monotonic()
        try:
            while self._ready:
                listener, _ = self._ready.popitem(last=False)
                try:
                    if not listener.held and not listener.ended and listener.room():
                        self._give(listener)
                except Exception:
                    logger.exception("A listener cannot be brought up to date")
                    listener.failed()
                if time.monotonic() - begun > MOMENT:
                    await asyncio.sleep(0)
                    begun = time.monotonic()
        finally:
            self._feeding = None

    def _give(self, listener: Listener) -> None:
        """One piece."""
        hub = self.hub
        events, recovered, lost, more = listener.feed(
            lambda *wanted: self._read(listener, *wanted), hub.position
        )
        if events:
            form = listener.form
            pieces = [form.piece(event, hub.epoch) for event in events]
            listener.give(form.join(pieces), events[-1].number)
            hub.delivered += len(events)
            listener.fed(sum(map(len, pieces)))
        if recovered:
            listener.owner.recovered(listener.reached(hub.position))
        self._tell(listener, lost)
        page = listener.page
        if page is not None:
            page.moved.set()
        if listener.live:
            self._behind.discard(listener)
            return
        if more or lost:
            self._ready[listener] = None
        if any(stretch.since.number > hub.number for stretch in listener.waits):
            self._ahead.add(listener)
        elif listener.waits and self.log is None:
            self.lose(listener, "retention")
        elif listener.waits and page is None:
            self.log.want(listener)

    def _read(self, listener, groups, since, upto, most):
        window, page = self.hub.window, listener.page
        found = window.between(groups, since, upto, most)
        if found is None and page is not None and since != page.end:
            found = page.between(groups, since, upto, most)
        if found is None:
            return None
        events, reached = found
        return [event for event in events if listener.hears(event)], reached

    def _tell(self, listener, lost):
        for reason, asked in lost:
            if listener.owner is None:
                listener.too_slow(listener.reached(self.hub.position))
            else:
                listener.owner.lost(reason, asked)

    def _tick(self) -> None:
        """Those who have waited, or been too slow, for too long. The loop's time is not needed: a moment."""
        self._ticking = None
        now, end = time.monotonic(), self.hub.position
        for listener in list(self._behind):
            word = listener.tick(now, end, self.patience, listener.ended or listener.room())
            if word == "slow":
                listener.too_slow(listener.reached(end))
            elif word is not None:
                self.lose(listener, word)
            if listener.ended:
                self._behind.discard(listener)
        if self._behind and self._ticking is None:  # else ready() has set it, of who has lost something
            self._ticking = asyncio.get_running_loop().call_later(TICK, self._tick)
