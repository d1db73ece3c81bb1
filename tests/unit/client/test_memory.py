"""Version 2 in the client: each event once, and one position to ask again from."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carillon.client.protocol import Event, Garbage, Memory, Progress, ReconnectAfter, Recovery, classify


def event(number, group="jobs-summary", epoch="ep"):
    return Event("jobs", {}, group, f"{epoch}:{number}")


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        ({"recovered": True, "position": "e:1"}, Recovery(True, "e:1")),
        ({"recovered": False, "position": "e:1", "reason": "epoch"}, Recovery(False, "e:1", "epoch")),
        ({"position": "e:1"}, Progress("e:1")),
        ({"reconnect_after": 1500}, ReconnectAfter(1.5)),
        (
            {"position": "e:1", "group": "jobs-summary", "event": {"group_name": "jobs"}},
            Event("jobs", {"group_name": "jobs"}, "jobs-summary", "e:1"),
        ),
        ({"position": "e:1", "group": "mine-1", "event": {}}, Event("mine", {}, "mine-1", "e:1")),
        ({"position": "e:1", "event": {}}, Garbage("an event without group or payload")),
    ],
)
def test_frames(frame, expected):
    assert classify(json.dumps(frame)) == expected


def test_the_position_moves_with_what_is_heard():
    memory = Memory()
    memory.welcome("ep:1")
    memory.welcome("ep:9")
    assert memory.since == "ep:1"
    assert memory.is_new(event(2))
    memory.progress("ep:5")
    assert memory.since == "ep:5"


def test_while_a_replay_runs_its_beginning_is_where_to_ask_again():
    memory = Memory()
    memory.asked("ep:1")
    assert memory.is_new(event(2))
    memory.progress("ep:5")
    assert memory.since == "ep:1"
    memory.settled("ep:6")
    assert memory.since == "ep:6"


def test_a_new_epoch_begins_anew():
    memory = Memory()
    assert memory.is_new(event(7))
    assert not memory.is_new(event(7))
    assert memory.is_new(event(3, epoch="other"))


def test_groups_that_are_left_are_forgotten():
    memory = Memory()
    memory.is_new(event(7))
    memory.is_new(event(8, "jobs-status_changed"))
    memory.subscribed({"jobs": ["summary"]})
    assert memory.is_new(event(8, "jobs-status_changed"))
    assert not memory.is_new(event(7))


def test_a_later_since_of_new_groups_skips_nothing_of_the_others():
    memory = Memory()
    memory.subscribed({"jobs": ["summary"]})
    memory.welcome("ep:100")
    assert memory.is_new(event(101))
    memory.subscribed({"jobs": ["summary", "status_changed"]}, "ep:200")
    assert memory.since == "ep:101", "what the first group has missed is asked for"
    assert memory.is_new(event(150))
    assert not memory.is_new(event(150, "jobs-status_changed")), "older than the state that was shown"
    assert memory.is_new(event(201, "jobs-status_changed"))
    assert memory.since == "ep:101"
    memory.settled("ep:201")
    assert memory.since == "ep:201"


def test_an_earlier_since_is_where_to_ask_from():
    memory = Memory()
    memory.subscribed({"jobs": ["summary"]})
    memory.welcome("ep:100")
    memory.subscribed({"jobs": ["summary", "status_changed"]}, "ep:90")
    assert memory.since == "ep:90"
    assert memory.is_new(event(95, "jobs-status_changed"))


def test_a_since_of_another_log_does_not_hide_that_ours_is_gone():
    memory = Memory()
    memory.subscribed({"jobs": ["summary"]})
    assert memory.is_new(event(101))
    memory.subscribed({"jobs": ["summary", "status_changed"]}, "other:3")
    assert memory.since == "ep:101", "the server says that it cannot go on from there"


@given(
    st.lists(st.sampled_from(["jobs-summary", "jobs-status_changed"]), max_size=30),
    st.lists(st.integers(0, 40), max_size=6),
)
def test_whenever_the_line_breaks_each_event_is_heard_once(groups, breaks):
    """The server replays what lies behind the client's position; the line breaks after so many frames."""
    memory, heard = Memory(), []
    memory.welcome("ep:0")
    for budget in [*breaks, 10**6]:
        since = int(memory.since.split(":")[1])
        memory.asked(memory.since)
        frames = [event(number, group) for number, group in enumerate(groups, 1) if number > since]
        for frame in frames[:budget]:
            if memory.is_new(frame):
                heard.append(frame.position)
        if budget > len(frames):
            memory.settled(f"ep:{len(groups)}")
    assert heard == [f"ep:{number}" for number in range(1, len(groups) + 1)]
