"""Events and the bodies that carry them."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_amqp.options import Options, Target
from asgi_amqp.position import BATCH, first_of
from carillon.events.event import Event, Malformed, pack, tags_of, unpack
from carillon.relay.relay import Relay, event_of, pause_before

EVENTS = st.builds(
    Event,
    group=st.from_regex(rb"[a-z_]{1,8}-[a-z0-9_]{1,8}", fullmatch=True),
    text=st.binary(max_size=30),
    audience=st.none() | st.lists(st.sampled_from(["u1", "u2", "t3"]), unique=True).map(tuple),
    id=st.binary(min_size=16, max_size=16),
    stamp=st.integers(0, 2**42),
)


def values(event):
    return (event.group, event.text, event.audience, event.id, event.stamp, event.number)


@given(st.lists(EVENTS, max_size=5), st.integers(0, 2**40), st.integers(0, 2**40), st.binary(max_size=16))
def test_a_batch_there_and_back(events, message, number, mark):
    body = pack(events, number, mark)
    assert body.endswith(mark)
    for index, event in enumerate(events):
        event.number = first_of(message) + index
    found = unpack(body, message)
    assert found.number == number
    assert [values(event) for event in found.events] == [values(event) for event in events]


def test_a_batch_has_an_end():
    with pytest.raises(ValueError, match="at most"):
        pack([Event(b"a-b", b"{}")] * (BATCH + 1))


@given(st.binary(max_size=40))
def test_any_other_body_is_malformed(body):
    with suppress(Malformed):
        unpack(body)


def test_tags():
    assert tags_of(None) is None
    assert tags_of({"users": [9, 1], "teams": (2,)}) == ("t2", "u1", "u9")
    assert tags_of({}) == ()


GOOD = {"id": b"i" * 16, "group": "jobs-summary", "text": '{"a": 1}', "audience": ["u1"], "stamp": 7}


def test_a_message_of_the_queue():
    event = event_of(GOOD)
    assert values(event) == (b"jobs-summary", b'{"a": 1}', ("u1",), b"i" * 16, 7, 0)
    assert (
        event_of({**GOOD, "text": '{"a":\r\n1}'}).text == b'{"a": 1}'
    )  # a line break would end an SSE field


@pytest.mark.parametrize(
    "wrong",
    [
        {"group": None},
        {"group": "no group"},
        {"group": 'a"b'},
        {"text": "[]"},
        {"text": "{"},
        {"text": b"{}"},
        {"text": '{"a": "\ud800"}'},
        {"id": b"short"},
        {"id": "i" * 16},
        {"text": '{"a": "' + "x" * 1024 * 1024 + '"}'},
        {"text": '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}"},
        {"stamp": 2**70},
        {"stamp": "yesterday"},
        {"stamp": float("inf")},
        {"audience": 5},
        {"audience": ["\ud800"]},
        {"audience": ["u1"] * 100_001},
    ],
)
def test_poison(wrong):
    with pytest.raises(Malformed):
        event_of({**GOOD, **wrong})
    with pytest.raises(Malformed):
        event_of({})
    with pytest.raises(Malformed):
        event_of(None)


def test_takeovers_that_lead_to_nothing_come_ever_later():
    assert [pause_before(fruitless) for fruitless in range(4)] == [0, 0, 0.2, 0.4]
    assert pause_before(1000) == 5
    relay = Relay(
        Options((Target.parse("amqp://nowhere/"),), "test"), None, None, open_epoch=None, declaration=None
    )
    for _ in range(3):
        relay._lost(None, "test")
    assert pause_before(relay._fruitless) == 0.4


def test_an_audience_counts_where_memory_is_bounded():
    assert Event(b"a-b", b"{}", ("u1",) * 1000).size > Event(b"a-b", b"{}").size + 10_000
