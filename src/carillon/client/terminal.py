"""What may reach a terminal of what came over the wire: printable text, line ends, tabs, carriage returns,
and of the terminal's own language only colours and styles (SGR) from a list. Pure.

Everything else steers the terminal: titles, the clipboard (OSC 52), questions that it answers as if they had
been typed (DSR), hidden text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

# A whole sequence, or what is left of one that has no end. Of the string sequences (OSC, DCS, APC, PM, SOS)
# the text belongs to them. No part can match in two ways, so this is linear.
_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)(?P<parameters>[0-?]*)(?P<between>[ -/]*)(?P<final>[@-~]?)"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]?"
)
# Control characters but TAB, LF and CR; what turns the direction of writing.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")

# Reset, styles and their ends, both palettes. Not 5 and 6 (blinking), nor 8 (hidden).
_ALLOWED = frozenset(
    {0, 1, 2, 3, 4, 7, 9, 21, 22, 23, 24, 27, 29, *range(30, 38), 39, *range(40, 48), 49, *range(90, 98),
     *range(100, 108)}
)  # fmt: skip
_LONGEST = 100  # characters of parameters
RESET = "\x1b[0m"


def coloured(text: str) -> str:
    """The text with its colours. It ends as it began, without any."""
    parts: list[str] = []
    end, painted = 0, False
    for match in _SEQUENCE.finditer(text):
        parts.append(_CONTROL.sub("", text[end : match.start()]))
        end = match.end()
        if match["final"] == "m" and not match["between"] and (codes := _allowed(match["parameters"])):
            painted = codes != "0"
            parts.append(f"\x1b[{codes}m")
    parts.append(_CONTROL.sub("", text[end:]))
    return "".join(parts) + (RESET if painted else "")


def plain_text(text: str) -> str:
    """The same without any colours."""
    return _CONTROL.sub("", _SEQUENCE.sub("", text))


def _allowed(parameters: str) -> str:
    """Those of an SGR sequence's codes that are on the list; "" when none is."""
    if len(parameters) > _LONGEST or not re.fullmatch("[0-9;:]*", parameters):
        return ""
    # A colon form is one code with its arguments; a semicolon form has them as codes of their own.
    kept = []
    codes = iter(parameters.split(";"))
    for code in codes:
        number, _, arguments = code.partition(":")
        if number in ("38", "48"):
            kept.extend(_colour(number, arguments, codes))
        elif not arguments and (number == "" or int(number) in _ALLOWED):
            kept.append(number or "0")
        elif number == "4":  # 4:3 and its like: underlined, however
            kept.append("4")
    return ";".join(kept)


def _colour(number: str, arguments: str, codes: Iterator[str]) -> list[str]:
    """`38;5;n` or `38;2;r;g;b`, whichever way it was written; nothing when it is neither."""
    parts = arguments.split(":") if arguments else [next(codes, "")]
    kind = parts[0]
    count = {"5": 1, "2": 3}.get(kind, 0)
    # The colon form may name a colour space before the three.
    values = parts[-count:] if arguments else [next(codes, "") for _ in range(count)]
    if not count or (arguments and len(parts) <= count):
        return []
    if not all(value.isdecimal() and int(value) < 256 for value in values):
        return []
    return [number, kind, *values]
