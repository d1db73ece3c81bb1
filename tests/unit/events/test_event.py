"""Events and the bodies that carry them."""

import re
from contextlib import suppress

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_amqp import codec
from carillon.events.event import (
    END,
    EVERYONE,
    LEAP,
    RELAYED,
    Event,
    Malformed,
    first_after,
    pack,
    public,
    tags_of,
    unpack,
)
from carillon.relay.judge import MAX_AUDIENCE, MAX_TEXT, REASON, _letter, event_of, judge

EVENTS = st.builds(
    Event,
    group=st.from_regex(rb"[a-z_]{1,8}-[a-z0-9_]{1,8}", fullmatch=True),
    text=st.binary(max_size=30),
    audience=st.none() | st.lists(st.sampled_from(["u1", "u2", "t3"]), unique=True).map(tuple),
    id=st.binary(min_size=16, max_size=16),
    stamp=st.integers(0, 2**42),
    trace=st.sampled_from(["", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"]),
)


def values(event):
    return (event.group, event.text, event.audience, event.id, event.stamp, event.number, event.trace)


@given(st.lists(EVENTS, max_size=5), st.integers(1, 2**40), st.integers(0, 2**40), st.binary(max_size=16))
def test_a_batch_there_and_back(events, number, after, word):
    found = unpack(pack(events, number, after, word))
    assert (found.number, found.after, found.word) == (number, after, word)
    for index, event in enumerate(events):
        event.number = number + index
    assert [values(event) for event in found.events] == [values(event) for event in events]
    assert unpack(pack(events, number)).after == number - 1


@given(st.binary(max_size=40))
def test_any_other_body_is_malformed(body):
    with suppress(Malformed):
        unpack(body)


def test_a_body_of_another_version_is_malformed():
    """What lies in a log outlives an upgrade: its version is no other than it was."""
    fields = msgpack.unpackb(pack([Event(b"a-1", b"{}")], 7))
    assert fields[:3] == [2, 7, 6]
    with pytest.raises(Malformed, match="version 3 is not 2"):
        unpack(msgpack.packb((3, *fields[1:])))
    with pytest.raises(Malformed, match="not a batch of events: ValueError"):
        unpack(msgpack.packb(fields[:4]))


@pytest.mark.parametrize(("fields", "taken"), [(4, False), (5, True), (6, True), (7, False)])
def test_a_row_has_five_fields_or_six(fields, taken):
    """The last is the trace, where there is one: of one version, for readers and for what lies in a log."""
    row = (b"a-1", b"{}", None, b"", 0, "a trace", "more")[:fields]
    body = msgpack.packb((2, 7, 6, [row], b""))
    if taken:
        (event,) = unpack(body).events
        assert event.trace == ("a trace" if fields == 6 else "")
    else:
        with pytest.raises(Malformed):
            unpack(body)
    plain, traced = msgpack.unpackb(pack([Event(b"a-1", b"{}"), Event(b"a-1", b"{}", trace="t")], 7))[3]
    assert (len(plain), len(traced)) == (5, 6)


def test_a_name_of_a_group_that_anybody_may_give():
    for name in ("a", "jobs-42", "A_b.c-9", "x" * 200):
        assert public(name) == name
    for name in ("", "!a", "!", "a b", "a/b", "\u00e9", "\ud800", "x" * 201):
        with pytest.raises(ValueError, match=r"is no group's name: letters, digits and '_\.-', at most 200"):
            public(name)


def test_words_that_lie_in_a_log_stay_what_they_are():
    """Whoever reads it may be of another release."""
    assert (END, RELAYED, EVERYONE) == (b"end ", b"at ", "*")


def test_when_events_were_relayed_is_said_by_a_number_behind_the_word():
    def relayed(word, *events):
        return unpack(pack(events, 7, word=word)).relayed

    event = Event(b"a-1", b"{}")
    assert relayed(b"at 1700000000123", event) == 1_700_000_000_123
    assert relayed(b"at 0", event) == 0
    for word in (b"", b"at ", b"at x", b"end 123", b"no 123", b"123"):
        assert relayed(word, event) is None
    assert relayed(b"at 123") is None, "a message without events"


def test_a_relay_that_takes_over_leaves_a_leap_of_numbers_out():
    assert first_after(0) == 1
    assert first_after(1) == LEAP + 2
    assert LEAP == 268_435_456, "all releases that read one log leap alike"


def test_an_event_of_which_little_is_said():
    assert values(Event(b"a-1", b"{}")) == (b"a-1", b"{}", None, b"", 0, 0, "")
    assert repr(Event(b"a-1", b"{}", number=5)) == "<Event a-1 at 5>"
    assert (unpack(pack([])).number, unpack(pack([])).word) == (0, b"")


def test_tags():
    assert tags_of(None) is None
    assert tags_of({"users": [9, 1], "teams": (2,)}) == ("t2", "u1", "u9")
    assert tags_of({}) == ()


GOOD = {"id": b"i" * 16, "group": "jobs-summary", "text": '{"a": 1}', "audience": ["u1"], "stamp": 7}


def test_a_message_of_the_queue():
    event = event_of(GOOD)
    assert values(event) == (b"jobs-summary", b'{"a": 1}', ("u1",), b"i" * 16, 7, 0, "")
    assert (
        event_of({**GOOD, "text": '{"a":\r\n1}'}).text == b'{"a": 1}'
    )  # a line break would end an SSE field


def test_what_may_be_as_large_as_it_is(monkeypatch):
    text = '{"a": "' + "x" * (MAX_TEXT - 9) + '"}'
    assert len(event_of({**GOOD, "text": text}).text) == MAX_TEXT
    audience = ["u" * 65, *map(str, range(MAX_AUDIENCE - 1))]
    tags = event_of({**GOOD, "audience": audience}).audience
    assert (len(tags), tags[:2]) == (MAX_AUDIENCE, ("u" * 64, "0"))
    assert event_of({**GOOD, "audience": None}).audience is None


@pytest.mark.parametrize("line_break", ["\n", "\r", "\n\r\n"])
def test_a_line_break_is_a_space(line_break):
    assert event_of({**GOOD, "text": '{"a":' + line_break + "1}"}).text == b'{"a": 1}'


def test_who_gives_no_time_is_given_one(monkeypatch):
    monkeypatch.setattr("carillon.relay.judge.time.time", lambda: 12.3456)
    nothing = {key: value for key, value in GOOD.items() if key not in ("stamp", "audience")}
    assert (event_of(nothing).stamp, event_of(nothing).audience) == (12345, None)
    assert event_of({**GOOD, "stamp": 0}).stamp == 12345
    assert event_of({**GOOD, "stamp": 1}).stamp == 1


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"group": None}, "not an event: AttributeError 'NoneType' object has no attribute 'encode'"),
        ({"group": "no group"}, "its group is no group's name"),
        ({"id": b"short"}, "its id is not 16 bytes"),
        ({"text": "[]"}, "its payload is no JSON object"),
        ({"text": "{"}, "its payload is no JSON, or nested too deeply"),
        ({"text": "\ufeff{}"}, "its payload is no JSON, or nested too deeply"),
        ({"text": '{"a": 1}'.encode("utf-16-le").decode()}, "its payload is no JSON, or nested too deeply"),
        ({"text": '{"a": 1}'.encode("utf-32-be").decode()}, "its payload is no JSON, or nested too deeply"),
        ({"text": '{"a": [NaN]}'}, "its payload is no JSON, or nested too deeply"),
        ({"text": '{"a": -Infinity}'}, "its payload is no JSON, or nested too deeply"),
        ({"text": '"' + "x" * MAX_TEXT + '"'}, "1048578 bytes of payload: 1048576 are the most"),
        ({"audience": ["u1"] * 100_001}, "an audience of 100001: 100000 tags are the most"),
        ({"audience": 5}, "not an event: TypeError"),
        ({"stamp": 2**70}, "not an event: OverflowError"),
    ],
)
def test_the_reason_is_said(wrong, reason):
    with pytest.raises(Malformed, match=f"^{re.escape(reason)}$"):
        event_of({**GOOD, **wrong})


