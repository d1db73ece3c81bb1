"""When a process has fanned out what."""

from __future__ import annotations

import pytest

from carillon.fanout import history
from carillon.fanout.history import History, when
from carillon.fanout.hub import Hub
from carillon.fanout.window import Window
from tests.unit.fanout.test_hub import event


@pytest.mark.parametrize(
    ("number", "at"), [(10, None), (11, 120), (15, 120), (16, 130), (30, 130), (31, None)]
)
def test_the_first_message_that_reaches_a_number_has_passed_it(number, at):
    ring = History()
    ring.begin("e", 10, 100)
    ring.note(15, 120)
    ring.note(30, 130)
    assert when(ring.pack(), "e", number) == at


def test_of_another_epoch_nothing_is_known():
    ring = History()
    ring.begin("e", 10, 100)
    ring.note(15, 120)
    assert when(ring.pack(), "f", 15) is None
    ring.begin("f", 3, 200)
    assert when(ring.pack(), "e", 15) is None
    assert when(ring.pack(), "f", 4) is None


def test_it_is_bounded_and_knows_the_last_ones(monkeypatch):
    monkeypatch.setattr(history, "MESSAGES", 4)
    ring = History()
    ring.begin("e", 0, 0)
    for number in range(1, 11):
        ring.note(number, 1000 + number)
    packed = ring.pack()
    assert len(packed) == 2 + 4 * 16
    assert [when(packed, "e", number) for number in (1, 7, 8, 10, 11)] == [None, None, 1008, 1010, None]


@pytest.mark.parametrize("left", [b"", b"e", b"e\n", b"e\n123", b"\xff" * 40])
def test_what_is_no_whole_record_says_nothing(left):
    assert when(left, "e", 1) is None


def test_a_hub_notes_what_it_has_fanned_out():
    hub = Hub(Window(1000))
    hub.begin("e", 4)
    hub.deliver([event(5), event(6)])
    packed = hub.history.pack()
    assert when(packed, "e", 5) == when(packed, "e", 6) > 1_700_000_000_000
    assert when(packed, "e", 7) is None
