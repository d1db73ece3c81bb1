"""The cursor against a model: nothing lost, nothing twice, in order, in few bytes, whatever happens when."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_amqp.position import Position
from carillon.events.event import Event
from carillon.fanout import cursor as core
from carillon.fanout.cursor import PIECE, SLOW, Cursor, Lost
from carillon.fanout.window import Window

GROUPS = [b"a-1", b"b-1", b"c-1"]
BUDGET = 4 * PIECE


def at(number):
    return Position("ep", number)


def event(number, group=b"a-1", size=100):
    return Event(group, b"x" * size, number=number)


class World:
    """A log, a window on its end, one listener and its reader; and what the reader should have."""

    def __init__(self):
        self.cursor = Cursor()
        self.log: list[Event] = []
        self.number = self.gone = 0  # the last one; up to where retention has passed
        self.window = Window(6 * PIECE)
        self.window.mark(0)
        self.page: Window | None = None
        self.waiting = 0
        self.heard: list[Event] = []
        self.wanted: dict[bytes, int] = {}  # group: heard from behind this number on
        self.told: list[Lost | str] = []

    # What happens

    def emit(self, batch):
        for group, size in batch:
            self.number += 2
            fresh = event(self.number, group, size)
            before = self.number - 2
            self.log.append(fresh)
            self.window.extend([fresh])
            if group not in self.cursor.groups:
                continue
            cursor = self.cursor
            if cursor.live and self.waiting and self.waiting + fresh.size > BUDGET:
                cursor.fell(at(max(before, cursor.sent)), fresh.size)
            elif cursor.live:
                self.write([fresh])
                cursor.sent = fresh.number
            else:
                cursor.arrived(fresh.size)

    def drain(self):
        self.waiting = 0
        for _ in range(1000):
            if self.waiting or not self.feed():
                return
        raise AssertionError("it is fed for ever")

    def feed(self):
        """Whether there is more to do."""
        held, resumes = self.cursor.held, self.cursor.asked is not None
        piece = self.cursor.feed(self.read, at(self.number))
        assert not (held and piece.events), "held, and written to"
        assert sum(e.size for e in piece.events) <= PIECE or len(piece.events) == 1
        self.write(piece.events, resumes)
        if piece.recovered:
            self.told.append("recovered")
            asked = self.cursor.reached(at(self.number)).number
            for group, since in self.wanted.items():
                assert self.complete(group, since, asked)
        return piece.more

    def read(self, groups, since, upto, most):
        return self.window.between(groups, since, upto, most) or (
            self.page.between(groups, since, upto, most)
            if self.page is not None and since != self.page.end
            else None
        )

    def turn(self, size):
        """A page of the log is read, where one is wanted."""
        if not self.cursor.waits:
            return
        wanted = self.cursor.wanted()
        if wanted >= self.number:
            return
        if wanted < self.gone:
            for stretch in self.all():
                if stretch.since.number < self.gone:
                    self.wanted |= dict.fromkeys(stretch.groups, self.number)
            self.told += self.cursor.lose("retention", at(self.number), self.gone)
            return
        self.page = Window(10**9)
        self.page.mark(wanted)
        events = [each for each in self.log if each.number > wanted][:size]
        self.page.extend(events)
        self.page.mark(events[-1].number if events else self.number)

    def all(self):
        asked = [] if self.cursor.asked is None else [self.cursor.asked]
        return self.cursor.stretches + asked

    def subscribe(self, groups, since):
        groups = frozenset(groups)
        if since is not None:
            since = min(since, self.number)
        for group in self.cursor.groups - groups:
            del self.wanted[group]
            self.heard = [each for each in self.heard if each.group != group]
        for group in groups - self.cursor.groups:
            self.wanted[group] = self.number if since is None else since
        self.cursor.subscribed(groups, at(self.number), None if since is None else at(since))

    def forget(self, share):
        """Retention passes."""
        self.gone = max(self.gone, min(self.window.start, int(self.number * share)))

    # What must be so

    def write(self, events, resumes=None):
        """`resumes`: its client has no answer yet to a resume, and keeps what it asked with."""
        self.heard += events
        self.waiting += sum(each.size for each in events)
        largest = max((each.size for each in events), default=0)
        assert self.waiting <= max(BUDGET, largest)
        if events and not (self.cursor.asked is not None if resumes is None else resumes):
            for group, since in self.wanted.items():
                reached = min(events[-1].number, self.number)
                assert self.complete(group, since, reached), (
                    "its reader has a position that it has not reached"
                )

    def complete(self, group, since, upto):
        mine = [e.number for e in self.heard if e.group == group and since < e.number]
        due = [e.number for e in self.log if e.group == group and since < e.number <= upto]
        return [number for number in mine if number <= upto] == due

    def settle(self):
        self.cursor.release()
        for _ in range(10_000):
            self.drain()
            self.waiting = 0
            if self.cursor.live:
                return
            if self.cursor.waits:
                self.turn(7)
        raise AssertionError(f"never level: {self.cursor.waits}")


SIZES = st.sampled_from([10, 1000, 30_000, PIECE - 300, 2 * PIECE, 5 * PIECE])
STEPS = st.one_of(
    st.tuples(st.just("emit"), st.lists(st.tuples(st.sampled_from(GROUPS), SIZES), max_size=12)),
    st.tuples(st.just("drain")),
    st.tuples(st.just("hold")),
    st.tuples(st.just("release")),
    st.tuples(st.just("turn"), st.integers(1, 20)),
    st.tuples(st.just("subscribe"), st.sets(st.sampled_from(GROUPS)), st.none() | st.integers(0, 60)),
    st.tuples(st.just("forget"), st.floats(0, 1)),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(STEPS, max_size=40))
def test_nothing_lost_nothing_twice_in_order_and_in_few_bytes(steps):
    world = World()
    for what, *more in steps:
        if what == "hold":
            world.cursor.hold(at(world.number))
        elif what == "release":
            world.cursor.release()
        elif what == "subscribe" and world.cursor.asked is not None and more[1] is not None:
            continue  # a client's messages are read one after the other
        else:
            getattr(world, what)(*more)
        assert not (world.cursor.live and world.cursor.held)
        assert not (world.cursor.lag and (world.cursor.live or world.cursor.held))
    world.settle()
    for group, since in world.wanted.items():
        assert world.complete(group, since, world.number), (group, since, world.told)
    assert world.wanted.keys() == world.cursor.groups


def test_the_numbers_that_the_documents_state():
    assert (PIECE, SLOW) == (65_536, 2.0)


def test_the_states():
    cursor = Cursor()
    assert (cursor.live, cursor.sent, cursor.lag, cursor.wanted()) == (True, 0, 0, float("inf"))
    cursor.subscribed(frozenset(GROUPS[:1]), at(0))
    assert cursor.live
    cursor.fell(at(4), 10)
    assert (cursor.live, cursor.held, cursor.lag, cursor.wanted()) == (False, False, 10, 4)
    cursor.arrived(5)
    assert cursor.lag == 15
    cursor.hold(at(6))
    assert (cursor.held, cursor.wanted(), cursor.lag) == (True, 4, 0)
    cursor.arrived(5)
    assert cursor.lag == 0, "who is held is not too slow"
    cursor.release()
    assert not cursor.live
    assert cursor.feed(lambda *_: ([], 8), at(8)) == core.NOTHING
    assert cursor.live
    cursor.end()
    assert not cursor.live


def test_what_comes_while_it_is_held_is_had_when_its_rights_are_known():
    cursor = Cursor()
    cursor.subscribed(frozenset([b"a-1"]), at(0))
    cursor.hold(at(6))
    assert (cursor.live, cursor.wanted()) == (False, 6)
    assert cursor.feed(lambda *_: ([event(7)], 7), at(7)) == core.NOTHING
    cursor.release()
    assert not cursor.live
    piece = cursor.feed(lambda groups, since, upto, most: ([event(since + 1)], upto), at(7))
    assert [each.number for each in piece.events] == [7]
    assert (cursor.live, cursor.sent) == (True, 7)


def test_who_wants_nothing_of_what_he_is_behind_in_is_level():
    cursor = Cursor()
    cursor.subscribed(frozenset([b"a-1", b"b-1"]), at(0))
    cursor.fell(at(4), 1)
    cursor.subscribed(frozenset([b"b-1"]), at(9))
    assert (cursor.live, cursor.wanted(), cursor.lag) == (False, 4, 1)
    cursor.subscribed(frozenset(), at(9))
    assert (cursor.live, cursor.lag) == (True, 0)


def test_a_resume_does_not_stop_the_groups_that_were_there():
    """A piece of each, in turn."""
    cursor = Cursor()
    cursor.subscribed(frozenset([b"a-1"]), at(100))
    cursor.subscribed(frozenset([b"a-1", b"b-1"]), at(100), at(0))

    def read(groups, since, upto, most):
        (group,) = groups
        return [event(since + 1, group)], since + 1

    groups = [cursor.feed(read, at(110)).events[0].group for _ in range(6)]
    assert groups in ([b"a-1", b"b-1"] * 3, [b"b-1", b"a-1"] * 3)


def test_what_is_said_of_a_resume_names_what_everything_has_reached():
    cursor = Cursor()
    cursor.subscribed(frozenset([b"a-1"]), at(50))
    cursor.fell(at(50), 1)
    cursor.subscribed(frozenset([b"a-1", b"b-1"]), at(100), at(99))
    cursor._turn = False
    piece = cursor.feed(lambda groups, since, upto, most: ([], upto) if b"b-1" in groups else None, at(100))
    assert piece.recovered
    assert cursor.reached(at(100)) == at(50)


def test_what_was_asked_for_goes_on_where_it_ended_while_the_others_are_behind():
    cursor = Cursor()
    cursor.subscribed(frozenset([b"a-1"]), at(50))
    cursor.fell(at(50), 1)
    cursor.subscribed(frozenset([b"a-1", b"b-1"]), at(100), at(99))
    for _ in range(2):
        cursor.feed(lambda groups, *_: ([], 100) if b"b-1" in groups else None, at(100))
    assert [(stretch.groups, stretch.since) for stretch in cursor.stretches] == [
        ({b"a-1"}, at(50)),
        ({b"b-1"}, at(100)),
    ]


def test_who_is_level_but_for_what_he_asked_for_misses_nothing_of_the_rest():
    """And has nothing to do until the log has been read for the other."""
    cursor = Cursor()
    cursor.subscribed(frozenset([b"a-1"]), at(100))
    cursor.subscribed(frozenset([b"a-1", b"b-1"]), at(100), at(0))
    assert not cursor.feed(lambda *_: None, at(100)).more
    piece = cursor.feed(lambda groups, *_: ([event(101)], 101) if b"a-1" in groups else None, at(101))
    assert [each.number for each in piece.events] == [101]


def test_who_asked_for_more_than_a_piece_has_more_to_be_fed():
    cursor = Cursor()
    cursor.subscribed(frozenset([b"a-1"]), at(9), at(0))
    fed = [cursor.feed(lambda _, since, *__: ([event(since + 3)], since + 3), at(9)) for _ in range(3)]
    assert [(piece.more, piece.recovered) for piece in fed] == [(True, False), (True, False), (False, True)]


def test_who_asks_again_before_the_answer_misses_nothing_of_what_was_asked_first():
    cursor = Cursor()
    cursor.subscribed(frozenset([b"a-1"]), at(10), at(3))
    assert not cursor.live
    cursor.subscribed(frozenset([b"a-1", b"b-1"]), at(10), at(5))
    assert [(stretch.groups, stretch.since) for stretch in (*cursor.stretches, cursor.asked)] == [
        ({b"a-1"}, at(3)),
        ({b"b-1"}, at(5)),
    ]
    assert cursor.wanted() == 3


def test_another_epoch_is_lost_at_once():
    cursor = Cursor()
    cursor.subscribed(frozenset([b"a-1"]), at(5), Position("old", 3))
    piece = cursor.feed(lambda *_: ([], 5), at(5))
    assert piece.lost == [Lost("epoch", True)]
    cursor.feed(lambda *_: ([], 5), at(5))
    assert cursor.live


def test_of_what_lies_before_a_place_alone_it_is_said_that_it_is_lost():
    """It goes on at the end, behind what is there still."""
    cursor = Cursor()
    cursor.subscribed(frozenset([b"a-1"]), at(4))
    cursor.fell(at(4), 1)
    cursor.subscribed(frozenset([b"a-1", b"b-1"]), at(9))
    cursor.subscribed(frozenset(GROUPS), at(20), at(6))
    cursor.feed(lambda *_: None, at(20))
    assert cursor.waits
    assert cursor.lose("retention", at(20), 6) == [Lost("retention", False)]
    assert (cursor.asked.since, cursor.waits) == (at(6), [])
    assert [(stretch.groups, stretch.since) for stretch in cursor.stretches] == [
        ({b"b-1"}, at(9)),
        ({b"a-1"}, at(20)),
    ]
    assert cursor.lose("retention", at(20), 7) == [Lost("retention", True)]
    assert (cursor.asked, cursor.stretches[-1].groups) == (None, {b"a-1", b"c-1"})


def test_an_interruption_begins_anew_and_stays_held():
    cursor = Cursor()
    cursor.subscribed(frozenset([b"a-1"]), at(5), at(0))
    cursor.arrived(7)
    cursor.interrupted(Position("other", 3))
    assert (cursor.live, cursor.sent, cursor.lag, cursor.wanted()) == (True, 3, 0, float("inf"))
    cursor.hold(at(5))
    cursor.interrupted(Position("next", 1))
    assert (cursor.live, cursor.asked) == (False, None)
    assert (cursor.sent, cursor.lag) == (1, 0)
    assert cursor.reached(at(0)) == Position("next", 1)
    cursor.release()
    cursor.feed(lambda *_: ([], 1), Position("next", 1))
    assert cursor.live


def test_an_interruption_does_not_bring_back_what_has_ended():
    cursor = Cursor()
    cursor.subscribed(frozenset([b"a-1"]), at(5))
    cursor.end()
    cursor.interrupted(Position("other", 3))
    assert not cursor.live


def test_who_wants_nothing_is_behind_in_nothing_whatever_happens():
    cursor = Cursor()
    cursor.hold(at(5))
    assert (cursor.live, cursor.wanted()) == (False, float("inf"))
    cursor.interrupted(Position("next", 1))
    assert (cursor.live, cursor.wanted()) == (False, float("inf"))
    cursor.release()
    assert cursor.live


def test_nothing_is_written_after_the_end():
    cursor = Cursor()
    cursor.subscribed(frozenset([b"a-1"]), at(0))
    cursor.fell(at(4), 1)
    cursor.end()
    assert (cursor.live, cursor.ended) == (False, True)
    assert cursor.feed(lambda *_: ([event(5)], 5), at(5)) == core.NOTHING
    cursor.subscribed(frozenset(), at(5))
    assert not cursor.live


@pytest.mark.parametrize(("since", "reason", "after"), [(10, "timeout", 30.0), (10**9, "ahead", core.AHEAD)])
def test_nobody_waits_for_ever(since, reason, after):
    cursor = Cursor()
    cursor.subscribed(frozenset([b"a-1"]), at(100), at(since))
    cursor.feed(lambda *_: None, at(100))
    assert cursor.tick(0.0, at(100), 30.0) is None
    assert cursor.tick(after - 0.1, at(100), 30.0) is None
    assert cursor.tick(after, at(100), 30.0) == reason
    assert cursor.lose(reason, at(100)) == [Lost(reason, True)]
    cursor.feed(lambda *_: ([], 100), at(100))
    assert cursor.live


def test_who_came_from_ahead_and_has_been_reached_is_not_ahead_any_more():
    cursor = Cursor()
    cursor.subscribed(frozenset([b"a-1"]), at(90), at(100))
    assert cursor.feed(lambda *_: pytest.fail("nobody here has it"), at(90)) == core.NOTHING
    assert cursor.tick(0.0, at(90), 30.0) is None
    assert cursor.tick(core.AHEAD, at(100), 30.0) is None
    assert cursor.tick(core.AHEAD, at(99), 30.0) is None
    assert cursor.tick(2 * core.AHEAD, at(99), 30.0) == "ahead"


def test_who_is_held_waits_for_his_rights_alone():
    cursor = Cursor()
    cursor.subscribed(frozenset([b"a-1"]), at(100), at(10))
    cursor.feed(lambda *_: None, at(100))
    cursor.hold(at(100))
    assert [cursor.tick(now, at(100), 30.0) for now in (0.0, 99.0)] == [None, None]


def test_who_has_not_read_what_it_has_waits_for_itself():
    """The page has come long ago: it is not read before there is room."""
    cursor = Cursor()
    cursor.subscribed(frozenset([b"a-1"]), at(100), at(10))
    cursor.feed(lambda *_: None, at(100))
    assert [cursor.tick(now, at(100), 30.0, False) for now in (0.0, 99.0)] == [None, None]
    assert [cursor.tick(now, at(100), 30.0) for now in (100.0, 129.9, 130.0)] == [None, None, "timeout"]


def test_who_gets_on_does_not_wait():
    """Each look finds it waiting for the log, further on every time."""
    cursor = Cursor()
    cursor.subscribed(frozenset([b"a-1"]), at(100), at(0))
    for now in range(90):
        cursor.asked.since = at(now)
        cursor.feed(lambda *_: None, at(100))
        assert cursor.tick(float(now), at(100), 30.0) is None


def test_version_1_may_be_far_behind_for_a_moment():
    cursor = Cursor(most=1000)
    cursor.subscribed(frozenset([b"a-1"]), at(0))
    cursor.fell(at(0), 5000)
    assert cursor.tick(0.0, at(10), 30.0) is None
    cursor.fed(4500)
    assert cursor.tick(1.0, at(10), 30.0) is None
    cursor.arrived(1000)
    assert cursor.tick(2.0, at(10), 30.0) is None
    assert cursor.tick(2.0 + SLOW, at(10), 30.0) == "slow"
    cursor.fed(500)
    assert [cursor.tick(now, at(10), 30.0) for now in (5.0, 9.0)] == [None, None], "so much it may be behind"
    cursor.fed(1000)
    assert cursor.lag == 0
    cursor.fed(1000)
    assert cursor.lag == 0
    cursor.hold(at(10))
    assert cursor.tick(9.0, at(10), 30.0) is None


def test_version_2_may_be_behind_as_long_as_it_likes():
    cursor = Cursor()
    cursor.subscribed(frozenset([b"a-1"]), at(0))
    cursor.fell(at(0), 10**9)
    assert [cursor.tick(now, at(10), 30.0) for now in (0.0, 10**6)] == [None, None]


def test_who_leaves_a_group_while_its_past_is_waited_for():
    cursor = Cursor()
    cursor.subscribed(frozenset([b"a-1"]), at(100))
    cursor.fell(at(10), 1)
    cursor.feed(lambda *_: None, at(100))
    cursor.hold(at(100))
    cursor.subscribed(frozenset(), at(100))
    assert not cursor.live, "its rights are not known"
    assert cursor.lose("timeout", at(100)) == []
    assert not cursor.wanted() < 100
    cursor.release()
    assert cursor.live


def test_a_place_in_what_the_log_has_lost_is_another_behind_it():
    cursor = Cursor()
    cursor.subscribed(frozenset([b"a-1"]), at(20))
    cursor.fell(at(20), 1)
    cursor.subscribed(frozenset([b"a-1", b"b-1"]), at(30), at(12))
    cursor.carry(lambda number: number + 100 if 10 < number < 25 else number)
    assert [stretch.since.number for stretch in (*cursor.stretches, cursor.asked)] == [120, 112]


def test_a_place_that_is_carried_over_another_comes_behind_it():
    cursor = Cursor()
    cursor.subscribed(frozenset([b"a-1"]), at(19))
    cursor.fell(at(19), 1)
    cursor.subscribed(frozenset([b"a-1", b"b-1"]), at(25))
    cursor.carry(lambda number: number + 10 if 10 < number < 20 else number)
    assert [(stretch.groups, stretch.since.number) for stretch in cursor.stretches] == [
        ({b"b-1"}, 25),
        ({b"a-1"}, 29),
    ]


def test_what_is_behind_one_that_waits_is_not_fed_for_ever():
    """Oldest first: until the log has what the first wants, there is nothing to do."""
    cursor = Cursor()
    cursor.subscribed(frozenset([b"a-1"]), at(0))
    cursor.fell(at(0), 1)
    cursor.subscribed(frozenset([b"a-1", b"b-1"]), at(5))
    piece = cursor.feed(lambda groups, since, upto, most: None if since < 5 else ([], upto), at(9))
    assert not piece.more
    assert [stretch.since for stretch in cursor.waits] == [at(0)]
