"""Follows one job's output: what there is by REST, then live, gaps filled, until the job has ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

from carillon.client import rest
from carillon.client.endpoint import Endpoint
from carillon.client.errors import Away, NotThere, UnknownJob
from carillon.client.link import Socket, Tell
from carillon.client.protocol import RELATIONS, Backoff, Event
from carillon.client.sequence import Sequence, lines_with, output_of

FINAL = frozenset({"successful", "failed", "error", "canceled"})
PAGE = 200
POLL = 15.0  # seconds of silence after which the API is asked: the loss of the very last event shows no gap
GAP_PATIENCE = 5.0  # seconds that a gap may stay before it is called one
ASK_AGAIN = 2.0
CUT_FROM = 1000  # characters; shorter output that ends with an ellipsis means it
END_PATIENCE = 5.0  # seconds that the last events of an ended job may still take


async def follow(
    where: Endpoint,
    job_id: int,
    write: Callable[[str], None],
    *,
    on_link: Tell | None = None,
    wait: float = 0.0,
    give_up: float | None = None,
    search: str = "",
) -> str:
    """
    Writes a job's output in order and without holes until the job has ended.

    :param search: only the lines that have it, with their numbers
    :return: the job's final status
    :raises ClientError: the job is not there, or the link has ended
    """
    tell = on_link or (lambda words: None)
    follower = _Follower(where, job_id, write, tell, search)
    job = await _first(follower, wait)
    if job["status"] in FINAL:
        follower.status = str(job["status"])
        await follower.end(asyncio.sleep, _due(job), give_up)
        tell(f"loaded: {follower.written}")
        return follower.status
    family = job.get("event_family")
    groups: dict[str, list[str | int]] = {"jobs": ["status_changed", "summary"]}
    if family in RELATIONS:
        groups[family] = [job_id]
    look = asyncio.Event()
    look.set()

    def back() -> None:
        follower.behind = True
        look.set()

    socket = Socket(where, on_link=tell, on_reconnect=back, wait=wait, give_up=give_up)
    async with socket:
        for error in (await socket.subscribe(groups)).errors:
            tell(f"the server says: {error}")
        return await _until_the_end(follower, socket, look, give_up)


def _due(job: Any) -> float:
    """Seconds that the last events of an ended job may still take. By this machine's clock: one that is wrong
    waits too shortly, or END_PATIENCE."""
    try:
        ended = datetime.fromisoformat(job["finished"])
    except (KeyError, TypeError, ValueError):
        return 0.0
    return min(END_PATIENCE - (time.time() - ended.timestamp()), END_PATIENCE)


async def _first(follower: _Follower, wait: float) -> Any:
    """The job, asked for again for `wait` seconds while nobody answers."""
    backoff, loop = Backoff(), asyncio.get_running_loop()
    deadline = loop.time() + wait
    while True:
        try:
            return await follower.job()
        except Away as away:
            delay = backoff.next()
            if loop.time() + delay > deadline:
                raise
            follower.tell(f"{away}; trying again in {delay:.1f} s")
            await asyncio.sleep(delay)


async def _until_the_end(
    follower: _Follower, socket: Socket, look: asyncio.Event, give_up: float | None
) -> str:
    events = aiter(socket)
    upcoming = asyncio.ensure_future(anext(events))

    async def hear(seconds: float) -> None:
        """Takes what comes meanwhile, if the socket still stands."""
        nonlocal upcoming
        await asyncio.sleep(seconds)
        while upcoming.done() and upcoming.exception() is None:
            event = upcoming.result()
            upcoming = asyncio.ensure_future(anext(events))
            follower.take(event)
            await asyncio.sleep(0)

    try:
        while True:
            if look.is_set():
                look.clear()
                try:
                    await follower.look()
                    if follower.behind and follower.status not in FINAL:
                        follower.behind = False
                        follower.tell(f"live: {follower.written} so far")
                except Away as away:  # the socket stands: what it brings is shown, and the API asked again
                    follower.is_behind(away)
                    asyncio.get_running_loop().call_later(ASK_AGAIN, look.set)
            if follower.status in FINAL:
                return await follower.end(hear, END_PATIENCE, give_up)
            looked = asyncio.ensure_future(look.wait())
            patience = GAP_PATIENCE if follower.sequence.has_gap else POLL
            await asyncio.wait([upcoming, looked], timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            looked.cancel()
            if upcoming.done():
                try:
                    event = upcoming.result()
                except StopAsyncIteration:
                    raise Away("the server said goodbye before the job ended") from None
                upcoming = asyncio.ensure_future(anext(events))
                if follower.take(event):
                    look.set()
            elif not look.is_set():
                follower.give_up_gap()
                look.set()
    finally:
        upcoming.cancel()


class _Follower:
    def __init__(
        self, where: Endpoint, job_id: int, write: Callable[[str], None], tell: Tell, search: str
    ) -> None:
        self.sequence = Sequence()
        self.behind = True  # until all that there is has been written
        self._search = search
        self._stored = 0  # the newest event there was when the search began
        self._lines = 0
        self.status = ""
        self.final_counter: int | None = None
        self._where = where
        self._job_id = job_id
        self._write = write
        self.tell = tell

    def take(self, event: Event) -> bool:
        """Takes a live event in. Whether the API should be asked now, as events are missing."""
        if event.job_id != self._job_id:
            return False
        if event.family != "jobs":
            stdout = str(event.payload.get("stdout", ""))
            if len(stdout) > CUT_FROM and stdout.endswith("…"):
                return True  # a frame too long was cut, the API has all of it
            had_gap = self.sequence.has_gap
            self._put(self.sequence.add([event.payload]))
            return self.sequence.has_gap and not had_gap
        if "status" in event.payload:
            self.status = str(event.payload["status"])
            return False
        counter = event.payload.get("final_counter")
        self.final_counter = counter if isinstance(counter, int) else None
        return False

    async def job(self) -> Any:
        return await self._get("")

    async def _get(self, path: str, **query: str | int) -> Any:
        try:
            return await rest.get(self._where, f"/api/v2/jobs/{self._job_id}/{path}", **query)
        except NotThere:
            raise UnknownJob(
                f"{self._where.url} has no job {self._job_id}, or does not show it to this token"
            ) from None

    async def look(self) -> None:
        """Asks the API for what is missing, and how the job is."""
        job = await self.job()
        await self.fetch()
        self.status = str(job["status"])

    @property
    def written(self) -> str:
        """How much that is, in words."""
        lines = f"{self._lines:,} line{'' if self._lines == 1 else 's'}"
        return f"{lines} with {self._search!r}" if self._search else lines

    async def find(self) -> None:
        """
        Asks the API for what has the text; what comes after that is looked through here. After an error it
        goes on behind what was found.
        """
        if not self._stored:
            newest = (await self._get("events/", order_by="-counter", page_size=1))["results"]
            self._stored = newest[0]["counter"] if newest else 0
        while self.sequence.last < self._stored:
            query = {"counter__gt": self.sequence.last, "counter__lte": self._stored}
            answer = await self._get("events/", search=self._search, page_size=PAGE, **query)
            self._put(answer["results"])
            self.sequence.start(answer["results"][-1]["counter"] if answer.get("next") else self._stored)

    async def fetch(self) -> None:
        """Fetches every event after the last one written."""
        if self._search:
            await self.find()
        while True:
            answer = await self._get("events/", counter__gt=self.sequence.last, page_size=PAGE)
            results: list[dict[str, Any]] = answer["results"]
            before = self.sequence.last
            self._put(self.sequence.add(results))
            if not results:
                return
            if self.sequence.last == before:
                # The API has events, but not the next one.
                self.give_up_gap()
            if answer.get("next") is None:
                return

    async def end(
        self, hear: Callable[[float], Awaitable[None]], patience: float, give_up: float | None
    ) -> str:
        """
        The job has ended: writes what is left of its output, which may come after the last status.

        :param patience: seconds that it may still take
        :param give_up: seconds to ask again for what the API does not answer; None: for ever
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + patience
        lost_at, reached = 0.0, -1
        while True:
            late = loop.time() >= deadline
            try:
                await self.fetch()
            except Away as away:
                if self.sequence.last > reached:
                    lost_at, reached = loop.time(), self.sequence.last
                if give_up is not None and loop.time() + ASK_AGAIN - lost_at > give_up:
                    raise
                self.is_behind(away)
                await hear(ASK_AGAIN)
                continue
            reached = -1
            missing = 0 if self.final_counter is None else self.final_counter - self.sequence.last
            if late and missing > 0:
                self.tell(f"{missing} events at the end never came")
            if late or (self.final_counter is not None and missing <= 0):
                return self.status
            await hear(0.3)

    def is_behind(self, away: Away) -> None:
        self.behind = True
        self.tell(f"behind: {away}; asking again in {ASK_AGAIN:g} s")

    def give_up_gap(self) -> None:
        missing, due = self.sequence.skip()
        if missing:
            self.tell(f"{missing} events are missing before event {self.sequence.last}")
        self._put(due)

    def _put(self, due: list[dict[str, Any]]) -> None:
        for event in due:
            text = lines_with(event, self._search) if self._search else output_of(event)
            self._lines += text.count("\n")
            if text:
                self._write(text)
