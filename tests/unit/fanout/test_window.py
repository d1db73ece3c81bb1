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
    found = window.after(wanted, since)
    expected = [event for event in history if event.number > since and event.group in wanted]
    if found is None:
        # Only what has been forgotten, or has not come yet, may be refused.
        assert since < window.start or since > number
    else:
        assert found == expected
    assert window.size <= max(limit, history[-1].size if history else 0)
    if since == number:
        assert found == []


def test_nothing_is_promised_before_the_first_word():
    window = Window(1000)
    assert window.after([b"a-1"], 0) is None
    window.mark(7)
    assert window.after([b"a-1"], 7) == []
    assert window.after([b"a-1"], 6) is None
    window.extend([Event(b"a-1", b"{}", number=9)])
    assert [event.number for event in window.after([b"a-1"], 7)] == [9]
    window.reset()
    assert window.after([b"a-1"], 9) is None
