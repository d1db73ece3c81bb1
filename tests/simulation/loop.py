"""Time that passes only when nobody has anything to do, and chance that a seed decides.

One event loop runs everything: all processes, the broker, the database and the clients. It never sleeps: when
no callback is ready, the clock jumps to the next timer. So a simulated hour takes as long as its work takes,
and the same seed gives the same run. Every part draws from a source of chance of its own (`Chance.of`), so
that what one part draws does not depend on what another did.
"""

import asyncio
import collections
import contextlib
import contextvars
import heapq
import itertools
import logging
import random
from collections.abc import Callable, Iterator
from unittest import mock

START = 1_700_000_000.0  # what time.time() says when a run begins


class Stuck(AssertionError):
    """Everything waits for something that will not come."""


class _Call:
    """What `call_soon` and `call_at` give back."""

    __slots__ = ("arguments", "callback", "context")

    def __init__(self, callback: Callable, arguments: tuple, context: contextvars.Context | None) -> None:
        self.callback: Callable | None = callback
        self.arguments = arguments
        self.context = context if context is not None else contextvars.copy_context()

    def cancel(self) -> None:
        self.callback, self.arguments = None, ()

    def cancelled(self) -> bool:
        return self.callback is None


class Loop(asyncio.AbstractEventLoop):
    """What tasks, futures and timers ask of a loop, without sockets, signals and threads. Timers of the same
    time go off in the order in which they were set."""

    def __init__(self) -> None:
        self._now = 0.0
        self._ready: collections.deque[_Call] = collections.deque()
        self._timers: list[tuple[float, int, _Call]] = []
        self._numbers = itertools.count()

    def time(self) -> float:
        return self._now

    def wall(self) -> float:
        """Seconds since 1970."""
        return START + self._now

    def call_soon(self, callback, *args, context=None):
        call = _Call(callback, args, context)
        self._ready.append(call)
        return call

    def call_at(self, when, callback, *args, context=None):
        call = _Call(callback, args, context)
        heapq.heappush(self._timers, (when, next(self._numbers), call))
        return call

    def call_later(self, delay, callback, *args, context=None):
        return self.call_at(self._now + delay, callback, *args, context=context)

    def create_future(self):
        return asyncio.Future(loop=self)

    def create_task(self, coro, *, name=None, context=None):
        return asyncio.Task(coro, loop=self, name=name, context=context)

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def call_exception_handler(self, context) -> None:
        """A task that nobody asked has failed."""
        logging.getLogger("asyncio").error(context["message"], exc_info=context.get("exception"))

    def run_until_complete(self, future):
        """An error of a callback ends the run: it is one of the model or of what it drives."""
        asyncio._set_running_loop(self)  # as its documentation has it: for who writes a loop
        try:
            while not future.done():
                self._turn()
            return future.result()
        finally:
            asyncio._set_running_loop(None)

    def _turn(self) -> None:
        """What is ready now, without what that makes ready; then what is due."""
        ready, timers = self._ready, self._timers
        for _ in range(len(ready)):
            call = ready.popleft()
            if call.callback is not None:
                call.context.run(call.callback, *call.arguments)
        while timers and (timers[0][0] <= self._now or timers[0][2].callback is None or not ready):
            when, _, call = heapq.heappop(timers)
            if call.callback is not None:
                self._now = max(self._now, when)
                ready.append(call)
        if not ready:
            raise Stuck("nobody has anything to do, and nobody waits for a time")


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
        for task in asyncio.all_tasks(loop):
            task.cancel()
        with contextlib.suppress(Exception):
            loop.run_until_complete(loop.create_task(asyncio.sleep(0.1)))
