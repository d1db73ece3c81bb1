"""Positions: text and numbers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_amqp.position import BATCH, Position, first_of, message_of


@given(st.from_regex(r"[0-9a-z]{1,32}", fullmatch=True), st.integers(0, 2**53 - 1))
def test_what_is_written_is_read(epoch, number):
    assert Position.parse(str(Position(epoch, number))) == Position(epoch, number)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "a:",
        ":1",
        "a:01",
        "a:-1",
        "a:1 ",
        "A:1",
        "a:1:2",
        "a:٣",
        f"a:{2**53}",
        "a" * 33 + ":1",
        None,
        5,
        ["a:1"],
    ],
)
def test_what_is_no_position(text):
    with pytest.raises(ValueError, match="epoch"):
        Position.parse(text)


@given(st.integers(0, 2**40), st.integers(0, BATCH - 1))
def test_an_offset_says_which_message_holds_it(message, index):
    assert message_of(first_of(message) + index) == message
    assert first_of(message) + BATCH - 1 < first_of(message + 1)
