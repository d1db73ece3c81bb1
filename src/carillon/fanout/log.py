"""The log of one epoch: its name, how it is read without missing a gap, and where in it a number lies."""

from contextlib import suppress

from asgi_amqp import Link, stream
from carillon.events.event import Batch, Event, Malformed, unpack

NEAR = 32
"""Stream messages: a search for a number ends this close to it."""


def stream_name(epoch: str) -> str:
    """The name of the stream that holds the events of an epoch."""
    return f"carillon.events.{epoch}"


class Reading:
    """One reading of a log, in its order. Pure.

    Every stream message says what it follows. A mark follows all that was taken off the queue before a relay
    took over, whether the log still has it or not: who has heard so much misses nothing, who has not does.
    What was sent beyond that, and is not in the log before the mark, comes again behind it, in its order."""

    __slots__ = ("jump", "last")

    def __init__(self) -> None:
        self.last: int | None = None
        """The number up to which it has been read; None before the first message."""
        self.jump: tuple[int, int] | None = None
        """At a mark: the number up to which it has been read, and the same place behind the mark."""

    def take(self, batch: Batch) -> tuple[list[Event], int]:
        """The events of the next message, and a number: who has not heard all up to there misses something
        that this reading has not come by. 0: nobody does.

        What lies below the last number is dropped: the broker has repeated it, or it is the late word of a
        relay after another took over, which finds it on the queue again and gives it new numbers."""
        self.jump = None
        end = batch.number + len(batch.events) - 1
        if not batch.number or (self.last is not None and end <= self.last):
            return [], 0
        missing = batch.after if self.last is None or self.last < batch.after else 0
        if not batch.events:
            # Who has read more than the log still has will meet that again, under as many numbers.
            before = max(batch.after, self.last or 0)
            self.jump = (before, end + before - batch.after)
        self.last = end
        return batch.events, missing

    def carried(self, number: int) -> int:
        """The same place as `number` before the mark that was just read, behind it: what a client heard of
        what comes again, it has."""
        before, after = self.jump or (0, 0)
        return number + after - before if before < number < after else number


async def locate(link: Link, name: str, number: int, guess: int | None = None) -> int:
    """The offset of a message from which to read what follows `number`: at `guess`, if the log has no later
    one there, or else close to it. The oldest there is where retention has taken the rest."""
    low, high = 0, await stream.end_of(link, name)
    if guess is not None and guess <= high and await _number_at(link, name, guess, high) <= number:
        return guess
    while high - low > NEAR:
        middle = (low + high) // 2
        if await _number_at(link, name, middle, high) <= number:
            low = middle
        else:
            high = middle
    return max(low, 0)


async def _number_at(link: Link, name: str, offset: int, end: int) -> float:
    """The number of the first message from `offset` on that has one; beyond `end` there is none."""
    while offset <= end:
        found = await stream.peek(link, name, offset, 10.0)
        for _, body in found:
            with suppress(Malformed):
                if number := unpack(body).number:
                    return number
        if not found:
            break
        offset = found[-1][0] + 1
    return float("inf")
