"""Time that passes only when nobody has anything to do, and chance that a seed decides.

One event loop runs everything: all processes, the broker, the database and the clients. It never sleeps: when
no callback is ready, the clock jumps to the next timer. So a simulated hour takes as long as its work takes,
and the same seed gives the same run. Every part draws from a source of chance of its own (`Chance.of`), so
that what one part draws does not depend on what another did.
"""

import asyncio
import contextlib
import itertools
import random
import selectors
from collections.abc import Iterator
from unittest import mock

START = 1_700_000_000.0  # what time.time() says when a run begins


class _Selector(selectors.BaseSelector):
    """Waits for nothing: it lets the clock jump instead."""

    def __init__(self) -> None:
        self.now = 0.0
        self._map: dict = {}

    def register(self, fileobj, events, data=None):
        key = self._map[fileobj] = selectors.SelectorKey(fileobj, 0, events, data)
        return key

    def unregister(self, fileobj):
        return self._map.pop(fileobj)

    def get_map(self):
        return self._map

    def select(self, timeout=None):
        if timeout is None:
            raise Stuck("nobody has anything to do, and nobody waits for a time")
        self.now += max(0.0, timeout)
        return []


class Stuck(AssertionError):
    """Everything waits for something that will not come."""


class Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._clock = _Selector()
        super().__init__(self._clock)
        # Not finer than what the selector adds up, or a timer that is due by less would spin.
        self._clock_resolution = 1e-9

    def time(self) -> float:
        return self._clock.now

    def wall(self) -> float:
        """Seconds since 1970."""
        return START + self._clock.now


class Chance(random.Random):
    """A source of chance for one part of the run."""

    @classmethod
    def of(cls, seed: int, part: str) -> "Chance":
        return cls(f"{seed}/{part}")

    def often(self, share: float) -> bool:
        """True in this share of all cases."""
        return self.random() < share


@contextlib.contextmanager
def simulated(seed: int) -> Iterator[Loop]:
    """A loop whose clock is what `time.monotonic` and `time.time` say, and whose seed decides all chance."""
    loop = Loop()
    chance = Chance.of(seed, "everything else")
    numbers = itertools.count(1)
    own = random.getstate()
    random.seed(f"{seed}/module")
    try:
        with (
            mock.patch("time.monotonic", loop.time),
            mock.patch("time.time", loop.wall),
            mock.patch("os.urandom", chance.randbytes),
            mock.patch("secrets.token_hex", lambda size: f"{next(numbers):0{2 * size}x}"),
        ):
            yield loop
    finally:
        random.setstate(own)
        with contextlib.suppress(Exception):
            for task in asyncio.all_tasks(loop):
                task.cancel()
            loop.run_until_complete(asyncio.wait_for(asyncio.sleep(0), 1))
        loop.close()