def test_a_reason_is_not_longer_than_can_be_read():
    ((reason, _),) = judge(b"x" * 10)[1]
    assert reason.startswith("not a batch: ")
    body = codec.encode_batch([codec.encode_target("") + codec.encode({"group": "a-1", "text": "{}"})])
    ((short, _),) = judge(body)[1]
    assert short == "not an event: KeyError 'id'"
    assert len(_letter("r" * 1000, {})[0]) == REASON
    assert list(codec.decode(_letter("r" * 1000, {})[1])) == [("r" * REASON, {})]


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


def test_each_event_of_a_message_is_judged_alone():
    def batch(*messages):
        return codec.encode_batch([codec.encode_target("notifications") + codec.encode(m) for m in messages])

    events, letters = judge(batch(GOOD, {"group": 5}, {**GOOD, "id": b"j" * 16}))
    assert [event.id for event in events] == [b"i" * 16, b"j" * 16]
    ((reason, body),) = letters
    assert list(codec.decode(body)) == [(reason, {"group": 5})]
    assert reason.startswith("not an event")


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (b"nonsense", {"body": b"nonsense"}),
        (codec.encode_batch([codec.encode_target("") + b"\x05"]), {"body": 5}),
        (
            codec.encode_batch([codec.encode_target("") + b"\xc7\x01\x09x"]),
            {"body": msgpack.ExtType(9, b"x")},
        ),
    ],
)
def test_what_is_no_message_is_shown_as_far_as_it_can_be(body, shown):
    events, ((reason, letter),) = judge(body)
    assert events == []
    assert list(codec.decode(letter)) == [(reason, shown)]


def test_what_cannot_be_packed_is_shown_as_it_is_written():
    assert list(codec.decode(_letter("why", {"a": {1}})[1])) == [("why", {"body": "{'a': {1}}"})]


def test_a_message_without_events_is_no_dead_letter():
    assert judge(codec.encode_batch([])) == ([], [])


def test_an_audience_counts_where_memory_is_bounded():
    assert Event(b"a-b", b"{}", ("u1",) * 1000).size == Event(b"a-b", b"{}").size + 16_000
    assert Event(b"a-b", b"{}").size == 255
    assert Event(b"a-b", b"{}", trace="t" * 55).size == 310
