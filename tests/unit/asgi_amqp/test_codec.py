import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_amqp.codec import decode, encode, encode_batch, encode_target

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
