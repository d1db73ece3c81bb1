"""What a process sends, from acceptance to settlement. Pure: no I/O, no tasks, and the clock is told.

An event is accepted into a lane, gathers there with others into a batch, leaves when the lane's window allows
it, and is settled. Nothing waits for a timer: who writes takes all that has gathered since the last write.

There are three kinds of lanes. Events that are sent at most once and that nobody waits for share the lane
PLAIN, whatever their destination, so that order holds across channels: a batch names all its destinations and
the broker hands it to each (sender-selected distribution, the `CC` header). Those of them that somebody waits
for until the broker confirms them share WATCHED. Confirmed events have a lane for each queue, so that a queue
that withholds its confirms holds up nobody else.
"""

from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Iterator
from itertools import takewhile
from operator import attrgetter

from .codec import HEAD
from .exceptions import BrokerUnavailable, ChannelFull, MessageTooLarge, Unroutable
from .lanes import PLAIN, WATCHED, Batch, Deadlines, Lane, Ticket
from .metrics import Stats
from .topology import Destination, Queue

WINDOW = 64  # batches of one lane that may be under way; beyond it events gather into larger batches
BATCH_BYTES = 120_000  # of one batch, unless a single event is larger
BURST = 1 << 20  # bytes taken at once
GATHERED = 1 << 20  # bytes in PLAIN beyond which who sends must wait until the event leaves


