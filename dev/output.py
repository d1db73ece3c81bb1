"""What the tool says, and how it fails: one line that helps."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Failure(Exception):
    """Ends the tool. The text is one line: what is wrong, where, and what to do.

    `details` are lines worth seeing before it, such as the end of a log.
    """

    def __init__(self, text: str, details: list[str] | None = None) -> None:
        super().__init__(text)
        self.details = details or []


def say(text: str = "") -> None:
    print(text, flush=True)


def step(text: str) -> None:
    say(f"==> {text}")


def progress(text: str) -> None:
    say(f"    {text}")


def fail(failure: Failure) -> int:
    sys.stdout.flush()
    for line in failure.details:
        print(f"    | {line}", file=sys.stderr)
    print(f"carillon: {failure}", file=sys.stderr, flush=True)
    return 1


@contextmanager
def timed() -> Iterator[list[float]]:
    """Yields a list that holds the seconds, once the block is left."""
    seconds: list[float] = []
    start = time.monotonic()
    try:
        yield seconds
    finally:
        seconds.append(time.monotonic() - start)
