"""The pure part: frames, words, groups, goodbyes, delays."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carillon.client import protocol
from carillon.client.errors import ConfigurationError
from carillon.client.protocol import (
    Backoff,
    Event,
    Garbage,
    Refusal,
    ServerError,
    Subscription,
    Welcome,
    classify,
    goodbye,
    parse_groups,
)


@pytest.mark.parametrize(
    ("frame", "meaning"),
    [
        ('{"accept": true, "user": 3}', Welcome(3)),
        ('{"accept": true, "user": null}', Garbage("a welcome to nobody")),
        (
            '{"accept": false, "user": null, "close": true, "error": "invalid auth token"}',
            Refusal("invalid auth token"),
        ),
        ('{"close": true}', Refusal("no reason given")),
        (
            '{"groups_current": ["jobs-summary"], "groups_left": [], "groups_joined": ["jobs-summary"]}',
            Subscription(("jobs-summary",), ("jobs-summary",), ()),
        ),
        ('{"groups_current": 3}', Subscription((), (), ())),
        ('{"error": "unknown channel bells"}', ServerError("unknown channel bells")),
        (
            '{"group_name": "jobs", "status": "running", "unified_job_id": 4}',
            Event("jobs", {"group_name": "jobs", "status": "running", "unified_job_id": 4}),
        ),
        # An event may have a key of that name; it is an event all the same.
        (
            '{"group_name": "control", "error": "x"}',
            Event("control", {"group_name": "control", "error": "x"}),
        ),
        ("[]", Garbage("a frame that is no JSON object")),
        ("{", Garbage("a frame that is no JSON")),
        ("[" * 100_000, Garbage("a frame that is no JSON")),
        (b"{}", Garbage("a binary frame")),
        ("{}", Garbage("an object of no known kind")),
    ],
)
def test_a_frame_means(frame, meaning):
    assert classify(frame) == meaning


@given(
    st.one_of(
        st.text(),
        st.binary(),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(),
            lambda inner: (
                st.lists(inner)
                | st.dictionaries(
                    st.sampled_from(["accept", "user", "close", "error", "groups_current", "group_name"])
                    | st.text(),
                    inner,
                )
            ),
        ).map(json.dumps),
    )
)
def test_no_frame_is_too_odd_to_classify(frame):
    classify(frame)


@pytest.mark.parametrize(
    ("text", "all_of_it"),
    [
        ("unknown channel bells", False),
        ("access denied to channel job_events for resource id 9", False),
        ("refresh refused: not a valid token of this user", False),
        ("access denied to channel", True),
        ("invalid message: groups is no object", True),
    ],
)
def test_an_error_concerns_one_group_or_all(text, all_of_it):
    assert ServerError(text).rejects is all_of_it


def test_groups_are_read_as_people_write_them():
    assert parse_groups(["jobs:status_changed,summary", "job_events:42", "job_events:43,42"]) == {
        "jobs": ["status_changed", "summary"],
        "job_events": ["42", "43"],
    }


@pytest.mark.parametrize("word", ["jobs", "jobs:", ":x", "jobs:a,,b", ""])
def test_what_is_no_group_is_said_with_an_example(word):
    with pytest.raises(ConfigurationError, match="job_events:42"):
        parse_groups([word])


@pytest.mark.parametrize(
    ("code", "come_back", "refused"),
    [
        (1000, False, False),
        (1001, True, False),
        (None, True, False),
        (1008, False, True),
        (1012, True, False),
        (1013, True, False),
        (4401, False, True),
        (4403, False, True),
        (4408, True, False),
        (4999, True, False),
    ],
)
def test_a_close_code_says_whether_to_come_back(code, come_back, refused):
    answer = goodbye(code)
    assert (answer.come_back, answer.refused) == (come_back, refused)


def test_delays_double_up_to_a_bound_with_full_jitter():
    highest = Backoff(first=0.5, longest=8, rng=lambda: 1.0)
    assert [highest.next() for _ in range(7)] == [0.5, 1, 2, 4, 8, 8, 8]
    highest.reset()
    assert highest.next() == 0.5
    assert Backoff(rng=lambda: 0.0).next() == 0
    many = Backoff(longest=3)
    assert all(0 <= many.next() <= 3 for _ in range(2000))


def test_the_subscription_replaces_everything():
    message = json.loads(protocol.subscribe_message({"jobs": ("summary",), "job_events": [42]}))
    assert message == {"groups": {"jobs": ["summary"], "job_events": [42]}}
