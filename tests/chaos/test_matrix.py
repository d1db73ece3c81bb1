"""The matrix: one thing breaks while events flow, and the books are opened.

`make test` runs the cells marked as quick, `make chaos` all of them. CARILLON_CHAOS_REPORT names a file that
gets one line of JSON for each cell.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from tests.chaos.clock import Clock
from tests.chaos.ledger import account
from tests.chaos.report import write_down
from tests.chaos.site import Network, Old, Publisher, Site, Watcher, docker
from tests.chaos.three_brokers import three_brokers

pytestmark = [
    pytest.mark.stack,
    pytest.mark.skipif(Site.from_environment() is None, reason="no stack: `make test` starts one"),
]

WHOLE = bool(os.environ.get("CARILLON_CHAOS_WHOLE"))
CLIENTS = int(os.environ.get("CARILLON_CHAOS_CLIENTS", "8"))
PYTHON = "/opt/carillon/current/bin/python"
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
        self.expected: list[Watcher] = []
        """Of these it is known that they must be told of a loss."""
        self.memory: dict[str, int] = {}
        self.row: dict = {}
        self.line = Network(site.address)
        """Of those who are away."""
        self._sampling: asyncio.Task | None = None

    async def __aenter__(self):
        await self.network.start()
        self.watchers = [Watcher(self.site, f"v2-{n}", self.network.port) for n in range(self.clients)]
        self.watchers += [Old(self.site, f"v1-{n}", self.network.port) for n in range(2)]
        for start in range(0, len(self.watchers), 50):
            await self.ready(self.watchers[start : start + 50])
        self.publisher.start()
        self._sampling = asyncio.create_task(self._sample())
        await self.published(20)
        return self

    async def ready(self, watchers: list, first: int = 0) -> None:
        """Start these, and wait until they are subscribed."""
        for watcher in watchers:
            watcher.start(first)
        async with asyncio.timeout(60):
            await asyncio.gather(*(watcher.ready.wait() for watcher in watchers))

    async def published(self, more: int, within: float = 120.0) -> None:
        """Wait until so many more events have been confirmed: the load is alive."""
        goal = self.publisher.confirmed + more
        async with asyncio.timeout(within):
            while self.publisher.confirmed < goal:
                await asyncio.sleep(0.05)

    async def heard(self) -> None:
        """Wait until what has been confirmed up to now is in the log: some client has it."""
        goal = self.publisher.confirmed - 1
        async with asyncio.timeout(LEVEL_WITHIN):
            while not any(watcher.page.seen and watcher.page.seen[-1] >= goal for watcher in self.watchers):
                await asyncio.sleep(0.05)

    async def absent(self, count: int) -> list[Watcher]:
        """So many clients that were there and are away, and have missed more than a cut of the log takes."""
        await self.line.start()
        self.publisher.size = 1000
        absent = [Watcher(self.site, f"v2-absent-{n}", self.line.port) for n in range(count)]
        for each in absent:
            each.since = self.watchers[0].first_position
        await self.ready(absent)
        self.watchers += absent
        await self.published(60)
        await self.heard()
        await self.line.away()
        await self.published(100)
        await self.heard()
        return absent

    async def back(self, absent: Watcher) -> None:
        """They are there again, and know how they stand; what comes then reaches them."""
        connects = absent.page.connects
        absent.ready.clear()
        await self.line.back()
        async with asyncio.timeout(60):
            await absent.ready.wait()
        assert absent.page.connects > connects
        await self.published(60)

    async def _sample(self) -> None:
        """The most memory that each service was seen to have, MiB."""
        while True:
            for service in ("daphne", "runworker", "rabbitmq"):
                now = await asyncio.to_thread(self.site.resident, service)
                self.memory[service] = max(self.memory.get(service, 0), now // 1024)
            await asyncio.sleep(2)

    async def __aexit__(self, kind, error, trace):
        try:
            if kind is None:
                await self._close()
        finally:
            for task in (self._sampling, self.publisher.task):
                if task is not None:
                    task.cancel()
            for watcher in self.watchers:
                await watcher.stop()
            await self.network.stop()
            await self.line.stop()

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
        told = {watcher.name for watcher in self.expected}
        self.row = {
            "cell": self.name,
            "confirmed": confirmed,
            "clients": len(two),
            "delivered": sum(each.delivered for each in two),
            "doubled": sum(each.doubled for each in accounts),
            "out of order": sum(each.disordered for each in accounts),
            "lost silently": sum(each.lost_silently for each in accounts),
            "announced lost": sum(each.lost_announced for each in two if each.name not in told),
            "longest gap, s": round(max(each.longest_pause for each in two if each.name not in told), 2),
            "longest publish, s": round(self.publisher.longest, 2),
            "level after, s": round(level, 2),
            "connects": sum(each.connects for each in two),
            **{f"{service} MiB": peak for service, peak in self.memory.items()},
        }
        if told:
            self.row["announced to the absent"] = sum(
                each.lost_announced for each in two if each.name in told
            )
        write_down(self.row)
        wrong = [each for each in accounts if each.doubled or each.lost_silently or each.disordered]
        assert not wrong, wrong


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


@pytest.mark.parametrize("what", ["all stay", "runworker comes later", "daphne begins anew"])
async def test_power_lost(site, what):
    """The broker loses power, and the newest part of the stream, which is not synced. Who heard what is lost
    misses nothing and is told nothing; so is who was away, while daphne has it in memory. Where it has not,
    who was away is told, and nobody else. Nobody is deaf to what comes then."""
    async with cell(site, f"power lost, {what}") as running:
        (absent,) = await running.absent(1)
        since = int(time.time())
        await asyncio.to_thread(site.kill, "rabbitmq")
        if what == "runworker comes later":
            await asyncio.to_thread(site.kill, "runworker")
        if what == "daphne begins anew":
            running.expected = [absent]
            await asyncio.sleep(0.5)  # what has been written to the sockets gets there
            await asyncio.to_thread(site.kill, "daphne")
        (broker,) = site.containers("rabbitmq")
        try:
            assert await asyncio.to_thread(site.cut_the_log, broker, 60_000) == 60_000
        finally:
            await asyncio.to_thread(site.start, "rabbitmq")
        if what == "runworker comes later":
            async with asyncio.timeout(60):
                while "INFO asgi_amqp Connected to" not in site.logs("daphne", since):
                    await asyncio.sleep(0.2)
            await asyncio.to_thread(site.start, "runworker")
        if what == "daphne begins anew":
            await asyncio.to_thread(site.start, "daphne")
        await running.published(60)
        await running.back(absent)
    assert absent.page.seen[-1] == running.row["confirmed"] - 1, "it is deaf to what comes then"
    assert HAS_LOST in site.logs("runworker", since), "the cut took no effect"
    assert running.row["announced lost"] == 0
    assert absent.reasons == (["retention"] if what == "daphne begins anew" else [])


HAS_LOST = "has lost what it had after"
"""What a relay says that took over a log without its end."""


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
    """Five hundred go on as if nothing were; the two get all they missed as soon as they can read again."""
    slow_line, stuck_line = Network(site.address), Network(site.address)
    async with cell(site, "a slow reader (1 kB/s) and a stuck one among 500", 500) as running:
        running.publisher.pause = 0.4  # this one process has to read it all
        both = {"jobs": ["summary"], "inventories": ["status_changed"]}
        for line in (slow_line, stuck_line):
            await line.start()
        slow = Watcher(site, "v2-slow", slow_line.port, both, pings=False)
        stuck = Watcher(site, "v2-stuck", stuck_line.port, both, pings=False)
        # They are there from the first event on, by their position.
        slow.since = stuck.since = running.watchers[0].first_position
        await running.ready([slow, stuck])
        slow_line.rate, stuck_line.rate = 1000, 1e-6
        # More than all the buffers on the way can take: these two fall behind.
        await asyncio.to_thread(site.publish_filler, 40)
        await running.published(60)
        goal = running.publisher.confirmed - 1
        async with asyncio.timeout(LEVEL_WITHIN):  # nobody else waits for them
            while any(watcher.page.seen[-1] < goal for watcher in running.watchers):
                await asyncio.sleep(0.1)
        for watcher in (slow, stuck):
            assert watcher.page.seen[-1] < goal, "it is not behind"
        slow_line.rate = stuck_line.rate = None
        running.watchers += [slow, stuck]
    for line in (slow_line, stuck_line):
        await line.stop()
    assert running.row["announced lost"] == 0
    assert 4408 not in slow.codes + stuck.codes, "version 2 lags"


# The relay is killed at the worst moment: the stream has confirmed, the row has it, the queue has not heard.
BEFORE_THE_ACK = """
import os
from carillon.relay.core import RelayCore
done, calls = RelayCore.done, []
def kill_instead(self):
    tag = done(self)
    calls.append(tag)
    if len([tag for tag in calls if tag]) == 4:
        os._exit(137)  # as SIGKILL: nothing is tidied up (process 1 of a container cannot kill itself)
    return tag
