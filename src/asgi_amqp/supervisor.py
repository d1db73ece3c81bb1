"""Keeps one link to a broker open: which host, when again, and who is told."""

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable
from copy import copy
from typing import Any

from .connection import Link, connect, unasked
from .exceptions import BrokerUnavailable, ConfigurationError, LayerError, describe
from .options import Options

log = logging.getLogger("asgi_amqp")

RETRY_FIRST, RETRY_MOST = 0.1, 3.0  # seconds between rounds over all hosts, doubling, with jitter
STEADY = 1.0  # seconds: a link that is lost sooner counts as an attempt that failed
REPEAT = 5.0  # seconds for which a configuration error is repeated without asking the broker again


class Supervisor:
    """Keeps one link open in the running loop.

    `setup(link)` rebuilds what must be there, `lost(link, reason)` hears of a link's end, `failed(error)` of
    the end of all attempts; `link(timeout)` waits for one. A configuration error ends the attempts only
    before the first link: later it may be a password that is being changed.
    """

    def __init__(
        self,
        options: Options,
        setup: Callable[[Link], Awaitable[None]],
        lost: Callable[[Link, str], None],
        failed: Callable[[LayerError], None] = lambda error: None,
    ) -> None:
        self.options = options
        self.current: Link | None = None
        self.reconnects = 0
        self.problem: LayerError | None = None
        self._setup = setup
        self._lost = lost
        self._failed = failed
        self._task: asyncio.Task[None] | None = None
        self._waiters: dict[asyncio.Future[Link], None] = {}  # in the order in which they came
        self._failed_at = 0.0
        self._closed: LayerError | None = None
        self._generation = 0
        self._targets = deque(options.targets)  # the next to try comes first
        self._targets.rotate(random.randrange(len(options.targets)))  # noqa: S311 - spreads clients over a cluster

    @property
    def trying(self) -> bool:
        """Whether there is a link, or attempts at one."""
        return self._task is not None and not self._task.done()

    @property
    def hopeless(self) -> LayerError | None:
        """What ended all attempts, for good or a moment ago: the broker is not asked again so soon."""
        if self._closed is not None:
            return copy(self._closed)
        ended = self._task is not None and not self.trying
        return copy(self.problem) if ended and time.monotonic() - self._failed_at < REPEAT else None

    def begin(self) -> None:
        """`start`; the error where that is hopeless."""
        if (hopeless := self.hopeless) is not None:
            raise hopeless
        self.start()

    def start(self) -> None:
        """Begin, unless it is under way or hopeless."""
        if not self.trying and self.hopeless is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="asgi_amqp supervisor")

    async def link(self, timeout: float) -> Link:
        """The open link, or the one that opens within `timeout` seconds; BrokerUnavailable,
        ConfigurationError.
        """
        if self.current is not None:
            return self.current
        self.begin()
        waiter: asyncio.Future[Link] = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = None
        try:
            async with asyncio.timeout(timeout):
                return await waiter
        except TimeoutError:
            raise self.unavailable(timeout) from None
        finally:
            del self._waiters[waiter]

    def unavailable(self, timeout: float) -> BrokerUnavailable:
        """What to tell who has waited in vain for that long."""
        return BrokerUnavailable(
            f"no connection to the broker within {timeout:g} s: {self.problem or 'it does not answer'}"
        )

    async def close(self, error: LayerError | None = None) -> None:
        """Disconnect for good; who waits for a link hears `error`."""
        self._closed = error or BrokerUnavailable("the connection was closed")
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._tell(self._closed)

    def abandon(self, error: LayerError) -> None:
        """Cut the connection of an event loop that does not run, from any thread; there will be no other."""
        self._closed = error
        if self.current is not None:
            self.current.abort()

    async def _run(self) -> None:
        attempt = 0
        link: Link | None = None
        try:
            while self._closed is None:
                try:
                    patience = min(4.0, 1 + attempt / 2)
                    link = await self._next(patience)
                    await self._set_up(link, self.options.connect_timeout * 2 * patience)
                except Exception as error:  # whatever `setup` met: to end unseen helps nobody
                    if link is not None:
                        self._lost(link, describe(error))
                        await link.close()
                        link = None
                        # It answers and is of no use, as a broker without a copy of the stream: to the next.
                        self._targets.rotate(-1)
                    hopeless = isinstance(error, ConfigurationError)
                    self.problem = (
                        error if isinstance(error, LayerError) else BrokerUnavailable(describe(error))
                    )
                    if hopeless and not self.reconnects:
                        log.error("Giving up on the broker: %s", error)
                        self._failed_at = time.monotonic()
                        self._failed(self.problem)
                        self._tell(self.problem)
                        return
                    pause = _jittered(REPEAT) if hopeless else _pause(attempt)
                    log.warning("No broker: %s; next attempt in %.1f s", self.problem, pause)
                    attempt = min(attempt + 1, 30)
                    await asyncio.sleep(pause)
                    continue
                began = time.monotonic()
                log.info("Connected to %s", link.target)
                self.current, self.problem = link, None
                self._tell(link)
                reason = await link.watch(self.options.heartbeat)
                self.current = None
                self.reconnects += 1
                self.problem = BrokerUnavailable(f"{link.target}: {reason}")
                log.warning("Lost the connection to %s: %s", link.target, reason)
                self._lost(link, reason)
                await link.close(0.5)
                link = None
                if time.monotonic() - began >= STEADY:
                    attempt = 0
                else:  # it answers, and throws us out: to the next, after a pause
                    self._targets.rotate(-1)
                    await asyncio.sleep(_pause(attempt))
                    attempt = min(attempt + 1, 30)
        finally:
            self.current = None
            if link is not None:
                self._lost(link, "closed")
                await link.close()

    async def _set_up(self, link: Link, seconds: float) -> None:
        """`setup`, for as long as the link lives: what it waits for may never come on one that is lost. A
        step of it may take so many seconds."""

        async def run() -> None:
            with unasked():
                await self._setup(link)

        task = asyncio.get_running_loop().create_task(run())
        try:
            steps = -1
            while not (task.done() or link.lost.done()):
                if steps == link.steps:
                    raise TimeoutError
                steps = link.steps
                either: list[asyncio.Future[Any]] = [task, link.lost]
                await asyncio.wait(either, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if link.lost.done():
            raise BrokerUnavailable(f"{link.target}: {link.lost.result()}")
        task.result()

    async def _next(self, patience: float) -> Link:
        """A link to the first host that answers, each tried once, beginning after the last that failed us."""
        problems: list[LayerError] = []
        for _ in self.options.targets:
            self._generation += 1
            try:
                return await connect(self._targets[0], self.options, self._generation, patience)
            except LayerError as error:
                problems.append(error)
                self._targets.rotate(-1)
        if all(isinstance(problem, ConfigurationError) for problem in problems):
            raise problems[0]
        raise BrokerUnavailable("; ".join(str(problem) for problem in problems))

    def _tell(self, outcome: Link | LayerError) -> None:
        for waiter in self._waiters:
            if waiter.done():
                continue
            if isinstance(outcome, Link):
                waiter.set_result(outcome)
            else:
                waiter.set_exception(copy(outcome))


def _pause(attempt: int) -> float:
    """Seconds until the next round, after so many that failed."""
    return _jittered(min(RETRY_MOST, RETRY_FIRST * 2**attempt))


def _jittered(seconds: float) -> float:
    return seconds * random.uniform(0.5, 1)  # noqa: S311
