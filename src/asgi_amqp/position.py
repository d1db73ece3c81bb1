"""Positions: `<epoch>:<number>`, the resume tokens of protocol version 2.

The epoch names one event stream for its whole life; a stream that is lost gets a new epoch, never the old
one. The number is one integer per *event*: a stream message carries up to `BATCH` events, so the number is
the message's offset times `BATCH` plus the index of the event in it. Numbers only grow, are compared
as integers, and say where to read the stream again without any index; they are not consecutive.
"""

import re
from typing import NamedTuple

INDEX_BITS = 12
BATCH = 1 << INDEX_BITS
"""Most events that one stream message may carry."""

_TEXT = re.compile(r"([0-9a-z]{1,32}):(0|[1-9][0-9]{0,15})", re.ASCII)
_LARGEST = 2**53 - 1  # what JavaScript counts exactly


class Position(NamedTuple):
    """A place between two events: everything up to and including `number` lies before it."""

    epoch: str
    number: int

    @classmethod
    def parse(cls, text: object) -> "Position":
        """Read a position that a client sent. Raises ValueError for anything but `<epoch>:<number>`."""
        match = _TEXT.fullmatch(text) if isinstance(text, str) else None
        if match is None or int(match[2]) > _LARGEST:
            raise ValueError("a position looks like <epoch>:<number>")
        return cls(match[1], int(match[2]))

    def __str__(self) -> str:
        return f"{self.epoch}:{self.number}"


def first_of(message: int) -> int:
    """Number of the first event in the stream message at offset `message`."""
    return message << INDEX_BITS


def message_of(number: int) -> int:
    """Offset of the message that holds (or held) the event at `number`."""
    return number >> INDEX_BITS
