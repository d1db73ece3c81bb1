"""The local fan-out against a model: who hears what, in which order, how often written."""

import asyncio
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_amqp.options import Options, Target
from asgi_amqp.position import Position
from carillon.events.event import Event, pack
from carillon.events.seen import Seen
from carillon.fanout.cursor import PIECE
from carillon.fanout.forms import Texts1, Texts2
from carillon.fanout.hub import Hub, Listener
from carillon.fanout.tail import Tail
from carillon.fanout.window import Window
from carillon.server.wheel import Wheel

GROUPS = [b"a-1", b"b-1", b"c-1", b"d-1"]


class Ear(Listener):
    __slots__ = ("heard", "told", "writes")

    def __init__(self, form=Texts1, tags=()):
        super().__init__(form, frozenset(tags))
        self.heard = []
        self.writes = 0
        self.owner = self
        self.told = []

    def room(self):
        return True

    def give(self, data, number):
        self.heard += data

    def recovered(self, at):
        self.told.append(str(at))

    def lost(self, reason, asked):
        self.told.append(reason)

    def write(self, data, number):
        if not self.live:
            self.later(sum(map(len, data)))
            return
        self.writes += 1
        self.heard += data


async def fed(hub):
    """Until the feeder has nothing to do."""
    while hub.feeder._feeding is not None:
        await asyncio.sleep(0)


def hub_of(limit=10**6):
    hub = Hub(Window(limit))
    hub.begin("ep", 0)
    return hub


def test_what_goes_by_a_listener_that_has_ended_is_not_counted_as_delivered():
    hub, ended = hub_of(), Ear()
    hub.subscribe(ended, frozenset([b"a-1"]))
    ended.end()
    hub.deliver([Event(b"a-1", b"{}", number=1)])
    assert (ended.heard, hub.delivered) == ([], 0)


async def test_patience_is_for_the_log_and_not_for_a_reader_that_has_no_room(monkeypatch):
    hub, slow = Hub(Window(10**6)), Ear()
    hub.begin("ep", 4)
    hub.feeder.log, hub.feeder.patience = SimpleNamespace(want=lambda listener: None), 0.0
    hub.subscribe(slow, frozenset([b"a-1"]), Position("ep", 1))
    await fed(hub)
    monkeypatch.setattr(Ear, "room", lambda self: False)
    for _ in range(2):
        hub.feeder._tick()
    assert (bool(slow.waits), slow.told) == (True, [])
    monkeypatch.setattr(Ear, "room", lambda self: True)
    for _ in range(2):
        hub.feeder._tick()
    assert slow.told == ["timeout"]
    hub.feeder._ticking.cancel()


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
    assert hub.delivered == sum(map(len, expected))
    for ear in ears:
        hub.subscribe(ear, frozenset())
    assert not hub._groups
    assert not hub._tags


@settings(deadline=None)
@given(st.integers(0, 30), st.integers(1, 30), st.integers(300, 3000))
async def test_a_resume_and_the_live_events_are_seamless(since, joined, limit):
    """Whatever the moment: missed, then live, nothing twice; or it is said."""
    hub = hub_of(limit)
    ear = Ear(Texts2)
    begin = None
    for number in range(1, 31):
        hub.deliver([event(number)])
        if number == joined:
            covered = hub.window.start <= since
            hub.subscribe(ear, frozenset(GROUPS), Position("ep", min(since, joined)))
            await fed(hub)
            assert ear.told == [(f"ep:{joined}" if covered or since > joined else "retention")]
            begin = min(since, joined) if covered or since > joined else joined
    assert [text.split('"')[3] for text in ear.heard] == [f"ep:{number}" for number in range(begin + 1, 31)]
    assert hub.delivered == len(ear.heard), "what was missed is counted as what comes"


async def test_a_resume_minds_the_audience():
    hub = hub_of()
    hub.deliver([event(1, audience=("u1",)), event(2, audience=("t1",)), event(3)])
    ear = Ear(tags=["u1"])
    hub.subscribe(ear, frozenset([b"a-1"]), Position("ep", 0))
    await fed(hub)
    assert ear.heard == ["1", "3"]
    assert ear.live


async def test_who_may_hear_little_of_much_is_not_left_behind():
    hub = hub_of()
    hub.deliver([event(number, audience=("u2",)) for number in range(1, 2000)])
    ear = Ear(tags=["u1"])
    hub.subscribe(ear, frozenset([b"a-1"]), Position("ep", 0))
    await fed(hub)
    assert ear.live
    assert ear.told == ["ep:1999"]


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


