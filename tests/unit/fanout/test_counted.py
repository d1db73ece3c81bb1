"""What the fan-out counts: ages, positions, and what was read, doubled and delivered."""

from __future__ import annotations

import time

import pytest

from asgi_amqp import Options, Position, Target
from carillon.events.event import Event, pack
from carillon.fanout.hub import Hub
from carillon.fanout.station import Station
from carillon.fanout.tail import Tail
from carillon.fanout.window import Window
from carillon.metrics import names, sampled
from tests.unit.fanout.test_tail import Ear


def ages() -> tuple[float, float]:
    """How many were observed, and their sum."""
    return sum(each.get() for each in names.EVENT_AGE._buckets), names.EVENT_AGE._sum.get()


@pytest.fixture
async def tail():
    found = Tail(
        Options((Target.parse("amqp://127.0.0.1:1/"),), "test"), Hub(Window(2**20)), None, lambda reason: None
    )
    found.core.attached(Position("ep", 1))
    return found


def arrive(tail: Tail, number: int, stamp: float) -> None:
    event = Event(b"a-1", b"{}", None, b"%016d" % number, int(stamp * 1000))
    tail._arrived([(number, pack([event], number))])


async def test_an_age_is_observed_once_the_process_is_level(tail):
    before = ages()
    arrive(tail, 1, time.time() - 3600)  # read again at the start: not late
    assert ages() == before
    arrive(tail, 2, time.time() - 30)
    count, seconds = ages()
    assert count == before[0] + 1
    assert 30 <= seconds - before[1] < 40


async def test_a_clock_that_is_ahead_makes_no_negative_age(tail):
    arrive(tail, 1, 0)
    before = ages()
    arrive(tail, 2, time.time() + 3600)
    assert ages() == (before[0] + 1, before[1])


async def test_plain_numbers_become_metrics(monkeypatch):
    monkeypatch.setattr(sampled, "_sampled", [])
    counters = (names.FANOUT_EVENTS, names.FANOUT_DOUBLES, names.DELIVERED)
    before = [counter._value.get() for counter in counters]
    here = Station()
    here.hub.begin("ep", 0)
    for _ in range(2):
        ear = Ear()
        here.hub.subscribe(ear, frozenset([b"a-1"]))
    event = Event(b"a-1", b"{}", None, b"i" * 16, 1, 7)
    here.hub.deliver([event, event])
    for _ in range(2):
        sampled.sample()
    assert [counter._value.get() - was for counter, was in zip(counters, before, strict=True)] == [2, 1, 2]
    assert names.FANOUT_POSITION._value.get() == 7
    assert names.WINDOW_BYTES._value.get() == event.size
    ear.later(100)
    sampled.sample()
    assert names.SOCKETS_BEHIND._value.get() == 1
