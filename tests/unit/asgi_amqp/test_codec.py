import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_amqp.codec import copier, decode, encode, encode_batch, encode_target

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(min_value=-(2**200), max_value=2**200)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=()))
    | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)
MESSAGES = st.dictionaries(st.text(max_size=8), VALUES, max_size=6)
NAMES = st.text("abcXYZ019-_.!", max_size=99)


@given(st.lists(st.tuples(NAMES, MESSAGES), max_size=10))
def test_a_batch_comes_back_as_it_was(events):
    body = encode_batch([encode_target(name) + encode(message) for name, message in events])
    assert list(decode(body)) == events


@given(st.binary(max_size=200))
def test_any_bytes_are_a_batch_or_a_value_error(body):
    with contextlib.suppress(ValueError):
        list(decode(body))


@given(MESSAGES, st.integers(min_value=1, max_value=10))
def test_a_batch_cut_short_is_noticed(message, cut):
    body = encode_batch([encode_target("g") + encode(message)])
    with pytest.raises(ValueError, match=r"incomplete|batch|extra"):
        list(decode(body[: max(1, len(body) - cut)]))


@pytest.mark.parametrize("message", ["text", ["list"], None, 7])
def test_only_dicts_are_messages(message):
    with pytest.raises(TypeError, match="is a dict"):
        encode(message)


@pytest.mark.parametrize("value", [object(), {1, 2}, 1j])
def test_what_cannot_travel_is_named(value):
    with pytest.raises(TypeError, match=f"cannot hold a {type(value).__name__}"):
        encode({"type": "x", "deep": [{"value": value}]})


def test_tuples_travel_as_lists():
    assert list(decode(encode_batch([encode_target("g") + encode({"a": (1, 2)})]))) == [("g", {"a": [1, 2]})]


def test_a_tuple_may_be_a_key_and_costs_no_other_message_of_its_batch():
    events = [("g", {"a": (1, [2])}), ("h", {"deep": [{(1, ("x", 2)): ({"y": (3,)},), b"k": ()}]})]
    parts = [encode_target(target) + encode(message) for target, message in events]
    assert list(decode(encode_batch(parts))) == [
        ("g", {"a": [1, [2]]}),
        ("h", {"deep": [{(1, ("x", 2)): [{"y": [3]}], b"k": []}]}),
    ]


# Copies


def test_a_copy_of_a_nested_message_shares_nothing_that_can_be_changed():
    message = {"list": [1, [2, {"deep": [3]}]], "dict": {"a": {"b": [4]}}, "text": "x"}
    copy = copier([message])
    mine, other = copy(message), copy(message)
    assert mine == other == message
    mine["list"][1][1]["deep"].append("mine")
    mine["dict"]["a"]["b"].clear()
    mine["list"].clear()
    assert other == message
    assert message["list"] == [1, [2, {"deep": [3]}]]
    assert message["dict"] == {"a": {"b": [4]}}


def test_a_copy_of_a_flat_message_is_flat():
    message = {"text": "x", "bytes": b"y", "none": None}
    copy = copier([message, {}])
    mine = copy(message)
    mine["text"] = "mine"
    assert message["text"] == "x"
    assert copier([message]) is dict.copy


def test_one_nested_message_has_all_of_its_body_copied_whole():
    for messages in ([{"a": 1}, {"a": [1]}], [{"a": {}}, {"a": 1}]):
        assert copier(messages) is not dict.copy


@given(MESSAGES)
def test_a_copy_is_what_it_is_a_copy_of(message):
    assert copier([message])(message) == message


def test_text_that_is_no_utf_8_travels():
    assert list(decode(encode_batch([encode_target("g") + encode({"a": "\ud800"})]))) == [
        ("g", {"a": "\ud800"})
    ]


@pytest.mark.parametrize(
    "body", [b"", b"\xc0", b"\x93\xa1a\x80\xa1b", b"\x81\xa1a\x01", b"\xc1", b"\x90\x90"]
)
def test_what_is_no_batch_is_a_value_error(body):
    with pytest.raises(ValueError):  # noqa: PT011 - msgpack's own words
        list(decode(body))


def test_a_body_nested_deeper_than_python_can_go_is_a_value_error():
    with pytest.raises(ValueError):  # noqa: PT011 - msgpack's own words
        list(decode(b"\x92\xa1a" + b"\x91" * 100_000 + b"\xc0"))


def test_what_is_nested_as_deep_as_can_travel_is_copied():
    value = 1
    for level in range(500):
        value = [value] if level % 2 else {"a": value}
    ((_, message),) = decode(encode_batch([encode_target("g") + encode({"deep": value})]))
    assert copier([message])(message) == message
