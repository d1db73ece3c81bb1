"""`carillon explain`: what may be asked for, and what is told of what was found."""

from __future__ import annotations

import tracemalloc

import pytest
from prometheus_client.core import Metric

from asgi_amqp import Position
from carillon import explain
from carillon.events import outbox, queue
from carillon.events.event import Event
from carillon.explain import Facts, Passed, Place, Unclear

ID = b"\x01" * 16
EVENT = Event(b"jobs-summary", b'{"a": 1}', None, ID, 1_700_000_000_123, 105)
PLACE = Place("carillon.events.e", 41, 3, 17)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("e1:105", (Position("e1", 105), None)),
        ("01" * 16, (None, ID)),
        ("01010101-0101-0101-0101-010101010101", (None, ID)),
    ],
)
def test_a_position_or_an_id(text, wanted):
    assert explain.parse(text) == wanted


@pytest.mark.parametrize(
    "text", ["", "nonsense", "e1:", "e1:-5", "01" * 15, "01" * 17, "e1:5 ", "x" * 10_000]
)
def test_anything_else_is_refused_in_words(text):
    with pytest.raises(Unclear, match="neither a position") as raised:
        explain.parse(text)
    assert len(str(raised.value)) < 250


def told(**fields) -> dict[str, str]:
    return dict(explain.story(Facts(**{"event": EVENT, "epoch": "e", "place": PLACE, **fields})))


def test_every_hop_is_told():
    said = told(
        noted=Position("e", 110),
        relayed=EVENT.stamp + 4,
        passed=[Passed(0, 110, EVENT.stamp + 9), Passed(1, 100), Passed(2, 105)],
        subscribed=[("ann", 2), ("ben", 1)],
    )
    assert said["position"] == "e:105"
    assert said["id"] == ID.hex()
    assert said["emitted"].startswith("2023-11-14T22:13:20.123+00:00")
    assert said["audience"] == "everyone who subscribed"
    assert said["in the log"] == "carillon.events.e, message 41, event 3 of 17"
    assert said["the queue"] == "taken off: the row has e:110"
    assert said["relayed"] == "2023-11-14T22:13:20.127+00:00, 4 ms after its emit, by the clock of runworker"
    assert said["daphne 0"] == (
        "has passed it at 2023-11-14T22:13:20.132+00:00, 9 ms after its emit; it is at 110"
    )
    assert said["daphne 1"] == "is 5 before it, at 100"
    assert said["daphne 2"] == "has passed it; it is at 105"
    assert said["subscribed"].startswith("ann (2), ben (1):")
    assert "trace" not in said


def test_what_is_not_known_is_told_as_well():
    said = told(noted=Position("f", 5))
    assert "epoch is over" in said["the queue"]
    assert said["daphne"].startswith("its epoch is over")
    assert told(noted=Position("e", 105))["daphne"].startswith("none here")
    assert ", 5 ms before its emit, by" in told(relayed=EVENT.stamp - 5)["relayed"]
    assert said["subscribed"].startswith("nobody")
    assert told(noted=Position("e", 100))["the queue"].startswith("perhaps still there")


def test_many_are_not_listed_one_by_one():
    event = Event(b"jobs-summary", b"{}", tuple(f"u{n}" for n in range(50_000)), ID, 1, 105, "00-trace")
    said = told(event=event, subscribed=[(f"user{n}", 1) for n in range(5000)])
    assert said["audience"].startswith("50000 tags (u0 u1 ")
    assert "and 4990 more users" in said["subscribed"]
    assert max(map(len, said.values())) < 300
    assert said["trace"] == "00-trace"


@pytest.mark.parametrize(
    ("wanted", "current", "words"),
    [
        (Position("e", 9), Position("e", 5), "beyond the end of the log, e:5"),
        (Position("e", 4), Position("e", 5), "too old for the log, or never given"),
        (Position("e", 9), Position("f", 5), "too old for the log, or never given"),
    ],
)
def test_why_a_position_has_nothing(wanted, current, words):
    assert words in explain._why_not(wanted, current)


def test_how_far_each_daphne_is_comes_from_its_metrics():
    metric = Metric("carillon_fanout_position", "", "gauge")
    for slot, number in (("1", 7.0), ("0", 9.0)):
        metric.add_sample(metric.name, {"process": "daphne", "slot": slot}, number)
    assert sorted(explain._positions([Metric("other", "", "gauge"), metric])) == [(0, 9), (1, 7)]


@pytest.mark.django_db
def test_a_look_into_the_outbox_takes_a_few_rows_at_a_time():
    outbox.store([queue.message("jobs-summary", "x" * 2**20) for _ in range(64)])
    outbox.store([queue.message("jobs-summary", "{}", id=ID)])
    tracemalloc.start()
    try:
        assert explain._in_outbox(ID)
        assert tracemalloc.get_traced_memory()[1] < 32 * 2**20
    finally:
        tracemalloc.stop()
    assert not explain._in_outbox(bytes(16))
