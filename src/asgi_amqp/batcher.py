"""What waits to be published, gathered into batches. Pure: no I/O, no clock of its own.

Nothing here waits for a timer: whoever writes takes all that has gathered since the last write. Events that
are not confirmed share one lane, whatever their destination, and leave in the order in which they came: a
batch names all its destinations and the broker hands it to each once (sender-selected distribution, the `CC`
header). Those of them that somebody waits for have a lane of their own; confirmed events have one per queue.
"""

from collections import deque
from collections.abc import Callable, Iterator

from .topology import Destination

WATCHED = "watched"  # the lane of events that are not confirmed by nature, and have a ticket


class Ticket:
    """Someone who waits for `left` events to be settled, until `deadline` (monotonic seconds)."""

    __slots__ = ("deadline", "done", "error", "left")

    def __init__(self, left: int, deadline: float) -> None:
        self.left = left
        self.deadline = deadline
        self.done = False
        self.error: Exception | None = None

    def settle(self, error: Exception | None = None) -> None:
        """One event is done: confirmed, or failed with `error`."""
        self.left -= 1
        if error is not None and self.error is None:
            self.error = error
        if self.left <= 0 and not self.done:
            self.done = True
            self.finish()

    def give_up(self, error: Exception) -> None:
        """The deadline has passed: what has not left is withdrawn."""
        if not self.done:
            self.error = error
            self.done = True
            self.finish()

    def finish(self) -> None:
        """Wakes who waits; subclasses know how."""


class Batch:
    """Events that leave in one AMQP message."""

    __slots__ = (
        "confirmed", "count", "destination", "keys", "lane", "parts", "returned", "since", "size", "tickets",
    )  # fmt: skip

    def __init__(self, destination: Destination, lane: str, since: float) -> None:
        self.destination = destination
        self.lane = lane
        self.confirmed = destination.confirmed
        self.keys: dict[str, None] = {destination.key: None}
        self.parts: list[bytes] = []
        self.tickets: list[Ticket] = []
        self.count = self.size = 0
        self.since = since
        self.returned = False

    def live(self) -> "Batch":
        """This batch without the events that were withdrawn."""
        if not self.confirmed or not any(ticket.done for ticket in self.tickets):
            return self
        batch = Batch(self.destination, self.lane, self.since)
        for part, ticket in zip(self.parts, self.tickets, strict=True):
            if not ticket.done:
                batch.parts.append(part)
                batch.tickets.append(ticket)
                batch.size += len(part)
                batch.count += 1
        return batch


class Batcher:
    """`max_bytes` and `max_keys` bound one batch; `size` and `count` say how much waits in all. What is in a
    lane of `held` gathers and does not leave.
    """

    def __init__(self, clock: Callable[[], float], max_bytes: int = 120_000, max_keys: int = 64) -> None:
        self.clock = clock
        self.max_bytes = max_bytes
        self.max_keys = max_keys
        self.size = self.count = 0
        self.held: set[str] = set()
        self._queue: deque[Batch] = deque()
        self._open: dict[str, Batch] = {}

    def __len__(self) -> int:
        return len(self._queue)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._queue)

    def add(self, destination: Destination, data: bytes, ticket: Ticket | None = None) -> None:
        """Append one event. A confirmed one needs its ticket."""
        part = destination.target + data
        size = len(part)
        lane = destination.lane if ticket is None else destination.lane or WATCHED
        batch = self._open.get(lane)
        if (
            batch is None
            or batch.size + size > self.max_bytes
            or batch.count == destination.most
            or (destination.key not in batch.keys and len(batch.keys) >= self.max_keys)
        ):
            batch = Batch(destination, lane, self.clock())
            self._queue.append(batch)
            self._open[lane] = batch
        else:
            batch.keys[destination.key] = None
        batch.parts.append(part)
        batch.size += size
        batch.count += 1
        if ticket is not None:
            batch.tickets.append(ticket)
        self.size += size
        self.count += 1

    def take(self) -> Batch | None:
        """The oldest batch that may leave, closed, without withdrawn events; None when there is none."""
        held = 0
        while held < len(self._queue):
            batch = self._queue[held]
            if batch.lane in self.held:
                held += 1
                continue
            del self._queue[held]
            self._gone(batch)
            batch = batch.live()
            if batch.count:
                return batch
        return None

    def _gone(self, batch: Batch) -> None:
        if self._open.get(batch.lane) is batch:
            del self._open[batch.lane]
        self.size -= batch.size
        self.count -= batch.count

    def put_back(self, batches: list[Batch]) -> None:
        """Batches that were taken and must leave again, before everything else, in their order."""
        for batch in reversed(batches):
            self._queue.appendleft(batch)
            self.size += batch.size
            self.count += batch.count

    def remove(self, unwanted: Callable[[Batch], bool]) -> list[Batch]:
        """Take out the batches of which this is true, in their order."""
        removed = [batch for batch in self._queue if unwanted(batch)]
        for batch in removed:
            self._queue.remove(batch)
            self._gone(batch)
        return removed
