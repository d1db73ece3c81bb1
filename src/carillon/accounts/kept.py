"""What another server says about itself: asked for when it is needed, and kept."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from carillon.accounts import fetch

logger = logging.getLogger(__name__)

AGAIN = 10.0
"""Seconds between two questions, whatever happens."""

FRESH = 300.0
"""Seconds after which it is asked again, while what it said still counts."""

KEPT = 24 * 3600.0
"""Seconds for which it counts while there is no answer: after them, what was said may have been taken back
for a reason."""

WAIT = fetch.SECONDS + 1.0
"""Seconds that one waits for an answer."""

WAITERS = 2
"""Threads of a process that may wait at a time: a server has few of them."""

Said = TypeVar("Said")


class Away(Exception):
    """Nothing is known now. The text says why."""


class Kept(Generic[Said]):
    """What `read` makes of the JSON at `url`; `read` raises ValueError for what is none. Any thread may use
    it."""

    def __init__(
        self, url: str, read: Callable[[dict[str, Any]], Said], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.problem = ""
        """Why the last question had no answer; "" when it had one."""
        self._url = url
        self._read = read
        self._clock = clock
        self._lock = threading.Lock()
        self._asking: Future[None] | None = None
        self._asked = self._answered = float("-inf")
        self._said: Said | None = None
        self._waiters = threading.BoundedSemaphore(WAITERS)

    @property
    def said(self) -> Said | None:
        """What counts; None: nothing does."""
        return self._said if self._clock() - self._answered < KEPT else None

    @property
    def due(self) -> bool:
        """Whether refresh() would ask, or does."""
        return self._asking is not None or self._clock() - self._asked >= AGAIN

    @property
    def stale(self) -> bool:
        """Whether it is time to ask, though nobody has to wait for it."""
        old = self._said is not None and self._clock() - self._answered >= FRESH
        return old and self.due and self._asking is None

    def refresh(self) -> Future[None]:
        """Asks, in a thread of its own, if it is due: done when there is an answer, or none."""
        with self._lock:
            if self._asking is not None:
                return self._asking
            done: Future[None] = Future()
            if not self.due:
                done.set_result(None)
                return done
            self._asked = self._clock()
            self._asking = done
        threading.Thread(target=self._ask, args=(done,), name="identity", daemon=True).start()
        return done

    def wait(self) -> None:
        """refresh(), for a thread that waits for it. Raises Away when others wait, or it takes long."""
        if not self._waiters.acquire(blocking=False):
            raise Away("it is being asked")
        try:
            self.refresh().result(WAIT)
        except TimeoutError:
            raise Away("it is being asked") from None
        finally:
            self._waiters.release()

    def _ask(self, done: Future[None]) -> None:
        problem, said = "", self._said
        try:
            said = self._read(fetch.get(self._url))
        except (fetch.Unreachable, ValueError) as error:
            problem = str(error)
        except Exception:
            problem = "its answer cannot be read"
            logger.exception("The answer of an identity provider cannot be read")
        if problem and problem != self.problem:
            logger.warning("An identity provider has no answer: %s", problem)
        with self._lock:
            self.problem = problem
            if not problem:
                self._said, self._answered = said, self._clock()
            self._asking = None
        done.set_result(None)
