"""Composed schedules on three real brokers: the load, the faults, the books, and a line of JSON for each.

python -m tests.chaos compose --seeds 20 --seed-from 100
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tests.chaos.clock import Clock
from tests.chaos.composed.checker import Verdict, check
from tests.chaos.composed.faults import Faults, Void, states
from tests.chaos.composed.listeners import (
    Client,
    EventStream,
    Publisher,
    Record,
    SlowReader,
    Version1,
    Version2,
)
from tests.chaos.composed.schedule import CLOCKS, PROCESSES, Schedule, schedule
from tests.chaos.site import Network, Site
from tests.chaos.three_brokers import Brokers, three_brokers

ENOUGH = 5_000
"""Confirmed events of a schedule, at least."""
PUBLISHERS = 3
SLOW = 4000
"""Bytes a second that the slow reader is sent, at most."""
WHOLE_WITHIN = 330.0
"""Seconds from the end of the faults until three brokers run, and the stack serves. A RabbitMQ that starts
while its peers do waits for them ten times, 30 s each."""
LEVEL_WITHIN = 60.0
"""Seconds from the last confirm until every client has everything."""


@dataclass
class Outcome:
    """What became of one schedule. `void`: why it proves nothing; `failures`: what should not be so."""

    schedule: Schedule
    void: str = ""
    failures: list[str] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    verdict: Verdict | None = None
    seconds: float = 0.0
    level: float = 0.0
    longest: float = 0.0

    def story(self) -> str:
        """In words, for who reads why a seed failed."""
        lines = [
            f"seed {self.schedule.seed}:",
            *(f"  planned {words}" for words in self.schedule.words()),
            *(f"  seen {words}" for words in self.seen),
            *([f"  VOID: {self.void}"] if self.void else []),
            *(f"  WRONG: {failure}" for failure in self.failures),
        ]
        return "\n".join(lines)

    def row(self) -> dict:
        """For the record."""
        found = {"composed": self.schedule.seed, "faults": self.schedule.kinds}
        if self.void:
            return {**found, "void": self.void}
        if self.verdict is None:
            return {**found, "failures": self.failures}
        sums = ("lost", "unseen", "doubled", "disordered", "unknown")
        later = [each for each in self.verdict.accounts if not each.client.startswith("v1")]
        return {
            **found,
            "confirmed": self.verdict.total,
            "heard": self.verdict.sum("seen"),
            **{name: self.verdict.sum(name) for name in sums},
            "told": sum(each.told for each in later),
            "announcements": sum(each.announcements for each in later),
            "told for nothing": sum(each.for_nothing for each in later),
            "longest publish, s": round(self.longest, 1),
            "level after, s": round(self.level, 1),
            "seconds": round(self.seconds, 1),
            **({"failures": self.failures} if self.failures else {}),
        }


class Stage:
    """Three brokers and the processes, up for as many schedules as are run on them."""

    def __init__(self, site: Site, brokers: Brokers, clock: Clock, records: Path) -> None:
        self.site, self.brokers, self.clock, self.records = site, brokers, clock, records

    # What the brokers say of themselves, by the management API of any that answers

    def _ask(self, path: str) -> list[dict]:
        url = urlsplit(self.site.values["CARILLON_AMQP_URL"])
        login = base64.b64encode(f"{url.username}:{unquote(url.password)}".encode()).decode()
        for state in states(*self.brokers.containers.values()):
            request = urllib.request.Request(
                f"http://{next(iter(state.addresses.values()))}:15672/api/{path}",
                headers={"Authorization": f"Basic {login}"},
            )
            with (
                contextlib.suppress(OSError, ValueError),
                urllib.request.urlopen(request, timeout=3) as answer,
            ):
                return json.load(answer)
        return []

    def names(self) -> dict[str, str]:
        """Who is called what in a schedule that begins now."""
        queues = {
            each["name"]: each.get("leader") or each["node"]
            for each in self._ask("queues/carillon")
            if each.get("type") in ("quorum", "stream") and ("leader" in each or "node" in each)
        }
        queue = next((node for name, node in queues.items() if name.endswith(".notifications")), None)
        if queue is None:
            raise Void("which broker leads the queue is not known")
        streams = [node for name, node in queues.items() if name.startswith("carillon.events.")]
        nodes = [queue, *streams, *sorted(self.brokers.containers)]
        ordered = [self.brokers.containers[node] for node in dict.fromkeys(nodes)]
        names = dict(zip(("leader", "second", "third"), ordered, strict=True))
        return {**names, **{name: self.site.containers(name)[0] for name in PROCESSES}}

    async def whole(self) -> str:
        """Until three brokers run in one cluster and the stack serves; or what is still missing."""
        deadline = time.monotonic() + WHOLE_WITHIN
        missing = "no broker answers"
        while time.monotonic() < deadline:
            nodes = await asyncio.to_thread(self._ask, "nodes")
            running = [node for node in nodes if node.get("running") and not node.get("partitions")]
            if len(running) == len(self.brokers.containers):
                break
            missing = f"of three brokers {len(running)} run in one cluster"
            await asyncio.sleep(0.5)
        else:
            return missing
        try:
            await asyncio.to_thread(self.site.await_serving, deadline - time.monotonic() + 5)
        except AssertionError as error:
            return str(error)
        return ""

    # One schedule

    async def play(self, drawn: Schedule) -> Outcome:
        """Everybody listens, the faults come and go, everybody is level: what the books say then."""
        outcome = Outcome(drawn)
        begun = time.monotonic()
        if missing := await self.whole():
            outcome.void = f"before it began: {missing}"
            return outcome
        record = Record(self.records / f"seed-{drawn.seed}.jsonl")
        tag = f"{drawn.seed} {time.time()}"
        line, slow_line = Network(self.site.address), Network(self.site.address)
        await line.start()
        await slow_line.start()
        clients = self._clients(record, tag, line.port, slow_line.port)
        publishers = [
            Publisher(self.site, record, f"p{number}", tag, ENOUGH // PUBLISHERS)
            for number in range(PUBLISHERS)
        ]
        try:
            for client in clients:
                client.start()
            async with asyncio.timeout(30):
                await asyncio.gather(*(client.ready.wait() for client in clients))
            slow_line.rate = SLOW
            await self._suffer(outcome, line, publishers)
            slow_line.rate = None
            confirmed = {each.name: each.confirmed for each in publishers}
            outcome.longest = max(each.longest for each in publishers)
            level = time.monotonic()
            waits = [client for client in clients if not isinstance(client, Version1)]
            while time.monotonic() - level < LEVEL_WITHIN:
                if all(client.level(confirmed) for client in waits):
                    break
                await asyncio.sleep(0.05)
            outcome.level = time.monotonic() - level
            await asyncio.sleep(0.2)  # for what comes twice
        except Void as void:
            outcome.void = str(void)
        except (AssertionError, TimeoutError) as error:
            outcome.failures.append(f"{type(error).__name__}: {error}")
        finally:
            for task in filter(None, (each.task for each in publishers)):
                task.cancel()
            await asyncio.gather(*(client.stop() for client in clients))
            await line.stop()
            await slow_line.stop()
        if not outcome.void:
            outcome.verdict = check(record.read())
            outcome.failures += judged(outcome.verdict, drawn)
        record.close()
        if not outcome.failures:
            record.path.unlink()
        outcome.seconds = time.monotonic() - begun
        return outcome

    def _clients(self, record: Record, tag: str, line: int, slow: int) -> list[Client]:
        direct = self.site.address[1]
        kinds = (
            (Version2, "v2-line", line),
            (Version2, "v2", direct),
            (SlowReader, "v2-slow", slow),
            (EventStream, "sse-line", line),
            (EventStream, "sse", direct),
            (Version1, "v1", direct),
        )
        return [kind(self.site, record, name, tag, port) for kind, name, port in kinds]

    async def _suffer(self, outcome: Outcome, line: Network, publishers: list[Publisher]) -> None:
        """Events flow, all faults have come and gone, and enough was confirmed before and after."""
        names = await asyncio.to_thread(self.names)
        faults = Faults(self.site, self.clock, line, names)
        outcome.seen.append(
            ", ".join(f"{role} is {names[role].rpartition('-')[2]}" for role in ("leader", "second", "third"))
        )
        for publisher in publishers:
            publisher.start()
        while not all(publisher.confirmed for publisher in publishers):
            await self._nothing_fails(publishers)
        begun = time.monotonic()
        done = await asyncio.gather(
            *(faults.befall(fault, begun) for fault in outcome.schedule.faults), return_exceptions=True
        )
        outcome.seen += sorted(faults.seen)
        missing = await self.whole()
        for error in filter(None, done):
            raise error
        if missing:
            # What is promised to publishers and clients holds on two brokers, too: the books say so.
            outcome.failures.append(f"the faults are over: {missing}")
        goals = {publisher: max(publisher.confirmed + 1, publisher.enough) for publisher in publishers}
        while any(publisher.confirmed < goal for publisher, goal in goals.items()):
            await self._nothing_fails(publishers)
        await asyncio.gather(*(publisher.stop() for publisher in publishers))

    async def _nothing_fails(self, publishers: list[Publisher]) -> None:
        for publisher in publishers:
            if publisher.task.done():
                await publisher.task
        await asyncio.sleep(0.05)


def judged(verdict: Verdict, drawn: Schedule) -> list[str]:
    """What is wrong by the books. Where no broker lost power, no client of version 2 is told of a gap."""
    wrong = list(verdict.cases)
    for account in verdict.accounts:
        if account.client.startswith("v1") or not account.announcements:
            continue
        if not drawn.may_lose_the_log:
            wrong.append(f"{account.client}: told {account.announcements} times that something is missing")
        elif account.for_nothing:
            wrong.append(f"{account.client}: told {account.for_nothing} times for nothing")
    return wrong


@contextlib.contextmanager
def stage(site: Site) -> Iterator[Stage]:
    """Three brokers, and the processes on them with clocks of their own; the stack's own come back after."""
    with tempfile.TemporaryDirectory() as folder:
        clock = Clock(Path(folder))
        records = Path(os.environ.get("CARILLON_CHAOS_RECORDS", tempfile.mkdtemp(prefix="carillon-chaos-")))
        records.mkdir(parents=True, exist_ok=True)
        with three_brokers(site, {name: clock.options(name) for name in CLOCKS}) as brokers:
            yield Stage(site, brokers, clock, records)


async def compose(
    site: Site,
    seeds: range,
    found: Callable[[dict], None],
    seconds: float = float("inf"),
    every_story: bool = False,
) -> int:
    """Plays the seeds one after the other until the time is over, or a signal asks for the end; how many
    failed. `found` gets the row of each."""
    loop, enough = asyncio.get_running_loop(), asyncio.Event()
    loop.set_default_executor(ThreadPoolExecutor(32))
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, enough.set)
    begun, failed, ran = time.monotonic(), 0, code()
    with contextlib.ExitStack() as stack:
        at_work = await asyncio.to_thread(stack.enter_context, stage(site))
        for seed in seeds:
            if enough.is_set() or time.monotonic() - begun > seconds:
                break
            outcome = await at_work.play(schedule(seed))
            found({**outcome.row(), "code": ran, "load": round(os.getloadavg()[0], 1)})
            failed += bool(outcome.failures)
            if outcome.failures or outcome.void or every_story:
                print(outcome.story(), flush=True)
    return failed


def code() -> str:
    """The commit that ran."""
    asked = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    return subprocess.run(asked, capture_output=True, text=True, timeout=20, check=False).stdout.strip()
