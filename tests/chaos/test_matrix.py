"""The matrix: one thing breaks while events flow, and the books are opened.

`make test` runs the cells marked as quick, `make chaos` all of them. CARILLON_CHAOS_REPORT names a file that
gets one line of JSON for each cell.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path

import pytest

from tests.chaos.ledger import account
from tests.chaos.site import Network, Old, Publisher, Site, Watcher

pytestmark = [
    pytest.mark.stack,
    pytest.mark.skipif(Site.from_environment() is None, reason="no stack: `make test` starts one"),
]

WHOLE = bool(os.environ.get("CARILLON_CHAOS_WHOLE"))
CLIENTS = int(os.environ.get("CARILLON_CHAOS_CLIENTS", "8"))
LEVEL_WITHIN = 90.0  # seconds for every client to have everything: machines that test are slow

whole = pytest.mark.skipif(not WHOLE, reason="one of the long cells: `make chaos`")


class Cell:
    """Clients and a publisher at work. `publisher`, `watchers` and `network` may be reached into."""

    def __init__(self, site: Site, name: str, clients: int) -> None:
        self.site = site
        self.name = name
        self.network = Network(site.address)
        self.publisher = Publisher(site)
        self.clients = clients
        self.watchers: list = []

    async def __aenter__(self):
        await self.network.start()
        self.watchers = [Watcher(self.site, f"v2-{n}", self.network.port) for n in range(self.clients)]
        self.watchers += [Old(self.site, f"v1-{n}", self.network.port) for n in range(2)]
        for watcher in self.watchers:
            watcher.start(0)
        async with asyncio.timeout(60):
            await asyncio.gather(*(watcher.ready.wait() for watcher in self.watchers))
        self.publisher.start()
        await self.published(20)
        return self

    async def published(self, more: int, within: float = 120.0) -> None:
        """Wait until so many more events have been confirmed: the load is alive."""
        goal = self.publisher.confirmed + more
        async with asyncio.timeout(within):
            while self.publisher.confirmed < goal:
                await asyncio.sleep(0.05)

    async def __aexit__(self, kind, error, trace):
        try:
            if kind is None:
                await self._close()
        finally:
            for watcher in self.watchers:
                await watcher.stop()
            await self.network.stop()

    async def _close(self):
        confirmed = await self.publisher.stop()
        begun = time.monotonic()
        newest = [watcher for watcher in self.watchers if isinstance(watcher, Watcher)]
        while time.monotonic() - begun < LEVEL_WITHIN:
            if all(watcher.page.seen and watcher.page.seen[-1] == confirmed - 1 for watcher in newest):
                break
            await asyncio.sleep(0.1)
        level = time.monotonic() - begun
        accounts = [account(watcher.page, confirmed) for watcher in self.watchers]
        two = [each for each in accounts if each.name.startswith("v2")]
        row = {
            "cell": self.name,
            "confirmed": confirmed,
            "clients": len(two),
            "delivered": sum(each.delivered for each in two),
            "doubled": sum(each.doubled for each in accounts),
            "out of order": sum(each.disordered for each in accounts),
            "lost silently": sum(each.lost_silently for each in accounts),
            "announced lost": sum(each.lost_announced for each in two),
            "longest pause": round(max(each.longest_pause for each in two), 2),
            "longest publish": round(self.publisher.longest, 2),
            "level after": round(level, 2),
            "connects": sum(each.connects for each in two),
            "daphne MiB": round(self.site.memory_peak("daphne") / 2**20),
        }
        print(json.dumps(row))
        if report := os.environ.get("CARILLON_CHAOS_REPORT"):
            with Path(report).open("a") as lines:
                lines.write(json.dumps(row) + "\n")
        wrong = [each for each in accounts if each.doubled or each.lost_silently or each.disordered]
        assert not wrong, wrong
        self.row = row


@pytest.fixture
def site() -> Site:
    return Site.from_environment()


def cell(site, name, clients=CLIENTS):
    return Cell(site, name, clients)


async def kill_and_start(site: Site, service: str, down: float = 1.0) -> None:
    await asyncio.to_thread(site.kill, service)
    await asyncio.sleep(down)
    await asyncio.to_thread(site.start, service)


@pytest.mark.parametrize(
    "service",
    [
        "daphne",
        "runworker",
        "rabbitmq",
        *(pytest.param(name, marks=whole) for name in ("nginx", "uwsgi", "postgresql")),
    ],
)
async def test_killed(site, service):
    async with cell(site, f"{service} killed") as running:
        await kill_and_start(site, service)
        await running.published(60)
    assert running.row["announced lost"] == 0


async def test_cuts_of_two_seconds(site):
    async with cell(site, "network cut 2 s, again and again") as running:
        for _ in range(6 if WHOLE else 3):
            await running.network.cut(2)
            await asyncio.sleep(1)
    assert running.row["announced lost"] == 0


async def test_blackholes(site):
    async with cell(site, "network silent 2 s, then gone") as running:
        for _ in range(4 if WHOLE else 2):
            await running.network.cut(2, blackhole=True)
            await asyncio.sleep(1)
    assert running.row["announced lost"] == 0


async def test_daphne_restarts(site):
    async with cell(site, "daphne restarted (TERM)") as running:
        await asyncio.to_thread(site.restart, "daphne")
        await running.published(40)
    assert running.row["announced lost"] == 0
    codes = [code for watcher in running.watchers if isinstance(watcher, Watcher) for code in watcher.codes]
    assert 1012 in codes, codes


@whole
async def test_runworker_killed_again_and_again(site):
    """Between publish and ack sooner or later: what it appended comes again from the queue."""
    async with cell(site, "runworker killed 8 times") as running:
        for _ in range(8):
            await running.published(25)
            await kill_and_start(site, "runworker", 0.1)
        await running.published(25)
    assert running.row["announced lost"] == 0


@whole
async def test_disk_alarm(site):
    async with cell(site, "broker's disk alarm") as running:
        await asyncio.to_thread(site.run_in, "rabbitmq", "rabbitmqctl", "-q", "set_disk_free_limit", "1000GB")
        try:
            await asyncio.sleep(8)
        finally:
            await asyncio.to_thread(
                site.run_in, "rabbitmq", "rabbitmqctl", "-q", "set_disk_free_limit", "1GB"
            )
        await running.published(40)
    assert running.row["announced lost"] == 0


@whole
async def test_the_stream_is_gone(site):
    """Somebody deletes the log: the past is gone, and every client is told so. Nothing that comes after is
    lost."""
    async with cell(site, "event stream deleted") as running:
        names = await asyncio.to_thread(
            site.run_in, "rabbitmq", "rabbitmqctl", "-q", "list_queues", "-p", "carillon", "name"
        )
        stream = next(name for name in names.split() if name.startswith("carillon.events."))
        await asyncio.to_thread(
            site.run_in, "rabbitmq", "rabbitmqctl", "-q", "delete_queue", "-p", "carillon", stream
        )
        await running.published(60)


@whole
async def test_slow_and_stuck_readers(site):
    async with cell(site, "a slow reader and a stuck one", 20) as running:
        slow = Watcher(site, "slow", running.network.port, pause=0.2)
        stuck = Watcher(site, "stuck", running.network.port, pause=3600)
        for each in (slow, stuck):
            each.start(running.publisher.confirmed)
        running.publisher.size, running.publisher.batch = 20_000, 20
        await running.published(1500)
        for each in (slow, stuck):
            await each.stop()
    assert running.row["announced lost"] == 0
