"""The local fan-out against a model: who hears what, in which order, how often written."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from carillon.events.event import Event
from carillon.events.seen import Seen
from carillon.fanout.forms import Texts1, Texts2
from carillon.fanout.hub import Hub, Listener
from carillon.fanout.window import Window
from carillon.server.wheel import Wheel

GROUPS = [b"a-1", b"b-1", b"c-1", b"d-1"]


class Ear(Listener):
    __slots__ = ("heard", "writes")

    def __init__(self, form=Texts1, tags=()):
        super().__init__(form, frozenset(tags))
        self.heard = []
        self.writes = 0

    def write(self, data, number):
        self.writes += 1
        self.heard += data


def replay(hub, ear, groups, number):
    """What a resume from the window does; whether it could."""
    events = hub.missed(ear, groups, number)
    if events is not None:
        hub.tell(ear, events)
    return events is not None


def hub_of(limit=10**6):
    hub = Hub(Window(limit))
    hub.begin("ep", 0)
    return hub


def event(number, group=b"a-1", audience=None, id=None):
    return Event(group, b"%d" % number, audience, id if id is not None else b"%d" % number, 0, number)


SUBSCRIPTIONS = st.frozensets(st.sampled_from(GROUPS))
TAGS = st.frozensets(st.sampled_from(["u1", "u2", "t1", "*"]))
AUDIENCES = st.none() | st.lists(st.sampled_from(["u1", "u2", "t1"]), unique=True).map(tuple)
STEPS = st.one_of(
    st.tuples(st.just("subscribe"), st.integers(0, 4), SUBSCRIPTIONS),
    st.tuples(st.just("retag"), st.integers(0, 4), TAGS),
    st.tuples(
        st.just("deliver"), st.lists(st.tuples(st.sampled_from(GROUPS), AUDIENCES), max_size=6), st.booleans()
    ),
)


@settings(max_examples=200)
@given(st.lists(TAGS, min_size=5, max_size=5), st.lists(STEPS, max_size=25))
def test_everyone_hears_what_is_his_in_order_and_once(tags, steps):
    hub = hub_of()
    ears = [Ear(tags=each) for each in tags]
    expected = [[] for _ in ears]
    number = 0
    for what, first, second in steps:
        if what == "subscribe":
            hub.subscribe(ears[first], second)
        elif what == "retag":
            hub.retag(ears[first], second)
        else:
            batch = []
            for group, audience in first:
                number += 1
                batch.append(event(number, group, audience))
            if second and batch:
                batch.append(event(number, batch[0].group, None, batch[0].id))  # a double
            writes = [ear.writes for ear in ears]
            hub.deliver(batch)
            for ear, heard, before in zip(ears, expected, writes, strict=True):
                mine = [e for e in batch[: len(first)] if e.group in ear.groups and ear.hears(e)]
                heard += [e.text.decode() for e in mine]
                assert ear.writes - before == (1 if mine else 0)
    assert [ear.heard for ear in ears] == expected
    for ear in ears:
        hub.subscribe(ear, frozenset())
    assert not hub.groups()
    assert not hub._tags


@given(st.integers(0, 30), st.integers(1, 30), st.integers(300, 3000))
def test_a_resume_and_the_live_events_are_seamless(since, joined, limit):
    """Whatever the moment: missed, then live, nothing twice, or not at all."""
    hub = hub_of(limit)
    ear = Ear(Texts2)
    missed = None
    for number in range(1, 31):
        hub.deliver([event(number)])
        if number == joined:
            missed = replay(hub, ear, frozenset(GROUPS), since)
            if missed:
                hub.subscribe(ear, frozenset(GROUPS))
    expected = range(since + 1, 31) if missed else []
    assert [text.split('"')[3] for text in ear.heard] == [f"ep:{number}" for number in expected]
    assert missed or since > joined or since < hub.window.start


def test_a_replay_minds_the_audience():
    hub = hub_of()
    hub.deliver([event(1, audience=("u1",)), event(2, audience=("t1",)), event(3)])
    ear = Ear(tags=["u1"])
    assert replay(hub, ear, {b"a-1"}, 0)
    assert ear.heard == ["1", "3"]


def test_an_internal_event_comes_between_those_around_it():
    hub = hub_of()
    ear = Ear()
    hub.subscribe(ear, frozenset([b"a-1"]))
    hub.on(b"!access", lambda event: hub.subscribe(ear, frozenset()))
    hub.deliver([event(1), event(2, b"!access"), event(3)])
    assert ear.heard == ["1"]
    hub.on(b"!access", lambda event: 1 / 0)
    hub.subscribe(ear, frozenset([b"a-1"]))
    hub.deliver([event(4, b"!access"), event(5)])
    assert ear.heard == ["1", "5"]


async def test_waiting_for_a_position():
    hub = hub_of()
    assert await hub.reached(0, 0)
    assert not await hub.reached(5, 0.01)
    waiting = hub.reached(5, 5)
    hub.advance(5)
    assert await waiting


def test_a_new_beginning_forgets():
    hub = hub_of()
    hub.deliver([event(1)])
    hub.begin("next", 99)
    ear = Ear()
    assert not replay(hub, ear, {b"a-1"}, 1)
    assert replay(hub, ear, {b"a-1"}, 99)
    assert (hub.epoch, hub.number, ear.heard) == ("next", 99, [])


def test_ids_are_remembered_up_to_a_limit():
    seen = Seen(2)
    assert [seen.add(id) for id in (b"a", b"b", b"a", b"c", b"a", b"")] == [
        True,
        True,
        False,
        True,
        True,
        True,
    ]
    seen.discard(b"a")
    assert b"a" not in seen
    assert seen.add(b"a")


def test_the_wheel_visits_each_once_a_turn():
    wheel = Wheel(3)
    slot = wheel.add("a")
    wheel.tick()
    wheel.add("b")
    visits = [wheel.tick() for _ in range(6)]
    assert visits == [(), ("a",), ("b",)] * 2
    wheel.discard("a", slot)
    assert [wheel.tick() for _ in range(3)] == [(), (), ("b",)]


@pytest.mark.parametrize("count", [1, 7])
def test_a_listener_that_leaves_while_written_to(count):
    hub = hub_of()

    class Leaver(Ear):
        __slots__ = ()

        def write(self, data, number):
            super().write(data, number)
            hub.subscribe(self, frozenset())

    ears = [Leaver() for _ in range(count)]
    for ear in ears:
        hub.subscribe(ear, frozenset([b"a-1", b"b-1"]))
    hub.deliver([event(1), event(2, b"b-1")])
    hub.deliver([event(3)])
    assert [ear.heard for ear in ears] == [["1", "2"]] * count
