"""The log of one epoch: its name, how it is read without missing a gap, and where in it a number lies."""

from contextlib import suppress
from typing import NamedTuple

from asgi_amqp import Link, stream
from carillon.events.event import LEAP, Batch, Event, Malformed, unpack

NEAR = 32
"""Stream messages: a search for a number ends this close to it."""

NOWHERE = -1
"""No number: a place from which something is missed in any case."""

TELLING = 16
"""Stream messages that are looked at together: more than relays that were superseded leave side by side, each
at most what `relay.core` has in flight, behind the mark of the next one."""


def stream_name(epoch: str) -> str:
    """The name of the stream that holds the events of an epoch."""
    return f"carillon.events.{epoch}"


class Reading:
    """One reading of a log, in its order. Pure.

    Every stream message says what it follows. A mark follows all that was taken off the queue before a relay
    took over, whether the log still has it or not: who has heard so much misses nothing, who has not does.
    What was sent beyond that, and is not in the log before the mark, comes again behind it, in its order. So
    who has heard some of it knows its place behind the mark; unless another mark lay between, which the log
    has lost, too: then the two are LEAP apart at least, and nobody knows."""

    __slots__ = ("_heard", "_there", "jump", "last")

    def __init__(self) -> None:
        self._there = 0  # the number up to which the log still has what was read
        self._heard = 0  # the place of who has heard all that was read: behind `last` until that came again
        self.last: int | None = None
        """The number up to which it has been read; None before the first message."""
        self.jump: tuple[int, int] | None = None
        """At a mark: the number up to which it has been read, and the same place behind the mark."""

    def attached(self) -> None:
        """It goes on from some way before where it was: the log may have lost the rest."""
        self._there = 0

    def take(self, batch: Batch) -> tuple[list[Event], int]:
        """The events of the next message, and a number: who has not heard all up to there misses something
        that this reading has not come by. 0: nobody does.

        What lies below the last number is dropped: the broker has repeated it, or it is the late word of a
        relay after another took over, which finds it on the queue again and gives it new numbers."""
        self.jump = None
        end = batch.number + len(batch.events) - 1
        before, self._there = max(batch.after, self._there), max(self._there, end)
        if not batch.number or (self.last is not None and end <= self.last):
            return [], 0
        missing = batch.after if self.last is None or self.last < batch.after else 0
        if not batch.events:
            # Who has heard more than the log still has will meet that again, under as many numbers.
            lost = max(0, self._heard - before)
            if lost < LEAP:
                self.jump = (before + lost, end + lost)
                self._heard = end + lost
            else:
                missing = end
        self._heard = max(self._heard, end)
        self.last = end
        return batch.events, missing

    def carried(self, number: int) -> int:
        """The same place as `number` before the mark that was just read, behind it: what a client heard of
        what comes again, it has. NOWHERE: nobody knows how much of it that is."""
        before, after = self.jump or (number, number)
        if not before < number < after:
            return number
        return number + after - before if number - before < LEAP else NOWHERE


class Place(NamedTuple):
    """A message of a log that was read: where it lay, and the number it began with. Numbers are given once:
    another message there has another one."""

    offset: int
    number: int


async def locate(link: Link, name: str, number: int, guess: Place | None = None) -> int:
    """The offset of a message from which to read what follows `number`: at `guess`, if that still lies there,
    or else close before it. The oldest there is where retention has taken the rest."""
    low, high = 0, await stream.end_of(link, name)
    if guess is not None:
        found = await _numbers(link, name, guess.offset, 1, high)
        if found and found[0] == guess.number:
            return guess.offset
    while high - low > NEAR:
        middle = (low + high) // 2
        # Some may be late words of relays that were superseded, with small numbers, but not all of them.
        # Where the log ends before there are so many, it is not known.
        found = await _numbers(link, name, middle, TELLING, high)
        if len(found) == TELLING and max(found) <= number:
            low = middle
        else:
            high = middle
    return low


async def _numbers(link: Link, name: str, offset: int, count: int, end: int) -> list[int]:
    """The first numbers of so many messages from `offset` on that have one; fewer where the log ends."""
    numbers: list[int] = []
    while offset <= end and len(numbers) < count:
        found = await stream.peek(link, name, offset, 10.0, count)
        for _, body in found:
            with suppress(Malformed):
                if number := unpack(body).number:
                    numbers.append(number)
        if not found:
            break
        offset = found[-1][0] + 1
    return numbers[:count]