class Outbox:
    """See the module. `limit` bounds its bytes; confirmed events may have three quarters of it, so that
    queues that are stuck leave room for what does not need them.

    The shell sees to `to_declare` (queues) and `to_ask` (queues that refused something), and tells the result
    by `declared`, `undeclared` and `refused`.
    """

    def __init__(self, stats: Stats, limit: int, max_message: int, expiry: float) -> None:
        self.stats = stats
        self.limit = limit
        self.max_message = max_message - HEAD  # of one event
        self.batch_bytes = min(BATCH_BYTES, self.max_message)
        self.size = self.flying_bytes = 0  # of what waits, and of what is under way
        self.to_declare: list[Queue] = []
        self.to_ask: list[Queue] = []
        self._expiry = expiry
        self._plain = Lane(PLAIN, Destination("", b""))
        self._lanes: dict[str, Lane] = {PLAIN: self._plain}
        self._ready: OrderedDict[Lane, None] = OrderedDict()  # lanes that may have something to take, in turn
        self._confirming: dict[int, Batch] = {}  # under way with confirms, by their tags
        self._unsure: deque[tuple[float, int, int]] = deque()  # under way without: number, bytes, events
        self._asked: deque[float] = deque()  # the last number of _unsure before each open question
        self._number = self._tag = 0
        self._deadlines = Deadlines()
        self.cancelled = False  # somebody who waited has gone since the last tick

    def __iter__(self) -> Iterator[Batch]:
        """All batches that are not settled, but for those without confirms that have left."""
        for lane in self._lanes.values():
            yield from (*lane.waiting, *lane.refused)
        yield from self._confirming.values()

    @property
    def buffered(self) -> int:
        return self.size + self.flying_bytes

    @property
    def under_way(self) -> int:
        """Batches that have left and are not settled."""
        return len(self._confirming) + len(self._unsure)

    @property
    def idle(self) -> bool:
        return not (self._unsure or any(batch.parts for batch in self))

    @property
    def takable(self) -> bool:
        """Whether something may leave."""
        return bool(self._ready)

    @property
    def crowded(self) -> bool:
        """Whether who sends at most once must wait until the event has left."""
        return self._plain.size > GATHERED

    def full(self, destination: Destination, more: int = 0) -> bool:
        """Whether no event may be accepted for this destination, where `more` bytes are on their way here."""
        return self.buffered + more > (self.limit * 3 // 4 if destination.confirmed else self.limit)

    def accept(
        self, destination: Destination, data: bytes, ticket: Ticket | None, now: float, *, watched: bool
    ) -> None:
        """Take one event. A ticket is settled when the broker confirms the event, or, not `watched`, when the
        event leaves. MessageTooLarge.
        """
        part = destination.target + data
        size = len(part)
        if size > self.max_message:
            raise MessageTooLarge(
                f"a message of {size} bytes for {destination.key[2:]!r}: at most {self.max_message} can be "
                "sent (max_message_bytes, or the broker's max_message_size)"
            )
        name = destination.lane or (PLAIN if ticket is None or not watched else WATCHED)
        lane = self._lanes.get(name)
        if lane is None:
            lane = self._lanes[name] = Lane(name, destination)
        if lane.queue is not None and now - lane.declared > self._expiry and not lane.held:
            self._declare(lane, lane.queue)
        batch = lane.waiting[-1] if lane.waiting else None
        if (
            batch is None
            or batch.size + size > self.batch_bytes
            or len(batch.parts) == lane.most
            or now - batch.since > self._expiry / 10  # its events expire together
            or (destination.key not in batch.keys and len(batch.keys) >= lane.keys)
        ):
            self._number += 1
            batch = Batch(lane, self._number, now)
            lane.waiting.append(batch)
            if len(lane.waiting) == 1:
                self._rouse(lane)
        batch.keys[destination.key] = None
        if ticket is not None:
            batch.tickets[len(batch.parts)] = ticket
            self._deadlines.note(batch, ticket.deadline)
        batch.parts.append(part)
        batch.size += size
        self._waits(lane, size)
        self.stats.sent += 1

    def _waits(self, lane: Lane, size: int) -> None:
        self.size += size
        lane.size += size

    def _declare(self, lane: Lane, queue: Queue) -> None:
        lane.held = True
        self.to_declare.append(queue)

    def _rouse(self, lane: Lane) -> None:
        """Let it take its turn, if it may."""
        if not lane.flying:
            lane.draining = False
        if lane.waiting and not lane.held and not lane.draining and lane.flying < WINDOW:
            self._ready[lane] = None
        elif lane.queue is None and lane is not self._plain and not lane.flying:  # nor does anything wait
            self._lanes.pop(lane.name, None)  # a queue's lane knows when it was declared: tick() forgets it

    def take(self, now: float) -> list[Batch]:
        """What leaves now, one batch of each lane in turn, about BURST bytes at most; it is under way."""
        out: list[Batch] = []
        size = 0
        while self._ready and size < BURST:
            lane, _ = self._ready.popitem(last=False)
            if lane.held or lane.draining or not lane.waiting:  # it is roused again
                continue
            batch = self._pop(lane)
            if batch.parts:
                self._leave(batch, now)
                out.append(batch)
                size += batch.size
            self._rouse(lane)
        self.stats.batches_out += len(out)
        return out

    def _pop(self, lane: Lane) -> Batch:
        batch = lane.waiting.popleft()
        batch.waits = False
        self._waits(lane, -batch.size)
        batch.withdraw()
        return batch

    def _again(self, batch: Batch, place: int) -> None:
        """It waits again in its lane."""
        batch.waits = True
        batch.lane.waiting.insert(place, batch)
        self._waits(batch.lane, batch.size)
        for ticket in batch.tickets.values():
            self._deadlines.note(batch, ticket.deadline)

    def _leave(self, batch: Batch, now: float) -> None:
        batch.lane.flying += 1
        batch.returned = False
        self.flying_bytes += batch.size
        if batch.lane is self._plain:
            self._unsure.append((batch.number, batch.size, len(batch.parts)))
            self._end(batch)
        else:
            self._tag += 1
            batch.tag = self._tag
            batch.since = now
            self._confirming[batch.tag] = batch

    # What the broker says

    def ask(self) -> bool:
        """Whether to ask the broker if it has dealt with all that left without confirms; it is asked then."""
        if not self._unsure or (self._asked and self._asked[-1] == self._unsure[-1][0]):
            return False
        self._asked.append(self._unsure[-1][0])
        return True

    def answered(self) -> None:
        """It has dealt with all that left before the oldest open question."""
        if not self._asked:
            return
        last = self._asked.popleft()
        while self._unsure and self._unsure[0][0] <= last:
            _, size, count = self._unsure.popleft()
            self.flying_bytes -= size
            self._plain.flying -= 1
            self.stats.confirmed += count
        self._rouse(self._plain)

    def confirm(self, tag: int, multiple: bool, ok: bool, now: float) -> None:
        """The broker has taken (or refused) the batch of this tag; `multiple`: and all before it."""
        tags = list(takewhile(lambda each: each <= tag, self._confirming)) if multiple else [tag]
        for each in tags:
            batch = self._confirming.pop(each, None)
            if batch is not None:
                batch.lane.flying -= 1
                self.flying_bytes -= batch.size
                self._settle(batch, ok, now)
                self._rouse(batch.lane)

    def returned(self, identity: str, *, confirmed: bool) -> None:
        """The broker gives a batch back: nothing is bound to where it was for. Its confirm follows."""
        if not identity.isdigit():
            return
        if not confirmed:
            self.stats.lose("no_receiver", int(identity))
        elif int(identity) in self._confirming:
            self._confirming[int(identity)].returned = True

    def _settle(self, batch: Batch, ok: bool, now: float) -> None:
        lane, queue = batch.lane, batch.lane.queue
        if batch.returned and queue is not None:  # its queue is gone: declare it anew and send again
            self._put_back(batch)
            lane.draining = True
            if not lane.held:
                self._declare(lane, queue)
        elif batch.returned:
            what = "was it deleted?" if lane.again else "has its process ended?"
            self._end(batch, Unroutable(f"nothing is bound to {next(iter(batch.keys))}: {what}"))
            if not lane.again:
                self.stats.lose("no_receiver", len(batch.parts))
        elif ok:
            self.stats.confirmed += len(batch.parts)
            self.stats.confirm_took(now - batch.since)
            self._end(batch)
        else:
            self.stats.refused += len(batch.parts)
            # A classic queue refuses only when it is full; a quorum queue (which has dead letters) also while
            # it has no leader or is being deleted. It is not sent again: what came after it may be there.
            if queue is None:
                self._end(batch, BrokerUnavailable(f"the broker refused {next(iter(batch.keys))}"))
            elif not queue.dead:
                self._end(batch, ChannelFull(f"the queue of {lane.name[2:]!r} is full"))
            else:
                if not lane.refused:  # else it is being asked
                    self.to_ask.append(queue)
                lane.refused.append(batch)
                batch.parts = [b""] * len(batch.parts)  # it is never sent again, and is not counted any more

    def _end(self, batch: Batch, error: Exception | None = None) -> None:
        self._deadlines.forget(batch)
        for ticket in batch.tickets.values():
            ticket.settle(error)

    def _put_back(self, batch: Batch) -> None:
        """It waits again, before what is younger."""
        batch.withdraw()
        if batch.parts:
            self._again(batch, bisect_left(batch.lane.waiting, batch.number, key=attrgetter("number")))

    # What the shell says

    def declared(self, queue: Queue, now: float) -> None:
        lane = self._lanes.get(queue.key)
        if lane is not None:
            lane.declared = now
            lane.held = False
            self._rouse(lane)

    def undeclared(self, queue: Queue, error: Exception) -> None:
        """It cannot be declared: what waits for it has failed."""
        lane = self._lanes.get(queue.key)
        if lane is not None:
            lane.held, lane.declared = False, float("-inf")
            while lane.waiting:
                self._end(self._pop(lane), error)

    def refused_since(self, queue: Queue) -> tuple[float, float]:
        """When the queue was declared last, and when the first of what it refused had left."""
        lane = self._lanes[queue.key]
        return lane.declared, lane.refused[0].since

    def refused(self, queue: Queue, error: Exception, *, gone: bool = False) -> None:
        """Why the queue refused what it did. `gone`: it is to be declared anew before the next event."""
        lane = self._lanes.get(queue.key)
        if lane is None:  # another question has been answered, and it was forgotten
            return
        refused, lane.refused = lane.refused, []
        if gone:
            lane.declared = float("-inf")
        for batch in refused:
            self._end(batch, error)

    def up(self, now: float) -> None:
        """There is a link: what has waited for longer than the expiry is not sent any more."""
        waiting = self._plain.waiting
        while waiting and waiting[0].since < now - self._expiry:
            batch = self._pop(self._plain)
            self.stats.lose("expired", len(batch.parts))
            self._end(batch, BrokerUnavailable("it has expired"))
        for lane in list(self._lanes.values()):
            self._rouse(lane)

    def lost(self, reason: str) -> None:
        """The link is gone. Confirmed events leave again on the next; of others nobody knows."""
        gone = sum(count for _, _, count in self._unsure)
        under_way = list(self._confirming.values())
        self._confirming.clear()
        self._unsure.clear()
        self._asked.clear()
        self._tag = self.flying_bytes = 0
        for lane in list(self._lanes.values()):
            lane.flying = 0
        for batch in under_way:
            if batch.lane.again:
                self._put_back(batch)
            else:
                gone += len(batch.parts)
                self._end(batch, BrokerUnavailable(f"in flight when the connection was lost: {reason}"))
        self._ready.clear()  # until there is a link
        if gone:
            self.stats.lose("in_flight", gone)

    def tick(self, now: float, why: str) -> bool:
        """Give up who has waited too long; forget what ended. Whether anybody still waits."""
        over = self._deadlines.over(now, BrokerUnavailable(f"not confirmed in time: {why}"))
        for batch in list(self) if self.cancelled else over:
            self._withdraw(batch)
        self.cancelled = False
        for lane in list(self._lanes.values()):
            busy = lane.waiting or lane.flying or lane.held or lane.refused or lane is self._plain
            if not busy and now - lane.declared > self._expiry:
                del self._lanes[lane.name]
        return bool(self._deadlines)

    def _withdraw(self, batch: Batch) -> None:
        """Events of those who gave up take up no room."""
        if batch.waits:
            size = batch.size
            batch.withdraw()
            self._waits(batch.lane, batch.size - size)

    def fail(self, error: Exception) -> None:
        """There will be no link: who waits hears why. What nobody waits for waits for the next attempt."""
        for batch in list(self):
            self._deadlines.forget(batch)
            for ticket in batch.tickets.values():
                ticket.give_up(error)
            self._withdraw(batch)

    def shrink(self, limit: int) -> None:
        """The broker takes no message larger than `limit`: such events have failed, such batches shrink."""
        self.max_message = min(self.max_message, limit - HEAD)
        self.batch_bytes = min(self.batch_bytes, self.max_message)
        error = MessageTooLarge(f"the broker takes messages of at most {limit} bytes (its max_message_size)")
        for lane in self._lanes.values():
            for batch in [self._pop(lane) for _ in range(len(lane.waiting))]:
                if batch.size <= self.batch_bytes:
                    self._again(batch, len(lane.waiting))
                    continue
                self._deadlines.forget(batch)
                for alone in batch.split():
                    if alone.size > self.max_message:
                        self._end(alone, error)
                        if not alone.tickets:
                            self.stats.lose("too_large", 1)
                    else:
                        self._again(alone, len(lane.waiting))

    def close(self, error: Exception) -> None:
        """Nothing leaves any more: everybody who waits hears it, what nobody waits for is counted."""
        self.fail(error)
        unsent = sum(len(batch.parts) - len(batch.tickets) for batch in self)
        self.lost("closed")
        for lane in self._lanes.values():
            while lane.waiting:
                self._pop(lane)
            lane.refused.clear()
        if unsent:
            self.stats.lose("unsent", unsent)