async def test_who_comes_from_a_process_that_is_ahead():
    hub = hub_of()
    ear = Ear()
    hub.subscribe(ear, frozenset([b"a-1", b"b-1"]), Position("ep", 5))
    await fed(hub)
    hub.deliver([event(4)])
    await fed(hub)
    assert (ear.told, ear.heard) == ([], [])
    hub.advance(5)
    await fed(hub)
    assert (ear.told, ear.live) == (["ep:5"], True)
    hub.deliver([event(6)])
    assert ear.heard == ["6"]


async def test_a_new_beginning_forgets():
    hub = hub_of()
    hub.deliver([event(1)])
    hub.begin("next", 99)
    before, after = Ear(), Ear()
    hub.subscribe(before, frozenset([b"a-1"]), Position("next", 1))
    hub.subscribe(after, frozenset([b"a-1"]), Position("next", 99))
    await fed(hub)
    assert (before.told, after.told) == (["retention"], ["next:99"])
    assert (before.heard, after.heard) == ([], [])


class Slow(Ear):
    """Takes pieces when it is told to."""

    __slots__ = ("may",)

    def __init__(self, form=Texts1, tags=()):
        super().__init__(form, tags)
        self.may = True

    def write(self, data, number):
        if self.live and self.may:
            super().write(data, number)
            self.sent = number
        else:
            self.later(sum(map(len, data)))

    def room(self):
        return self.may


async def test_a_slow_reader_has_everything_in_the_end():
    hub = hub_of()
    ear, other = Slow(), Ear()
    for each in (ear, other):
        hub.subscribe(each, frozenset([b"a-1"]))
    for number in range(1, 100, 3):
        ear.may = number % 4 == 0
        hub.deliver([event(number), event(number + 1), event(number + 2, b"b-1")])
        hub.feeder.ready(ear)
        await fed(hub)
    ear.may = True
    hub.feeder.ready(ear)
    await fed(hub)
    assert ear.live
    assert ear.heard == other.heard


async def test_a_burst_is_cut_into_pieces():
    """Who takes the first of it has the rest later, once, in order."""
    hub = hub_of(10**8)

    class Once(Slow):
        __slots__ = ()

        def write(self, data, number):
            super().write(data, number)
            assert sum(map(len, data)) <= PIECE
            self.may = False

    ear, other = Once(), Ear()
    for each in (ear, other):
        hub.subscribe(each, frozenset([b"a-1", b"b-1"]))
    hub.deliver([Event(GROUPS[n % 2], b"%05d" % n + b"x" * 3000, None, b"", 0, n) for n in range(1, 200)])
    assert 0 < len(ear.heard) < 30
    assert other.writes > 8
    ear.may = True
    hub.feeder.ready(ear)
    await fed(hub)
    assert ear.heard == other.heard
    assert len(ear.heard) == 199


async def test_feeding_many_gives_way(monkeypatch):
    """After each piece, where it takes longer than a moment; and each piece goes to another one."""
    monkeypatch.setattr("carillon.fanout.feeder.MOMENT", -1.0)
    hub = hub_of(10**8)
    hub.deliver([Event(b"a-1", b"x" * 60_000, None, b"", 0, number) for number in range(1, 20)])
    given = []

    class Counted(Ear):
        __slots__ = ()

        def give(self, data, number):
            super().give(data, number)
            given.append(self)

    ears = [Counted() for _ in range(50)]
    for ear in ears:
        hub.subscribe(ear, frozenset([b"a-1"]), Position("ep", 0))
    while hub.feeder._feeding is not None:
        before = len(given)
        await asyncio.sleep(0)
        assert len(given) - before <= 1
    assert given == ears * 19
    assert all(len(ear.heard) == 19 for ear in ears)


async def test_a_mistake_while_one_is_fed_is_nobody_else_s():
    hub = hub_of()
    hub.deliver([event(1)])

    class Broken(Ear):
        __slots__ = ()

        def give(self, data, number):
            raise ZeroDivisionError

        def failed(self):
            self.end()
            self.told.append("failed")

    ears = [Broken(), Ear()]
    for ear in ears:
        hub.subscribe(ear, frozenset([b"a-1"]), Position("ep", 0))
    await fed(hub)
    assert [ear.told for ear in ears] == [["failed"], ["ep:1"]]


