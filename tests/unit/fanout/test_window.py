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
