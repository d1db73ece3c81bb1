"""What the relay decides, without broker, database, clock or loop: which queue messages are in hand, which
numbers their events get, what the log has confirmed, and what may be taken off the queue."""

import itertools
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from asgi_amqp import Position
from carillon.events.event import RELAYED, Batch, Event, first_after, pack
from carillon.events.seen import Seen
from carillon.fanout.log import Reading

BATCH_EVENTS = 1024
BATCH_BYTES = 512 * 1024
IN_FLIGHT = 4
"""Stream messages that wait for their confirm; events that come meanwhile gather into larger ones."""

SENT = 1024
"""Queue messages that are remembered with their numbers after they were done with."""

FENCE = b"fence "


class Held(NamedTuple):
    """A queue message that the log has, or soon: it is done with when the row says `number`. The mark is one
    too, with the tag 0."""

    number: int
    tag: int
    ids: list[bytes]


class RelayCore:
    """On each link it stands by until the queue gives it a message: then it is the active one. It takes over
    by a fence in the log, behind which no earlier relay's word counts, by numbers that nobody had before,
    and by a mark that says what they follow; from there on it sends, and what is confirmed is noted in the
    row, and what is noted is taken off the queue. So whatever the log may lose later, the row tells of it,
    or the queue gives it out again.

    Told: `arrived`, `fenced_by`, `read`, `took_over`, `extended`, `confirmed`, `noted`, `lost`. Asked:
    `fenced`, `last`, `active`, `waiting`, `send`, `to_note`, `done`, `settled`, `short`.
    """

    def __init__(self, remembered: int = 250_000) -> None:
        self._seen = Seen(remembered)
        self._sent: deque[Held] = deque(maxlen=SENT)
        """What was sent last and is done with, or was when a link was lost: some of it may come again."""
        self._of = ""
        self._until = 0
        """The last number that it might have given when its link was lost."""
        self._stand_by()

    def lost(self) -> None:
        """The link is gone. Whether the log has what was in hand, the log itself will say; the queue gives it
        out again."""
        waiting = [event.id for event, _ in self._pending if event is not None]
        self._sent.extend((*self._held, Held(self._number, 0, self._ids)))
        self._until = max(self._until, self.reserved)
        for ids in (*(held.ids for held in self._sent), self._read, waiting):
            for id in ids:
                self._seen.discard(id)
        self._stand_by()

    def _stand_by(self) -> None:
        self.epoch = ""
        self.fenced = self.active = False
        self.reserved = 0
        """The last number that may be given."""
        self._fence = b""
        self._reading = Reading()
        self._read: list[bytes] = []  # ids that the log had: it may lose them before it is read again
        self._pending: deque[tuple[Event | None, int]] = deque()
        self.waiting = 0
        """Bytes of the events that are yet to be sent."""
        self._ids: list[bytes] = []  # of the events that were sent of a queue message that is not yet whole
        self._flight: deque[int] = deque()
        self._held: deque[Held] = deque()
        self._first = self._number = self._confirmed = 0
        self.in_row = 0
        """The number that was noted last."""

    # Taking over

    def fenced_by(self, epoch: str, token: bytes) -> bytes:
        """The stream message to begin a takeover with, in the log of `epoch`; `token` is like no other."""
        if epoch != self._of:
            self._of, self._until = epoch, 0
            self._sent.clear()
        self.epoch, self._fence = epoch, FENCE + token
        return pack([], word=self._fence)

    def read(self, batch: Batch) -> None:
        """A message of the log, from some way before the fence to the relay's own mark. What is in it comes
        again from the queue, if it was not taken off there, and is known by its id."""
        events, _ = self._reading.take(batch)
        if self.active:
            return
        self._read += (event.id for event in events if self._seen.add(event.id))
        if self._fence and batch.word == self._fence:
            self.fenced = True
        if self._first and batch.number == self._first:
            self.active = True

    @property
    def last(self) -> int:
        """The last number in what was read of the log."""
        return self._reading.last or 0

    def took_over(self, noted: int, first: int, reserved: int, given: Iterable[Event] = ()) -> bytes:
        """It has the numbers from `first` to `reserved`, and what was taken off the queue ends with `noted`
        or, if it sent one of the events that the queue has `given` it now, before that: the mark to send.
        Nothing else is sent before it has been read."""
        if first != first_after(self._until):
            # Another relay has had numbers since, and may have taken off the queue what it sent under them.
            self._sent.clear()
        sent: dict[bytes, int] = {}
        for held in self._sent:
            sent.update(zip(held.ids, itertools.count(held.number - len(held.ids) + 1), strict=False))
        if number := next((sent[event.id] for event in given if event.id in sent), 0):
            noted = max(self.last, number - 1)
        self._first, self._number, self.reserved = first, first - 1, reserved
        self._flight.append(self._number)
        self._held.append(Held(self._number, 0, []))
        return pack([], first, noted)

    def extended(self, reserved: int) -> None:
        """It has the numbers up to `reserved`."""
        self.reserved = reserved

    def short(self, least: int) -> bool:
        """Whether there are not even so many numbers left to give."""
        return self.active and self.reserved - self._number < least

    # From the queue to the log

    def arrived(self, tag: int, events: list[Event]) -> int:
        """A queue message, whose dead letters are put away; how many of its events are doubles. Only while it
        is active: before that, it does not know what the log has."""
        fresh = [event for event in events if self._seen.add(event.id)]
        self._pending.extend((event, 0) for event in fresh[:-1])
        self._pending.append((fresh[-1] if fresh else None, tag))
        self.waiting += sum(event.size for event in fresh)
        return len(events) - len(fresh)

    def send(self, now: int = 0) -> bytes | None:
        """The next stream message to append, from what has gathered; None: nothing now. `now`: milliseconds
        since 1970, UTC."""
        if not self.active or len(self._flight) >= IN_FLIGHT:
            return None
        events: list[Event] = []
        size, first = 0, self._number + 1
        while self._pending and len(events) < BATCH_EVENTS and size < BATCH_BYTES:
            event, tag = self._pending[0]
            if event is not None:
                if self._number == self.reserved:
                    break
                self._number += 1
                events.append(event)
                self._ids.append(event.id)
                size += event.size
                self.waiting -= event.size
            self._pending.popleft()
            if tag:
                self._held.append(Held(self._number, tag, self._ids))
                self._ids = []
        if not events:
            return None
        self._flight.append(self._number)
        return pack(events, first, word=b"%s%d" % (RELAYED, now))

    def confirmed(self) -> int:
        """The log has the oldest of the messages that wait for their confirm; how many events that is."""
        before, self._confirmed = max(self._confirmed, self._first - 1), self._flight.popleft()
        return self._confirmed - before

    # From the log to the row and back to the queue

    def to_note(self) -> Position | None:
        """What the row does not have yet: behind the last queue message that the log has whole. What follows
        comes again in its order, should this relay be lost."""
        for held in reversed(self._held):
            if held.number <= self._confirmed:
                return Position(self.epoch, held.number) if held.number > self.in_row else None
        return None

    def noted(self, number: int) -> None:
        """The row has it."""
        self.in_row = max(self.in_row, number)

    def done(self) -> int:
        """The tag up to which the queue's messages are done with since it was asked last; 0: none."""
        tag = 0
        while self._held and self._held[0].number <= self.in_row:
            self._sent.append(self._held.popleft())
            tag = self._sent[-1].tag
        return tag

    @property
    def in_hand(self) -> int:
        """Queue messages that were sent whole and are not done with."""
        return len(self._held)

    @property
    def settled(self) -> bool:
        """Whether all that was sent is confirmed, and all that is whole is done with."""
        return not self._flight and not self._held
