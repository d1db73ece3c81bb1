"""The window of recent events against a plain list."""

from hypothesis import given
from hypothesis import strategies as st

from carillon.events.event import Event
from carillon.fanout.window import Window

GROUPS = [b"a-1", b"b-1", b"c-1"]


@given(
    st.lists(st.lists(st.tuples(st.sampled_from(GROUPS), st.integers(1, 5)), max_size=6), max_size=20),
    st.sets(st.sampled_from(GROUPS)),
    st.integers(0, 200),
    st.integers(300, 3000),
)
def test_what_it_answers_is_whole(batches, wanted, since, limit):
    window = Window(limit)
    window.mark(10)
    history, number = [], 10
    for batch in batches:
        events = []
        for group, step in batch:
            number += step
            events.append(Event(group, b"{}", number=number))
        window.extend(events)
        history += events
    found = window.between(wanted, since, 10**6, 10**9)
    expected = [event for event in history if event.number > since and event.group in wanted]
    if found is None:
        # Only what has been forgotten, or has not come yet, may be refused.
        assert since < window.start or since > number
    else:
        assert found == (expected, window.end)
    assert window.size <= max(limit, history[-1].size if history else 0)
    if since == number:
        assert found == ([], number)


@given(
    st.lists(st.tuples(st.sampled_from(GROUPS), st.integers(0, 2000)), max_size=30),
    st.sets(st.sampled_from(GROUPS)),
    st.integers(0, 30),
    st.integers(0, 40),
    st.integers(1, 5000),
)
def test_pieces_make_a_whole(events, wanted, since, upto, most):
    window = Window(10**6)
    window.mark(0)
    events = [Event(group, b"x" * size, number=n + 1) for n, (group, size) in enumerate(events)]
    window.extend(events)
    if since > len(events):
        assert window.between(wanted, since, upto, most) is None
        return
    found, reached, end = [], since, min(max(upto, since), len(events))
    while reached != end:
        piece, reached = window.between(wanted, reached, end, most)
        assert len(piece) == 1 or sum(event.size for event in piece) <= most
        found += piece
    assert found == [e for e in events if e.group in wanted and since < e.number <= end]


def test_nothing_is_promised_before_the_first_word():
    window = Window(1000)
    assert window.between([b"a-1"], 0, 9, 9) is None
    window.mark(7)
    assert window.between([b"a-1"], 7, 9, 9) == ([], 7)
    assert window.between([b"a-1"], 6, 9, 9) is None
    window.extend([Event(b"a-1", b"{}", number=9)])
    assert [event.number for event in window.between([b"a-1"], 7, 9, 9)[0]] == [9]
    window.reset()
    assert window.between([b"a-1"], 9, 9, 9) is None


def events_of(*numbers, size=100):
    return [Event(b"a-1", b"x" * size, number=number) for number in numbers]


def test_it_keeps_what_its_limit_holds_and_the_newest_in_any_case():
    one = events_of(1)[0].size
    window = Window(2 * one)
    window.mark(0)
    window.extend(events_of(1, 2))
    assert (len(window), window.size, window.start, window.end) == (2, 2 * one, 0, 2)
    window.extend(events_of(3))
    assert (len(window), window.size, window.start, window.end) == (2, 2 * one, 1, 3)
    window.extend(events_of(4, size=10_000))
    assert (len(window), window.start, window.end) == (1, 3, 4)
    window.extend([])
    assert (len(window), window.start, window.end) == (1, 3, 4)
    assert [each.number for each in window.between([b"a-1"], 3, 9, 1)[0]] == [4]


def test_what_is_forgotten_is_forgotten_in_its_group_as_well():
    one = events_of(1)[0].size
    window = Window(2 * one)
    window.mark(0)
    window.extend(events_of(1, 2))
    window.extend([Event(b"b-1", b"x" * 100, number=3)])
    assert {group: [each.number for each in held] for group, held in window._groups.items()} == {
        b"a-1": [2],
        b"b-1": [3],
    }
    window.extend([Event(b"b-1", b"x" * 100, number=4)])
    assert list(window._groups) == [b"b-1"]
    assert window.between([b"a-1"], 2, 9, 9) == ([], 4)


def test_a_piece_costs_what_it_holds_and_not_what_lies_behind_it():
    looks = []

    class Looked:
        group, size = b"a-1", 1

        def __init__(self, number):
            self._number = number

        @property
        def number(self):
            looks.append(self)
            return self._number

    window = Window(10**6)
    window.mark(0)
    window.extend([Looked(number + 1) for number in range(1000)])
    looks.clear()
    assert len(window.between([b"a-1"], 0, 10, 10**6)[0]) == 10
    assert len(looks) < 50


def test_where_it_begins_and_how_far_it_goes():
    window = Window(10_000)
    window.extend(events_of(9))
    assert [window.covers(number) for number in (7, 8, 9, 10)] == [False, True, True, False]
    window.mark(5)
    assert (window.start, window.end) == (8, 9), "it does not go back"
    window.mark(20)
    assert (window.start, window.end) == (8, 20)
    assert window.between([b"a-1"], 8, 15, 1000)[1] == 15
    assert window.between([b"a-1"], 8, 30, 1000)[1] == 20
    fresh = Window(10_000)
    fresh.mark(3)
    assert (fresh.start, fresh.end) == (3, 3)


def test_a_piece_ends_where_it_is_full_or_has_come_far_enough():
    window = Window(10**6)
    window.mark(0)
    window.extend(events_of(1, 2, 3, 4))
    one = events_of(1)[0].size
    found, reached = window.between([b"a-1"], 0, 4, 2 * one)
    assert ([each.number for each in found], reached) == ([1, 2], 2)
    found, reached = window.between([b"a-1"], 0, 4, 2 * one - 1)
    assert ([each.number for each in found], reached) == ([1], 1)
    found, reached = window.between([b"a-1"], 1, 3, 10**6)
    assert ([each.number for each in found], reached) == ([2, 3], 3)


def test_jumps_are_known_for_as_long_as_they_matter():
    one = events_of(1)[0].size
    window = Window(3 * one)
    window.mark(0)
    window.extend(events_of(1, 2))
    window.jump(2, 10)
    window.extend(events_of(10))
    window.jump(10, 20)
    assert [window.jumped(number) for number in (2, 3, 9, 10, 11, 19, 20)] == [
        False, True, True, False, True, True, False,
    ]  # fmt: skip
    assert [window.covers(number) for number in (2, 5, 10)] == [True, False, True]
    window.extend(events_of(20, 21, 22, 23))
    window.jump(23, 30)
    assert len(window._jumps) == 1, "what lies before the window is not asked about"
    assert window.jumped(25)
