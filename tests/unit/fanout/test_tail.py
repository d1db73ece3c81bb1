"""What the tail makes of the messages of a stream, without a broker."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_amqp import stream
from asgi_amqp.options import Options, Target
from asgi_amqp.position import Position
from carillon.events.event import END, LEAP, Event, pack, unpack
from carillon.fanout.core import TailCore
from carillon.fanout.forms import Texts1
from carillon.fanout.hub import Hub, Listener
from carillon.fanout.log import NEAR, NOWHERE, TELLING, Place, Reading, _numbers, locate, stream_name
from carillon.fanout.tail import Tail
from carillon.fanout.window import Window


class Ear(Listener):
    __slots__ = ("heard",)

    def __init__(self):
        super().__init__(Texts1)
        self.heard = []

    def write(self, data, number):
        self.heard += data


def message(number, *texts):
    return pack([Event(b"a-1", text, None, text * 16) for text in texts], number)


def mark(number, after):
    return pack([], number, after)


def core_at(goal=0):
    core = TailCore()
    core.attached(Position("ep", goal))
    return core


def steps(core, *bodies, first=0):
    """What the core answers, the events as their texts."""
    return [
        (what, [each.text for each in about[0]] if what == "events" else about[0], *about[1:])
        for what, *about in core.arrived(list(enumerate(bodies, first)))
    ]


def test_before_anything_has_been_read():
    core = TailCore()
    assert (core.epoch, core.place, core.last, core.level) == ("", None, None, False)
    assert core.over(Position("ep", 0))
    assert not core.over(None)


def test_it_begins_with_what_comes_first():
    assert steps(core_at(), message(5, b"a", b"b"), message(7, b"c")) == [
        ("begin", 4, ""),
        ("events", [b"a", b"b", b"c"]),
        ("reached", 7),
    ]
    assert steps(core_at(), mark(1, 0)) == [("begin", 0, ""), ("reached", 0)]


def test_a_jump_without_a_mark_is_a_gap():
    core = core_at()
    steps(core, message(1, b"a"))
    assert steps(core, message(2, b"b"), message(4, b"d")) == [
        ("events", [b"b"]),
        ("begin", 3, "retention"),
        ("events", [b"d"]),
        ("reached", 4),
    ]


@pytest.mark.parametrize(
    ("after", "gap"),
    [(2, False), (1, False), (0, False), (3, True)],
    ids=["as read", "beyond it", "beyond all", "before it"],
)
def test_a_mark_says_who_missed_something(after, gap):
    core = core_at()
    steps(core, message(1, b"a", b"b"))
    core.attached(Position("ep", 0))
    expected = [("begin", 99, "retention")] if gap else [("jump", 2, 101 - after)]
    assert steps(core, mark(100, after), message(100, b"c")) == [
        *expected,
        ("events", [b"c"]),
        ("reached", 100),
    ]


def test_a_place_before_a_mark_is_carried_behind_it():
    """What a client heard, and the log has lost, comes again behind the mark, in its order."""
    reading = Reading()
    reading.take(unpack(message(1, b"a", b"b")))
    assert reading.carried(1) == 1
    reading.take(unpack(mark(100, 2)))
    assert [reading.carried(number) for number in (1, 2, 3, 5, 99, 100)] == [1, 2, 100, 102, 99, 100]
    reading.take(unpack(message(100, b"c")))
    assert reading.carried(3) == 3
    late = Reading()
    late.take(unpack(mark(100, 2)))
    assert late.carried(3) == 100
    empty = Reading()
    empty.take(unpack(mark(100, 0)))
    assert empty.carried(1) == 100, "the log has lost all that was before"


def test_a_reading_that_has_met_a_fence_alone_has_come_nowhere():
    reading = Reading()
    assert reading.take(unpack(pack([], word=b"fence 1"))) == ([], 0)
    assert (reading.last, reading.jump) == (None, None)


def test_each_epoch_has_a_stream_of_its_own():
    assert stream_name("0a1b") == "carillon.events.0a1b"


def test_a_place_that_another_mark_lay_before_is_nowhere():
    reading = Reading()
    reading.take(unpack(message(1, b"a", b"b")))
    reading.take(unpack(mark(2 * LEAP, 2)))
    assert [reading.carried(number) for number in (2, LEAP + 1, LEAP + 2, 2 * LEAP - 1)] == [
        2, 3 * LEAP - 2, NOWHERE, 2 * LEAP - 1,
    ]  # fmt: skip


def test_a_tail_that_had_read_a_mark_which_the_log_lost_begins_anew():
    core = core_at()
    steps(core, message(1, b"a"), mark(LEAP + 8, 1), message(LEAP + 8, b"b"))
    core.attached(Position("ep", 0))
    assert steps(core, message(1, b"a"), mark(2 * LEAP + 15, 1), message(2 * LEAP + 15, b"b")) == [
        ("begin", 2 * LEAP + 14, "retention"),
        ("events", [b"b"]),
        ("reached", 2 * LEAP + 15),
    ]


def test_a_tail_that_had_read_a_mark_and_nothing_behind_it_begins_anew_where_the_log_lost_it():
    """Of two marks with nothing between them, places are LEAP apart: nobody knows which of them it was."""
    for last, gap in ((LEAP, False), (LEAP + 1, True)):
        core = core_at()
        steps(core, message(1, b"a"), mark(last + 1, 1))
        core.attached(Position("ep", 0))
        expected = ("begin", 3 * LEAP - 1, "retention") if gap else ("jump", last, 3 * LEAP + last - 2)
        assert steps(core, mark(3 * LEAP, 1))[0] == expected


def test_the_window_does_not_answer_for_what_the_log_has_lost():
    window = Window(10**6)
    window.mark(0)
    window.extend([Event(b"a-1", b"a", number=1), Event(b"a-1", b"b", number=2)])
    window.jump(2, 99)
    window.extend([Event(b"a-1", b"c", number=100)])
    assert [window.covers(number) for number in (0, 2, 3, 98, 99, 100, 101)] == [
        True, True, False, False, True, True, False,
    ]  # fmt: skip


def test_what_lies_below_is_a_repetition_or_of_a_relay_that_was_superseded():
    core = core_at()
    steps(core, message(1, b"a"), mark(100, 1))
    assert steps(core, message(2, b"b"), message(1, b"a"), mark(100, 1)) == [("reached", 99)]
    assert steps(core, message(100, b"b")) == [("events", [b"b"]), ("reached", 100)]


def test_fences_and_nonsense_are_passed_by():
    core = core_at()
    assert steps(core, pack([], word=b"fence 1"), b"nonsense") == [("malformed", 1)]
    assert (core.last, core.place, core.level) == (None, None, False)
    assert steps(core, message(1, b"a"), b"nonsense", message(2, b"b"), first=2) == [
        ("begin", 0, ""),
        ("events", [b"a"]),
        ("malformed", 3),
        ("events", [b"b"]),
        ("reached", 2),
    ]
    assert steps(core, pack([], word=b"fence 2"), message(3, b"c"), pack([], word=b"fence 3"), first=5) == [
        ("events", [b"c"]),
        ("reached", 3),
    ]
    assert core.place.offset == 6
    assert steps(core, pack([], word=END + b"two"), message(4, b"d"), first=8) == [
        ("over", "two"),
        ("events", [b"d"]),
        ("reached", 4),
    ]


def test_an_epoch_that_is_over_is_left_and_the_next_one_is_a_gap():
    core = TailCore()
    assert not core.over(None)
    core.attached(Position("one", 0))
    steps(core, message(1, b"a"))
    assert not core.over(Position("one", 99))
    assert core.over(Position("two", 0))
    assert steps(core, pack([], word=END + b"two")) == [("over", "two"), ("reached", 1)]
    core.attached(Position("one", 5))  # a new link, and the row says nothing new
    assert core.last == 1
    core.attached(Position("two", 3))
    assert (core.epoch, core.last, core.place) == ("two", None, None)
    assert steps(core, mark(1, 0)) == [("begin", 0, "epoch"), ("reached", 0)]
    assert not core.level
    steps(core, message(1, b"a", b"b", b"c"))
    assert core.level


@given(
    st.lists(st.integers(1, 3), min_size=1, max_size=20),
    st.lists(st.tuples(st.integers(0, 20), st.integers(1, 20)), max_size=8),
)
def test_pieces_of_a_log_read_again_and_with_holes(sizes, pieces):
    """Whatever pieces of one log are read: nothing twice, in order, and every hole is told."""
    log, number = [], 1
    for size in sizes:
        log.append(message(number, *(b"%d" % (number + n) for n in range(size))))
        number += size
    core, heard, told = core_at(), [0], True
    for start, length in pieces:
        for what, *about in core.arrived(list(enumerate(log))[start : start + length]):
            if what == "begin":
                told = True
            elif what == "events":
                for each in about[0]:
                    assert each.number == int(each.text) > heard[-1]
                    assert told or each.number == heard[-1] + 1
                    heard.append(each.number)
                    told = False


def make():
    gaps = []
    hub = Hub(Window(10**6))
    rows = [Position("ep", 0)]

    async def current():
        return rows[-1]

    tail = Tail(Options((Target.parse("amqp://nowhere/"),), "test"), hub, current, gaps.append)
    tail.core.attached(rows[0])
    ear = Ear()
    hub.subscribe(ear, frozenset([b"a-1"]))
    return tail, hub, ear, gaps


def test_the_hub_hears_what_the_core_says():
    tail, hub, ear, gaps = make()
    tail._arrived([(1, message(1, b"a")), (2, b"nonsense"), (3, message(2, b"b"))])
    assert (ear.heard, gaps, hub.number) == (["a", "b"], [], 2)
    assert tail.level.is_set()
    tail._arrived([(9, message(7, b"c"))])
    assert (ear.heard, gaps) == (["a", "b", "c"], ["retention"])
    assert hub.window.between([b"a-1"], 2, 10**6, 10**6) is None, "nobody resumes over the gap"
    assert [event.text for event in hub.window.between([b"a-1"], 6, 10**6, 10**6)[0]] == [b"c"]


async def test_the_end_of_an_epoch_has_the_row_looked_at():
    tail, *_ = make()
    tail._arrived([(1, message(1, b"a")), (2, pack([], word=END + b"two"))])
    assert tail._look.is_set()


class Log:
    """A stream of these messages, the first of them at `oldest`."""

    def __init__(self, bodies, oldest=0):
        self.bodies, self.oldest, self.peeks = bodies, oldest, 0

    def patch(self, monkeypatch):
        async def end_of(link, name):
            return self.oldest + len(self.bodies) - 1

        async def peek(link, name, start, timeout, most):
            self.peeks += 1
            assert start < self.oldest + len(self.bodies), "it waits for what is not there"
            start = max(start, self.oldest)
            return list(enumerate(self.bodies, self.oldest))[start - self.oldest :][:most]

        monkeypatch.setattr(stream, "end_of", end_of)
        monkeypatch.setattr(stream, "peek", peek)


@pytest.mark.parametrize("number", [0, 1, 5_000, 9_999, 10_000, 10**7, 10**7 + 4_000, 2 * 10**7])
def test_a_number_is_found_by_halves(monkeypatch, number):
    ten = [b"x"] * 10
    bodies = [message(10 * n + 1, *ten) for n in range(1000)]
    bodies += [pack([], word=b"fence"), mark(10**7, 10_000)]
    bodies += [message(10**7 + 10 * n, *ten) for n in range(1000)]
    log = Log(bodies, 300)
    log.patch(monkeypatch)
    found = asyncio.run(locate(None, "s", number))
    numbers = [unpack(body).number for body in bodies]
    last = max((at for at, each in enumerate(numbers) if 0 < each <= number), default=0)
    assert 0 <= last - max(0, found - 300) <= NEAR + TELLING + 2
    assert log.peeks < 14
    reading = Reading()
    told = sum(number < reading.take(unpack(body))[1] for body in bodies[max(0, found - 300) :])
    assert told == 0


def test_a_good_guess_is_one_look(monkeypatch):
    log = Log([message(n + 1, b"x") for n in range(1000)])
    log.patch(monkeypatch)
    assert asyncio.run(locate(None, "s", 500, Place(499, 500))) == 499
    assert log.peeks == 1
    near = range(500 - NEAR - TELLING, 500)
    assert asyncio.run(locate(None, "s", 500, Place(600, 500))) in near, "another log stands there"
    assert asyncio.run(locate(None, "s", 500, Place(1000, 1001))) in near, "the log ends before"


def test_what_was_read_last_is_found_again_behind_a_mark(monkeypatch):
    """Its number is the first of those that come."""
    log = Log([*(message(n + 1, b"x") for n in range(100)), mark(1000, 100)])
    log.patch(monkeypatch)
    assert asyncio.run(locate(None, "s", 999, Place(100, 1000))) == 100


def test_late_words_of_relays_that_were_superseded_hide_nothing(monkeypatch):
    """Each message that the new relay appended may have one beside it, all of them with small numbers."""
    for late in range(40, 400):
        bodies = [message(n + 1, b"x") for n in range(30)]
        bodies += [mark(1001, 30), *(message(1001 + n, b"x") for n in range(late))]
        bodies += [message(31 + n, b"late") for n in range(4)]
        bodies += [message(1001 + n, b"x") for n in range(late, 500)]
        Log(bodies).patch(monkeypatch)
        for number in (30, 1000, 1010):
            assert unpack(bodies[asyncio.run(locate(None, "s", number))]).number <= number
            found = asyncio.run(locate(None, "s", number))
            skipped = [unpack(body).number for body in bodies[:found]]
            assert max(skipped, default=0) <= number


@pytest.mark.parametrize("fences", [43, 100])
def test_late_words_at_the_end_of_the_log_hide_nothing(monkeypatch, fences):
    """Relays that came and went have left fences behind them, without a number: there is little to tell."""
    bodies = [*(message(n + 1, b"x") for n in range(30)), mark(1001, 30)]
    bodies += [message(1001 + n, b"x") for n in range(10)]
    bodies += [message(31 + n, b"late") for n in range(4)]
    bodies += [pack([], word=b"fence")] * fences
    Log(bodies).patch(monkeypatch)
    assert asyncio.run(locate(None, "s", 1000)) <= 31


def test_a_number_is_found_among_fences(monkeypatch):
    bodies = [body for n in range(500) for body in (pack([], word=b"fence"), message(n + 1, b"x"))]
    Log(bodies).patch(monkeypatch)
    assert 0 <= 800 - asyncio.run(locate(None, "s", 400)) <= NEAR + 2 * TELLING


def test_numbers_behind_fences_are_looked_at_one_after_the_other(monkeypatch):
    fence = pack([], word=b"fence")
    Log([fence, message(1, b"x"), fence, message(2, b"x"), message(3, b"x"), message(4, b"x")]).patch(
        monkeypatch
    )
    assert asyncio.run(_numbers(None, "s", 0, 3, 5)) == [1, 2, 3]


def test_a_log_that_hands_out_nothing_is_read_from_its_beginning(monkeypatch):
    async def end_of(link, name):
        return 1000

    async def peek(link, name, start, timeout, most):
        return []

    monkeypatch.setattr(stream, "end_of", end_of)
    monkeypatch.setattr(stream, "peek", peek)
    assert asyncio.run(locate(None, "s", 500, Place(499, 500))) == 0


def test_an_empty_log_is_read_from_its_beginning(monkeypatch):
    Log([]).patch(monkeypatch)
    assert asyncio.run(locate(None, "s", 7)) == 0


@pytest.mark.parametrize(
    ("end", "oldest", "size", "start"),
    [
        (5000, 0, 100, 5000 - 1024),
        (5000, 4700, 100, 4700),  # retention has the rest
        (5000, 0, 10_000, 5000 - 32),  # half of a window of 10**6 bytes
        (5000, 0, 1_000_000, 5000 - 16),
        (7, 0, 100, 0),
        (0, 0, 100, 0),
        (-1, 0, 0, 0),
    ],
)
async def test_a_fresh_process_reads_what_half_its_window_holds(monkeypatch, end, oldest, size, start):
    async def end_of(link, name):
        return end

    async def first_from(link, name, wanted):
        return max(wanted, oldest), size

    monkeypatch.setattr(stream, "end_of", end_of)
    monkeypatch.setattr(stream, "first_from", first_from)
    tail, *_ = make()
    assert await tail._beginning(None, "s") == start