async def test_what_waits_too_long_is_given_up(monkeypatch):
    monkeypatch.setattr("carillon.fanout.feeder.TICK", 0.01)
    monkeypatch.setattr("carillon.fanout.cursor.AHEAD", 0.05)
    hub = hub_of()
    ear = Ear()
    hub.subscribe(ear, frozenset([b"a-1"]), Position("ep", 5))
    async with asyncio.timeout(5):
        while not ear.told:
            await asyncio.sleep(0.01)
    assert ear.told == ["ahead"]
    await fed(hub)
    assert ear.live


def timers(hub) -> int:
    scheduled = asyncio.get_running_loop()._scheduled
    return sum(not timer.cancelled() and timer._callback == hub.feeder._tick for timer in scheduled)


async def test_who_comes_while_others_that_have_left_are_fed_has_a_clock():
    hub, gone, late = hub_of(), Ear(), Ear()
    hub.subscribe(gone, frozenset([b"a-1"]), Position("ep", 5))
    gone.end()
    hub.subscribe(gone, frozenset())
    hub.feeder._ticking.cancel()
    hub.feeder._tick()  # nobody is behind, but the feeding has not ended
    assert (hub.feeder._feeding is not None, timers(hub)) == (True, 0)
    hub.subscribe(late, frozenset([b"a-1"]), Position("ep", 5))
    assert timers(hub) == 1
    hub.feeder._ticking.cancel()


async def test_who_has_waited_too_long_sets_no_second_clock():
    hub = Hub(Window(10**6))
    hub.begin("ep", 4)
    hub.feeder.log, hub.feeder.patience = SimpleNamespace(want=lambda listener: None), 0.0
    ears = [Ear(), Ear()]
    for ear, number in zip(ears, (1, 9), strict=True):
        hub.subscribe(ear, frozenset([b"a-1"]), Position("ep", number))
    await fed(hub)
    for _ in range(3):
        hub.feeder._ticking.cancel()
        hub.feeder._tick()
        await fed(hub)
    assert [ear.told for ear in ears] == [["timeout"], []]
    assert timers(hub) == 1
    hub.feeder._ticking.cancel()


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
    assert len(seen) == 2
    seen.discard(b"a")
    assert b"a" not in seen
    assert b"c" in seen
    assert seen.add(b"a")
    assert not seen.add(b"c")


@pytest.mark.parametrize("slots", [3, 4])
def test_the_wheel_visits_each_once_a_turn(slots):
    wheel = Wheel(slots)
    slot = wheel.add("a")
    wheel.tick()
    wheel.add("b")
    nobody = [()] * (slots - 2)
    visits = [wheel.tick() for _ in range(2 * slots)]
    assert visits == [*nobody, ("a",), ("b",)] * 2
    wheel.discard("a", slot)
    assert [wheel.tick() for _ in range(slots)] == [*nobody, (), ("b",)]


def test_a_wheel_of_one_slot_visits_everybody_at_each_tick():
    wheel = Wheel(1)
    slot = wheel.add("a")
    assert [wheel.tick(), wheel.tick()] == [("a",)] * 2
    wheel.discard("a", slot)
    assert wheel.tick() == ()


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


def test_what_comes_again_behind_a_jump_is_in_the_window_under_its_first_number():
    """So whoever is between the jump and its second number is not served from here, nor live."""
    hub = Hub(Window(10**6))
    tail = Tail(Options((Target.parse("amqp://a"),), "t"), hub, None, lambda reason: None)
    tail.core.attached(Position("ep", 0))
    first, lost, new = (Event(b"a-1", b"{}", None, b"%016d" % n) for n in range(3))
    tail._arrived([(0, pack([], 1, 0)), (1, pack([first, lost], 1))])
    tail.core.attached(Position("ep", 0))
    tail._arrived([(1, pack([], 100, 1))])  # the log has lost its second event, which comes again as 100
    assert hub.number == 100
    assert [hub.window.covers(number) for number in (1, 2, 50, 99, 100)] == [True, True, False, False, True]
    tail._arrived([(2, pack([lost], 100)), (3, pack([new], 101))])
    assert (hub.doubles, hub.number) == (1, 101)
    events, reached = hub.window.between([b"a-1"], 1, 10**6, 10**6)
    assert ([event.number for event in events], reached) == ([2, 101], 101)
