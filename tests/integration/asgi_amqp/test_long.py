"""What takes minutes: a soak, and a cluster that loses its leader. `CARILLON_LONG=1`, or `make test-long`."""

import asyncio
import contextlib
import gc
import os
import secrets
import subprocess
import time
from pathlib import Path

import pytest

from asgi_amqp import BrokerUnavailable
from asgi_amqp.worker import Worker
from tests.integration.asgi_amqp.broker import Broker, docker, eventually

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


async def test_churn_leaves_nothing_behind(make_layer, broker, report):
    """Channels and groups come and go for ten minutes; the second half costs no more than the first."""
    layer = make_layer(expiry=5, durable=["d"])
    receiver = layer.session().receiver

    async def visitor(number):
        channel = await layer.new_channel()
        groups = [f"g{number % 17}", f"own{number}"]
        for group in groups:
            await layer.group_add(group, channel)
            await layer.group_send(group, {"type": "a", "text": "x" * 500})
        await asyncio.wait_for(layer.receive(channel), 30)
        for group in groups:
            await layer.group_discard(group, channel)
        await layer.send("d", {"type": "a"})
        await layer.receive("d")

    marks = []
    began = time.monotonic()
    number = 0
    while time.monotonic() - began < SECONDS:
        await asyncio.gather(*(visitor(number + each) for each in range(20)))
        number += 20
        if time.monotonic() - began > SECONDS / 5 * (len(marks) + 1):
            # lingering bindings go, unread channels are swept
            await eventually(lambda: not receiver.mailboxes.boxes and not receiver._bindings.bound, 60)
            marks.append(footprint(broker))
            report(seconds=round(time.monotonic() - began), visitors=number, **marks[-1])
    first, last = marks[1], marks[-1]
    for what in ("descriptors", "tasks", "queues", "bindings"):
        assert last[what] <= first[what] + 3, what
    assert last["memory"] < first["memory"] * 1.1 + 5
    assert set(layer.stats.lost) <= {"expired"}  # what visitors left unread


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