RelayCore.done = kill_instead
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
from django.core.management import execute_from_command_line
execute_from_command_line(["django", "runworker"])
"""


@whole
async def test_runworker_killed_between_publish_and_ack(site):
    async with cell(site, "runworker killed between publish and ack") as running:
        for _ in range(3):
            # The stack's own stands by no longer: the next one to come is the active one.
            await asyncio.to_thread(docker, "stop", "--time", "12", *site.own("runworker"))
            with ExitStack() as stack:
                name = await asyncio.to_thread(
                    stack.enter_context,
                    site.beside("runworker", "saboteur", ["-c", BEFORE_THE_ACK], entrypoint=PYTHON),
                )
                code = await asyncio.to_thread(docker, "wait", name)
                assert code.strip() == "137", "it was to kill itself"
                await asyncio.to_thread(site.start, "runworker")
            await running.published(30)
    assert running.row["announced lost"] == 0


@whole
async def test_the_past_is_gone(site):
    """Retention passes while clients are away: they are told, and nobody else is."""
    away_line = Network(site.address)
    async with cell(site, "retention passed while 2 were away") as running:
        await away_line.start()
        absent = [Watcher(site, f"v2-absent-{n}", away_line.port) for n in range(2)]
        for each in absent:
            each.since = running.watchers[0].first_position
        await running.ready(absent)
        running.watchers += absent
        running.expected = absent
        await away_line.away()
        limit = ("rabbitmqctl", "-q", "set_policy", "-p", "carillon", "--apply-to", "streams")
        await asyncio.to_thread(
            site.run_in, "rabbitmq", *limit, "chaos", "^carillon[.]events[.]", '{"max-length-bytes": 1000000}'
        )
        try:
            # Segments are of 16 MiB, and the newest one always stays.
            await asyncio.to_thread(site.publish_filler, 40)
            await running.published(20)
            # What daphne has in memory would serve them still.
            await kill_and_start(site, "daphne")
            await running.published(20)
            await asyncio.to_thread(site.await_serving)
            await away_line.back()
            await running.published(40)
        finally:
            await asyncio.to_thread(
                site.run_in, "rabbitmq", "rabbitmqctl", "-q", "clear_policy", "-p", "carillon", "chaos"
            )
    await away_line.stop()
    assert running.row["announced lost"] == 0
    assert running.row["announced to the absent"] > 0
    assert [each.reasons for each in absent] == [["retention"], ["retention"]]


@whole
async def test_rolling_restart(site):
    """Two daphnes on one listening socket that supervisord holds, as in production, restarted in turn: no
    handshake is refused."""
    root = Path(__file__).parents[2] / "supervisord"
    supervised = {
        "entrypoint": "supervisord",
        "command": ["--nodaemon", "--configuration", "/etc/carillon/supervisord/supervisord.conf"],
        "volumes": [
            f"{root}/supervisord.conf:/etc/carillon/supervisord/supervisord.conf:ro,z",
            f"{root}/conf.d/daphne.conf:/etc/carillon/supervisord/conf.d/daphne.conf:ro,z",
        ],
        "options": ["--tmpfs=/run/carillon:uid=10001,gid=10001,mode=0755"],
    }
    control = ["supervisorctl", "-c", "/etc/carillon/supervisord/supervisord.conf"]
    with site.instead(["daphne"], {"daphne": supervised}):
        await asyncio.to_thread(site.await_serving)
        async with cell(site, "rolling restart of two daphnes on one socket") as running:
            knocking = asyncio.create_task(knock(site))
            for number in (0, 1, 0, 1):
                await asyncio.to_thread(site.run_in, "daphne", *control, "restart", f"daphne:daphne_{number}")
                await running.published(30)
            knocking.cancel()
            answers = await asyncio.gather(knocking, return_exceptions=True)
            assert answers[0] == set(), answers
        assert running.row["announced lost"] == 0
        codes = [code for each in running.watchers if isinstance(each, Watcher) for code in each.codes]
        assert set(codes) <= {1012}, codes


async def knock(site: Site) -> set[str]:
    """New handshakes, one after the other, until cancelled; what went wrong with any."""
    refused = set()
    try:
        while True:
            try:
                async with connect(
                    f"wss://{site.address[0]}:{site.address[1]}/websocket/", ssl=site.tls, open_timeout=30,
                    additional_headers={"Authorization": f"Bearer {site.token}"},
                ) as socket:  # fmt: skip
                    frame = json.loads(await socket.recv())
                    if frame["accept"] is not True:
                        refused.add(str(frame))
            except ConnectionClosed as closed:
                # A process that is on its way out says so.
                if closed.rcvd is None or closed.rcvd.code != 1012:
                    refused.add(repr(closed))
            except (OSError, InvalidHandshake, TimeoutError) as error:
                refused.add(repr(error))
            await asyncio.sleep(0.05)
    except asyncio.CancelledError:
        return refused


@whole
async def test_clock_jumps(site, tmp_path):
    """The wall clocks of uwsgi, runworker and daphne jump by hours, apart from each other: order, positions
    and who is connected depend on none."""
    clock = Clock(tmp_path)
    services = ["uwsgi", "runworker", "daphne"]
    with site.instead(services, {name: clock.options(name) for name in services}):
        await asyncio.to_thread(site.await_serving)
        async with cell(site, "clocks jump: +2 h, -3 h, apart") as running:
            for jump in (
                {"uwsgi": "+7200", "runworker": "+7200", "daphne": "+7200"},
                {"uwsgi": "-3600", "runworker": "+10800", "daphne": "+0"},
                {"uwsgi": "+0", "runworker": "-10800", "daphne": "-3600"},
            ):
                for service, offset in jump.items():
                    clock.set(service, offset)
                await running.published(50)
                await kill_and_start(site, "runworker", 0.1)
                await running.published(30)
                await asyncio.to_thread(site.await_connections, len(running.watchers))
            jumped = await asyncio.to_thread(
                site.run_in, "daphne", "python3", "-c", "import time; print(time.time())"
            )
            assert abs(float(jumped) - time.time() + 3600) < 60, "the clock did not jump: nothing is proved"
        assert running.row["announced lost"] == 0


@whole
async def test_the_leader_of_three_brokers_is_killed(site):
    """The queue's leader, then the stream's, under load."""
    with three_brokers(site) as brokers:
        async with cell(site, "leader of 3 brokers killed, twice") as running:
            for kind in ("quorum", "stream"):
                leader = await asyncio.to_thread(brokers.leader, kind)
                await asyncio.to_thread(docker, "kill", "--signal", "KILL", leader)
                await running.published(60)
                await asyncio.to_thread(docker, "start", leader)
                await asyncio.to_thread(brokers.await_members, 3)
                await running.published(20)
        assert running.row["announced lost"] == 0


@whole
async def test_power_lost_on_three_brokers(site):
    """All three at once, each with the newest part of its copy of the stream: no majority has it. Who did not
    hear what is lost is told, and nobody else."""
    with three_brokers(site) as brokers:
        containers = list(brokers.containers.values())
        async with cell(site, "power lost by 3 brokers at once") as running:
            (absent,) = running.expected = await running.absent(1)
            since = int(time.time())
            await asyncio.to_thread(docker, "kill", "--signal", "KILL", *containers)
            await asyncio.sleep(0.5)  # what has been written to the sockets gets there
            await asyncio.to_thread(site.kill, "daphne")
            for container in containers:
                assert await asyncio.to_thread(site.cut_the_log, container, 60_000) == 60_000
            await asyncio.to_thread(docker, "start", *containers)
            await asyncio.to_thread(brokers.await_members, 3)
            await asyncio.to_thread(site.start, "daphne")
            await running.published(60)
            await running.back(absent)
        assert absent.page.seen[-1] == running.row["confirmed"] - 1, "it is deaf to what comes then"
        assert HAS_LOST in site.logs("runworker", since), "the cut took no effect"
        assert running.row["announced lost"] == 0
        assert absent.reasons == ["retention"]
