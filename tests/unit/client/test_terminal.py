"""What of a job's output may reach a terminal."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carillon.client.terminal import RESET, coloured, plain_text


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("plain\ttext\r\nand 50%\r100%\n", "plain\ttext\r\nand 50%\r100%\n"),
        ("\x1b[0;31mred\x1b[0m\n", "\x1b[0;31mred\x1b[0m\n"),
        ("\x1b[mplain", "\x1b[0mplain"),
        ("\x1b[1;38;5;208mx\x1b[0m", "\x1b[1;38;5;208mx\x1b[0m"),
        ("\x1b[38;2;1;2;3mx\x1b[0m", "\x1b[38;2;1;2;3mx\x1b[0m"),
        ("\x1b[38:2::1:2:3mx\x1b[0m", "\x1b[38;2;1;2;3mx\x1b[0m"),
        ("\x1b[4:3mx\x1b[0m", "\x1b[4mx\x1b[0m"),
        # A colour that is left open ends with the text.
        ("\x1b[31mred", "\x1b[31mred" + RESET),
        # Hidden, blinking, and codes that nobody knows.
        ("\x1b[8mhidden", "hidden"),
        ("\x1b[5;8;31mx", "\x1b[31mx" + RESET),
        ("\x1b[38;5;999mx", "x"),
        ("\x1b[38;9;1mx", "\x1b[1mx" + RESET),
        ("\x1b[?1m\x1b[>4;2m\x1b[1 mx", "x"),
        # What steers: the clipboard, titles, links, questions, the screen, modes, keys.
        ("a\x1b]52;c;ZXZpbA==\x07b", "ab"),
        ("a\x1b]0;title\x1b\\b", "ab"),
        ("a\x1b]8;;http://x\x07link\x1b]8;;\x07b", "alinkb"),
        ("a\x1b[6nb\x1b[c\x1b[5n", "ab"),
        ("a\x1b[2J\x1b[1;1H\x1b[?1049hb\x1bc", "ab"),
        ('a\x1bP$q"p\x1b\\b\x1b_x\x1b\\\x1b^y\x1b\\\x1bXz\x1b\\c', "abc"),
        ("a\x9b6nb\x9d0;t\x9cc", "abc"),
        ("\x9b31mx", "\x1b[31mx" + RESET),
        # Without an end.
        ("a\x1b", "a"),
        ("a\x1b[", "a"),
        ("a\x1b[31", "a"),
        ("a\x1b]0;title\nb", "a\nb"),
        # One within another.
        ("a\x1b\x1b]52;c;x\x07b", "ab"),
        ("\x1b[3\x1b[31m1mx", "\x1b[31m1mx" + RESET),
        # Control characters, and what turns the direction of writing.
        ("a\x08\x0b\x0c\x0e\x7f\x85b\0", "ab"),
        ("a\u202eb\u2066c\u200f", "abc"),
    ],
)
def test_colours_and_nothing_else(text, kept):
    assert coloured(text) == kept
    assert plain_text(text) == re.sub(r"\x1b\[[0-9;]*m", "", kept)


ALPHABET = st.sampled_from(
    [*"\x1b\x9b\x9d\x90\x07\x9c\\[]()PX^_0123456789;:?<> mnhHJcRq", "\n", "\r", "x", "é"]
)


@given(st.text(ALPHABET, max_size=60))
def test_whatever_comes(text):
    rest = re.sub(r"\x1b\[[0-9;]{1,100}m", "", coloured(text))
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", rest)
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", plain_text(text))
    assert coloured(coloured(text)) == coloured(text)


def test_hostile_text_takes_time_in_proportion_to_its_length():
    n = 2**18
    begun = time.process_time()
    for text in (
        "\x1b" * n, "\x1b[" * n, "\x1b]" * n, "\x1b[" + "0" * n, "\x1b[" + "0;" * n + "m", "\x1b[" + " " * n,
        "\x1b(" * n, "\x1bP" * n, "\x9b" * n, "\x9d" * n, "\x1b[31m" * n, "\r" * n + "x", "\x1b]" + "x" * n,
    ):  # fmt: skip
        coloured(text)
        plain_text(text)
    # Seconds of processor time: linear it is two; a quadratic one takes hours.
    assert time.process_time() - begun < 30
