"""Traces of a running stack: one event's hops, and a collector that is bad."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator

import pytest
from websockets.sync.client import connect

from tests.chaos.site import Site, docker
from tests.collector import Collector, collecting
from tests.tls import for_threads

pytestmark = [
    pytest.mark.stack,
    pytest.mark.skipif(Site.from_environment() is None, reason="no stack: `make test` starts one"),
]

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
HOPS = [
    ("carillon-uwsgi", "POST notifications"),
    ("carillon-uwsgi", "emit"),
    ("carillon-runworker", "relay"),
    ("carillon-daphne", "fan-out"),
]


@pytest.fixture(scope="module")
def site() -> Site:
    return Site.from_environment()


@pytest.fixture(scope="module")
def collector(site) -> Iterator[Collector]:
    """The stack's three processes send it their spans."""
    own = json.loads(docker("inspect", site.own("daphne")[0]))[0]["NetworkSettings"]["Networks"]
    host = next(iter(own.values()))["Gateway"]
    with collecting(host) as collector:
        endpoint = {"CARILLON_TRACES_ENDPOINT": collector.url}
        with site.instead(["uwsgi", "runworker", "daphne"], environment=endpoint):
            site.await_serving()
            yield collector


def wait(condition, seconds: float = 20.0):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return value


def whole(collector, trace: str) -> dict:
    """A trace, when all its spans have come."""
    wait(lambda: len(collector.of(trace)) == len(HOPS))
    return collector.of(trace)


def hear(site, number: int, **headers: str) -> tuple[list[dict], float]:
    """So many events, one after the other, from the request to the frame: the frames, and the longest, in
    seconds."""
    frames, longest = [], 0.0
    with connect(
        f"wss://{site.address[0]}:{site.address[1]}/websocket/", ssl=for_threads(site.tls), proxy=None,
        additional_headers={"Authorization": f"Bearer {site.token}"}, subprotocols=["carillon.v2"],
    ) as socket:  # fmt: skip
        socket.recv(10)
        socket.send(json.dumps({"groups": {"schedules": ["changed"]}}))
        socket.recv(10)
        for _ in range(number):
            begun, id = time.monotonic(), str(uuid.uuid4())
            event = {"group": "schedules-changed", "payload": {"id": id}, "id": id}
            site.publish([event], **headers)
            while (frame := json.loads(socket.recv(10))).get("event", {}).get("id") != id:
                pass
            longest = max(longest, time.monotonic() - begun)
            frames.append(frame)
    return frames, longest


def test_one_event_is_one_trace_and_each_hop_the_child_of_the_one_before(site, collector):
    (frame,), _ = hear(site, 1, traceparent=f"00-{TRACE}-{SPAN}-01")
    found = whole(collector, TRACE)
    spans = [found[hop] for hop in HOPS]
    assert [span.parent for span in spans] == [SPAN, *(span.id for span in spans[:-1])]
    assert frame["trace"] == f"00-{TRACE}-{spans[-1].id}-01"
    assert {span.attributes["messaging.message.id"] for span in spans[1:]} == {
        frame["event"]["id"].replace("-", "")
    }
    begun = [span.begun for span in spans]
    assert begun == sorted(begun)
    assert all(span.begun <= span.ended and not span.failed for span in spans)


def test_a_header_of_nonsense_is_a_trace_of_its_own(site, collector):
    (frame,), _ = hear(site, 1, traceparent="00-nonsense")
    found = whole(collector, frame["trace"].split("-")[1])
    assert found[HOPS[0]].parent == ""


@pytest.mark.parametrize("how", ["refuses", "hangs"])
def test_with_a_bad_collector_events_come_as_before(site, collector, how):
    def dropped() -> float:
        metrics, name = site.metrics(), "carillon_spans_total"
        return metrics(name, outcome="full") + metrics(name, outcome="failed")

    before = dropped()
    collector.how = how
    try:
        asked = collector.asked
        _, longest = hear(site, 15)
        assert longest < 2.0, "an event waited for the collector"
        wait(lambda: collector.asked > asked)
        wait(lambda: dropped() > before)
    finally:
        collector.how = "takes"
    (frame,), _ = hear(site, 1)
    assert wait(lambda: collector.of(frame["trace"].split("-")[1])), "no span comes again"
