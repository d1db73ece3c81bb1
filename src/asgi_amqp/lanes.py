"""What an outbox is made of: tickets, batches and lanes. Pure. `outbox` says how they work together."""

from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from .topology import Destination

PLAIN, WATCHED = "plain", "watched"
BATCH_KEYS = 36  # destinations of one batch: the longest names in one header frame of 4096 bytes, the least
INF = float("inf")


class Ticket:
    """Someone who waits for `left` events to be settled, until `deadline` (monotonic seconds)."""

    __slots__ = ("deadline", "done", "error", "left")

    def __init__(self, left: int, deadline: float) -> None:
        self.left = left
        self.deadline = deadline
        self.done = left == 0
        self.error: Exception | None = None

    def settle(self, error: Exception | None = None) -> None:
        """One event has ended: well, or with `error`."""
        if self.error is None:
            self.error = error
        self.left -= 1  # a thread that sees none left looks at the error
        if self.left <= 0 and not self.done:
            self.done = True
            self.finish()

    def give_up(self, error: Exception) -> None:
        """All of it has failed: what has not left is withdrawn."""
        if not self.done:
            self.error = error
            self.done = True
            self.finish()

    def finish(self) -> None:
        """Wakes who waits; subclasses know how."""


@dataclass(slots=True, eq=False)
class Batch:
    """Events that leave in one AMQP message. `tickets` are by place in `parts`."""

    lane: "Lane"
    number: float  # grows in a lane: what leaves again goes before what is younger
    since: float
    keys: dict[str, None] = field(default_factory=dict)
    parts: list[bytes] = field(default_factory=list)
    tickets: dict[int, Ticket] = field(default_factory=dict)
    size: int = 0
    tag: int = 0
    returned: bool = False  # since it left last
    waits: bool = True  # in its lane
    due: float = INF  # kept by Deadlines

    @property
    def confirmed(self) -> bool:
        """Whether it leaves on the channel with confirms."""
        return self.lane.name != PLAIN

    @property
    def mandatory(self) -> bool:
        """Whether the broker gives it back when nobody is there. A group without members is no fault."""
        return self.lane.again or (len(self.keys) == 1 and next(iter(self.keys)).startswith("p."))

    @property
    def identity(self) -> str:
        """The message id by which it is known when it is given back."""
        return str(self.tag if self.confirmed else len(self.parts))

    def withdraw(self) -> None:
        """Drop the events whose ticket has ended without them."""
        if any(ticket.done for ticket in self.tickets.values()):
            rest = [
                (part, self.tickets.get(place))
                for place, part in enumerate(self.parts)
                if place not in self.tickets or not self.tickets[place].done
            ]
            self.parts = [part for part, _ in rest]
            self.tickets = {place: ticket for place, (_, ticket) in enumerate(rest) if ticket is not None}
            self.size = sum(map(len, self.parts))

    def split(self) -> Iterator["Batch"]:
        """Its events, each in a batch of its own."""
        for place, part in enumerate(self.parts):
            number = self.number + place / len(self.parts)
            tickets = {0: self.tickets[place]} if place in self.tickets else {}
            yield Batch(self.lane, number, self.since, dict(self.keys), [part], tickets, len(part))


class Deadlines:
    """Batches by the earliest deadline of those who wait for them: nobody need look at the others."""

    def __init__(self) -> None:
        self._batches: defaultdict[float, dict[Batch, None]] = defaultdict(dict)  # by tenths of a second

    def __bool__(self) -> bool:
        return bool(self._batches)

    def note(self, batch: Batch, deadline: float) -> None:
        """Someone waits for it until then."""
        due = deadline * 10 // 1
        if due < batch.due:
            self.forget(batch)
            batch.due = due
            self._batches[due][batch] = None

    def forget(self, batch: Batch) -> None:
        """It has ended, or nobody waits for it."""
        if batch.due < INF:
            found = self._batches[batch.due]
            del found[batch]
            if not found:
                del self._batches[batch.due]
            batch.due = INF

    def over(self, now: float, error: Exception) -> list[Batch]:
        """Those with someone who has waited for too long, and hears it."""
        found = [batch for due in self._batches if due <= now * 10 for batch in self._batches[due]]
        for batch in found:
            self.forget(batch)
            for ticket in batch.tickets.values():
                if ticket.deadline < now:
                    ticket.give_up(error)
                elif not ticket.done:
                    self.note(batch, ticket.deadline)
        return found


class Lane:
    """Events that must arrive in their order. `held` until its queue is declared; `draining` while batches
    are under way that may come back, and would come behind younger ones.
    """

    __slots__ = (
        "again", "declared", "draining", "flying", "held", "keys", "most", "name", "queue", "refused", "size",
        "waiting",
    )  # fmt: skip

    def __init__(self, name: str, destination: Destination) -> None:
        self.name = name
        self.queue = destination.queue
        self.most = destination.most
        self.keys = 1 if name == WATCHED else BATCH_KEYS  # what is given back is missing everywhere
        self.again = destination.confirmed  # leaves again after a cut
        self.waiting: deque[Batch] = deque()  # the last takes more
        self.size = 0  # bytes in `waiting`
        self.refused: list[Batch] = []  # while the broker is asked why
        self.flying = 0
        self.declared = float("-inf")
        self.held = self.draining = False
