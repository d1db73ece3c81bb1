"""The counters against the books: what the processes say they did, and what was sent and seen."""

from __future__ import annotations

import asyncio
import uuid

import pytest

from tests.chaos.ledger import GAP
from tests.chaos.site import FILLER, Metrics, Site, Watcher, docker
from tests.chaos.test_matrix import Cell

pytestmark = [
    pytest.mark.stack,
    pytest.mark.skipif(Site.from_environment() is None, reason="no stack: `make test` starts one"),
]

POISON, DOUBLES, WAITING = 3, 5, 10
# What the API does not let through, put on the queue beside it.
PUT = (
    "from channels.layers import get_channel_layer as layer\n"
    "layer().publisher.send_many([('notifications', {{'group': 5}})] * {}, timeout=10)"
)
MOVING = ("carillon_events_emitted_total", "carillon_relay_events_total", "carillon_fanout_deliveries_total")


async def settled(site: Site) -> Metrics:
    """When nothing is counted any more."""
    before = await asyncio.to_thread(site.metrics)
    async with asyncio.timeout(60):
        while True:
            await asyncio.sleep(2.5)  # more than two snapshots apart
            now = await asyncio.to_thread(site.metrics)
            if all(before(name) == now(name) for name in MOVING):
                return now
            before = now


def on_the_queue(site: Site) -> int:
    listed = site.run_in("rabbitmq", "rabbitmqctl", "-q", "list_queues", "-p", "carillon", "name", "messages")
    rows = dict(line.split() for line in listed.splitlines())
    return int(rows["carillon.d.notifications"])


async def test_the_counters_are_what_was_sent_and_what_was_seen():
    """runworker and daphne are told to end and come back while events flow; there are doubles and dead
    letters, a client that must be told of a loss, and events that wait in the end. (Of a process that is
    killed up to a second of counts is lost, and what the queue gives out again counts as a double.)"""
    site = Site.from_environment()
    before = await settled(site)
    async with Cell(site, "runworker and daphne restarted (TERM), and counted", 8) as running:
        for service in ("runworker", "daphne", "runworker"):
            await asyncio.to_thread(site.restart, service)
            await running.published(20)
        of_another_log = Watcher(site, "v2-told", running.network.port)
        of_another_log.since = "another:1"
        await running.ready([of_another_log])
        running.watchers.append(of_another_log)
        running.expected.append(of_another_log)
        twice = [{"group": FILLER, "payload": {}, "id": str(uuid.uuid4())} for _ in range(DOUBLES)]
        for _ in range(2):
            await asyncio.to_thread(site.publish, twice)
        await asyncio.to_thread(
            site.run_in, "uwsgi", "carillon", "manage", "shell", "--command", PUT.format(POISON)
        )
        await running.published(20)
        clients = running.watchers
        await running.publisher.stop()
        await running.heard()
        await settled(site)
        await asyncio.to_thread(docker, "stop", "--time", "12", *site.own("runworker"))
        for _ in range(WAITING):
            await asyncio.to_thread(site.publish, [{"group": FILLER, "payload": {}}])
        try:
            after = await settled(site)
            async with asyncio.timeout(30):  # the broker counts a queue of its kind every five seconds
                while (waiting := await asyncio.to_thread(on_the_queue, site)) < WAITING:
                    await asyncio.sleep(1)
        finally:
            await asyncio.to_thread(site.start, "runworker")
            await asyncio.to_thread(site.run_in, "uwsgi", "carillon", "dead-letters", "drop", "all")
    await asyncio.to_thread(site.await_serving)

    def grown(name: str, **labels: str) -> float:
        return after(f"carillon_{name}_total", **labels) - before(f"carillon_{name}_total", **labels)

    seen = [number for client in clients for number in client.page.seen if number != GAP]
    newest = [client for client in clients if isinstance(client, Watcher)]
    counted = {
        "doubles": grown("relay_events", outcome="double"),
        "poison": grown("relay_events", outcome="poison"),
        "delivered": grown("fanout_deliveries"),
        "had all": grown("resumes", result="recovered"),
        "told": grown("resumes") - grown("resumes", result="recovered"),
        "closed 1012": grown("sockets_closed", code="1012"),
    }
    assert counted == {
        "doubles": DOUBLES,
        "poison": POISON,
        "delivered": len(seen),
        "had all": sum(client.resumes for client in newest),
        "told": sum(len(client.reasons) for client in newest),
        "closed 1012": sum(client.codes.count(1012) for client in clients),
    }
    emitted = grown("events_emitted") + POISON
    # The word of a daphne that ends, of who is connected: sent, and its confirm not waited for.
    assert grown("relay_events") + waiting - emitted in (0, 1)
    assert counted["told"] == 1
    assert counted["closed 1012"] == 10
    assert running.row["confirmed"] + 2 * DOUBLES + WAITING <= emitted
