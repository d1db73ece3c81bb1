"""What takes minutes: a soak, and a cluster that loses its leader. `CARILLON_LONG=1`, or `make test-long`."""

import asyncio
import contextlib
import gc
import os
import random
import secrets
import subprocess
import time
from pathlib import Path

import pytest

from asgi_amqp import BrokerUnavailable
from asgi_amqp.worker import Worker
from tests.integration.asgi_amqp.broker import Broker, docker, eventually
from tests.integration.asgi_amqp.proxy import Proxy

pytestmark = pytest.mark.skipif(not os.environ.get("CARILLON_LONG"), reason="takes minutes: CARILLON_LONG=1")
SECONDS = float(os.environ.get("CARILLON_SOAK_SECONDS", "600"))


def footprint(broker):
    """What must not grow: descriptors, tasks, MiB of this process; queues and bindings of the broker."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "tasks": len(asyncio.all_tasks()),
        "memory": round(pages * os.sysconf("SC_PAGESIZE") / 2**20, 1),
        "queues": len(broker.ctl("list_queues", "--vhost", "carillon", "name").splitlines()),
        "bindings": len(broker.ctl("list_bindings", "--vhost", "carillon", "routing_key").splitlines()),
    }


class Ledger:
    """Numbered events that flow all the while, through group `ledger` and the durable channel `d`.

    It keeps no more than what is open: `missing` and `announced` count what a reader did not get (without a
    word, and after a gap that said so), `open` holds what was confirmed and not handled yet.
    """

    def __init__(self, layer):
        self.layer = layer
        self.number = self.last = self.heard = 0
        self.missing = self.announced = self.disordered = 0
        self.confirmed = self.failed = self.repeated = 0
        self.open, self.early = set(), set()
        self.jumps = []  # when a reader saw that something was missing, and how much

    async def __aenter__(self):
        self.channel = await self.layer.new_channel()
        await self.layer.group_add("ledger", self.channel)
        self.worker = Worker(self.layer, self.handle, "d", concurrency=4, handle_signals=False)
        self.tasks = [asyncio.create_task(each) for each in (self.worker.run(), self.listen(), self.emit())]
        return self

    async def emit(self):
        while True:
            number = self.number = self.number + 1
            await self.accepted(self.layer.group_send("ledger", {"type": "a", "number": number}))
            if await self.accepted(self.layer.send("d", {"type": "a", "number": number})):
                self.confirmed += 1
                if number in self.early:
                    self.early.discard(number)
                else:
                    self.open.add(number)
            await asyncio.sleep(0.005)

    async def accepted(self, sending):
        try:
            await sending
        except BrokerUnavailable:
            self.failed += 1
            return False
        return True

    async def handle(self, message):
        if message["number"] in self.open:
            self.open.discard(message["number"])
        elif message["number"] in self.early or message["number"] < self.number:
            self.repeated += 1
        else:
            self.early.add(message["number"])  # its confirm is on the way

    async def listen(self):
        gap = False
        while True:
            message = await self.layer.receive(self.channel)
            now = time.monotonic()
            late = [(when, count) for when, count in self.jumps if when < now - 5]
            self.missing += sum(count for _, count in late)
            self.jumps = [jump for jump in self.jumps if jump not in late]
            if message["type"] == "gap":
                gap = not self.jumps  # it may come a moment after what is behind it
                self.announced += sum(count for _, count in self.jumps)
                self.jumps.clear()
                continue
            jumped = message["number"] - self.last - 1
            if jumped < 0:
                self.disordered += 1
            elif jumped and gap:
                self.announced += jumped
                gap = False
            elif jumped:
                self.jumps.append((now, jumped))
            self.last = max(self.last, message["number"])
            self.heard += 1

    async def settled(self):
        """All that was sent before now has arrived, or is known not to."""
        before = self.number
        await eventually(lambda: self.last > before and not self.open, 60)
        assert not any(task.done() for task in self.tasks), self.tasks

    async def __aexit__(self, *_):
        self.worker.stop()
        for task in self.tasks[1:]:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


async def test_churn_leaves_nothing_behind(make_layer, broker, report):
    """Ten minutes of channels, groups, calls that are cancelled and connections cut every few seconds: the
    second half costs no more than the first, and every message is accounted for.
    """
    chance = random.Random(7)
    async with Proxy(broker) as proxy, Ledger(make_layer(
        url=proxy.url, expiry=5, durable=["d"], gap_type="gap", capacity=1000
    )) as ledger:  # fmt: skip
        layer = ledger.layer
        cuts = visitors = cancelled = 0
        errors = []

        async def perhaps(call):
            """Made, or cancelled at some moment; whether it was made."""
            nonlocal cancelled
            task = asyncio.create_task(call)
            if chance.random() < 0.2:
                await asyncio.wait({task}, timeout=chance.random() * 0.005)
                cancelled += task.cancel()
            try:
                await task
            except (asyncio.CancelledError, BrokerUnavailable):
                return False
            return True

        async def visitor(number):
            channel = await layer.new_channel()
            groups = [f"g{number % 17}", f"own{number}"]
            for group in groups:
                if await perhaps(layer.group_add(group, channel)):
                    await perhaps(layer.group_send(group, {"type": "a", "text": "x" * 500}))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(layer.receive(channel), chance.random())
            for group in groups:
                await layer.group_discard(group, channel)

        async def cut():
            nonlocal cuts
            while True:
                await asyncio.sleep(1 + 4 * chance.random())
                proxy.cut(*chance.choice((("publishing",), ("consuming",), ())))
                cuts += 1

        async def bindings():
            return len((await broker.do("ctl", "list_bindings", "--vhost", "carillon")).splitlines())

        async def quiet():
            """Lingering bindings go, unread channels are swept."""
            assert all(isinstance(error, BrokerUnavailable) for error in errors), errors
            await eventually(lambda: layer.gauges()["channels"] == 1, 60)
            async with asyncio.timeout(60):
                while await bindings() > bound:
                    pass
            await ledger.settled()

        await ledger.settled()
        bound = await bindings()
        marks = []
        churned, began = 0.0, time.monotonic()
        cutting = asyncio.create_task(cut())
        while churned < SECONDS:
            turn = time.monotonic()
            came = await asyncio.gather(
                *(visitor(visitors + each) for each in range(20)), return_exceptions=True
            )
            errors += [each for each in came if isinstance(each, Exception)]
            visitors += 20
            churned += time.monotonic() - turn
            if churned > SECONDS / 5 * (len(marks) + 1):
                cutting.cancel()
                await quiet()
                marks.append(footprint(broker))
                report(
                    seconds=round(time.monotonic() - began), visitors=visitors, cuts=cuts,
                    cancelled=cancelled, **marks[-1],
                )  # fmt: skip
                cutting = asyncio.create_task(cut())
        cutting.cancel()
        await quiet()
        lost = layer.stats.lost
        report(
            sent=ledger.number, heard=ledger.heard, missing=ledger.missing, announced=ledger.announced,
            confirmed=ledger.confirmed, failed=ledger.failed, repeated=ledger.repeated, lost=dict(lost),
        )  # fmt: skip
    assert cuts > SECONDS / 10
    assert cancelled > visitors / 10
    assert not ledger.open
    assert not ledger.disordered
    missing = ledger.missing + sum(count for _, count in ledger.jumps)
    assert ledger.heard + missing + ledger.announced == ledger.last
    assert missing <= lost["in_flight"] + ledger.failed
    # What visitors left unread, what was under way at a cut, and the cuts themselves.
    assert set(lost) <= {"expired", "in_flight", "reconnect", "no_receiver", "unconfirmed", "overflow"}
    first, last = marks[1], marks[-1]
    for what in ("descriptors", "tasks", "queues", "bindings"):
        assert last[what] <= first[what] + 3, what
    assert last["memory"] < first["memory"] * 1.1 + 5


@pytest.fixture
def cluster(tmp_path):
    """Three nodes of the development image on a network of their own."""
    network = f"carillon-layer-test-{secrets.token_hex(3)}"
    docker("network", "create", network)
    cookie = tmp_path / "cookie"
    cookie.write_text(secrets.token_hex(32))
    cookie.chmod(0o444)
    settings = tmp_path / "rabbitmq-env.conf"
    settings.write_text("LOG_BASE=/run/rabbitmq\nPID_FILE=/run/rabbitmq/rabbitmq.pid\n")
    settings.chmod(0o444)
    tmp_path.chmod(0o755)
    nodes = []
    try:
        for number in range(3):
            name = f"{network}-{number}"
            node = Broker(name.removeprefix("carillon-layer-test-"), password="x", options=(
                "--network", network, "--hostname", name, "--env", f"RABBITMQ_NODENAME=rabbit@{name}",
                "--volume", f"{settings}:/etc/rabbitmq/rabbitmq-env.conf:ro,z",
                "--volume", f"{cookie}:/cookie:ro,z", "--env", "RABBITMQ_COOKIE_FILE=/cookie",
            ))  # fmt: skip
            node.__enter__()
            nodes.append(node)
        for node in nodes[1:]:
            node.ctl("stop_app")
            node.ctl("reset")
            node.ctl("join_cluster", f"rabbit@{nodes[0].name}")
            node.ctl("start_app")
            node.wait()
        yield nodes
    finally:
        for node in nodes:
            node.__exit__()
        subprocess.run(["docker", "network", "rm", network], capture_output=True)


async def test_a_cluster_that_loses_its_leader_loses_nothing(make_layer, cluster, report):
    layer = make_layer(url=[node.url for node in cluster], durable=["jobs"], timeout=60.0, heartbeat=4)
    confirmed, handled = set(), set()
    number = deliveries = 0

    async def handle(message):
        nonlocal deliveries
        deliveries += 1
        handled.add(message["number"])

    async def emit():
        nonlocal number
        while True:
            number += 1
            try:
                await layer.send("jobs", {"type": "a", "number": number})
            except BrokerUnavailable:
                continue
            confirmed.add(number)

    worker = Worker(layer, handle, "jobs", handle_signals=False)
    tasks = [asyncio.create_task(worker.run()), asyncio.create_task(emit())]
    await eventually(lambda: len(handled) > 100)
    queue = f"{layer.prefix}.d.jobs"
    leaders = cluster[0].ctl("list_queues", "--vhost", "carillon", "name", "leader")
    leader = next(line.split()[1] for line in leaders.splitlines() if line.split()[0] == queue)
    victim = next(node for node in cluster if leader == f"rabbit@{node.name}")
    began = time.monotonic()
    await victim.do("kill")
    before = max(confirmed)
    await eventually(lambda: max(handled) > before, 120)
    away = time.monotonic() - began
    await victim.do("start")
    tasks[1].cancel()
    await asyncio.gather(tasks[1], return_exceptions=True)
    with contextlib.suppress(AssertionError):
        await eventually(lambda: confirmed <= handled, 60)
    report(
        seconds_until_it_flowed_again=round(away, 1), sent=number, confirmed=len(confirmed),
        handled=len(handled), lost=len(confirmed - handled), repeated=deliveries - len(handled),
    )  # fmt: skip
    assert confirmed <= handled
    worker.stop()
    await asyncio.wait_for(tasks[0], 60)
