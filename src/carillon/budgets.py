"""Budgets: what one actor may use at once and over time, by count or by bytes. Pure: no I/O and no clock;
`now` is any clock's seconds, the same one each time.

Sockets, the API and logins decide by these; `carillon_over_budget` counts what they refuse.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass


@dataclass(slots=True)
class Allowance:
    """A token bucket: `burst` at once, `rate` a second over time. `left` at `at`: None is a full one."""

    burst: float
    rate: float
    left: float | None = None
    at: float | None = None

    def spend(self, now: float, amount: float = 1.0) -> bool:
        """Take `amount`; False, and nothing taken, when there is not as much left."""
        self._refill(now)
        if self.left < amount:
            return False
        self.left -= amount
        return True

    def give(self, now: float, amount: float = 1.0) -> None:
        """Put back what was taken and turned out to be none of the budget's affair."""
        self._refill(now)
        self.left = min(self.burst, self.left + amount)

    def wait(self, now: float, amount: float = 1.0) -> float:
        """Seconds until `amount` can be taken; infinite when it never can."""
        self._refill(now)
        if self.left >= amount:
            return 0.0
        if amount > self.burst or self.rate <= 0:
            return float("inf")
        return (amount - self.left) / self.rate

    def _refill(self, now: float) -> None:
        if self.left is None or self.at is None:
            self.left = self.burst if self.left is None else self.left
        else:
            # A clock that was set back gives nothing, and takes nothing away.
            self.left = min(self.burst, self.left + max(now - self.at, 0.0) * self.rate)
        self.at = now


class Meter:
    """An allowance for each actor. It remembers at most `most` of them: who was not heard of for longest is
    forgotten, and has a full one again."""

    def __init__(self, most: int = 10_000) -> None:
        self.most = most
        self._allowances: OrderedDict[Hashable, Allowance] = OrderedDict()

    def of(self, actor: Hashable, burst: float, rate: float) -> Allowance:
        """The actor's, with the limits of now."""
        found = self._allowances.setdefault(actor, Allowance(burst, rate))
        self._allowances.move_to_end(actor)
        found.burst, found.rate = burst, rate
        while len(self._allowances) > self.most:
            self._allowances.popitem(last=False)
        return found


class InHand:
    """How much each actor has under way at a time: at most `most`, but one thing alone, whatever its size.
    What nobody has given back after `seconds` is forgotten: a budget must not leak."""

    def __init__(self, most: float, seconds: float) -> None:
        self.most = most
        self.seconds = seconds
        self._held: dict[Hashable, dict[object, tuple[float, float]]] = {}

    def take(self, actor: Hashable, amount: float, now: float) -> object | None:
        """What give() wants back; None, and nothing taken, when the actor would have more than `most`."""
        held = self._held.setdefault(actor, {})
        for ticket in [ticket for ticket, (until, _) in held.items() if until <= now]:
            del held[ticket]
        if held and amount + sum(each for _, each in held.values()) > self.most:
            return None
        ticket = object()
        held[ticket] = (now + self.seconds, amount)
        return ticket

    def give(self, actor: Hashable, ticket: object) -> None:
        """What was taken is done with."""
        held = self._held.get(actor, {})
        held.pop(ticket, None)
        if not held:
            self._held.pop(actor, None)


def fitting(sizes: Iterable[int], most: int) -> int:
    """How many of the first things of these sizes fit into `most`; at least one, if there is any."""
    count = total = 0
    for size in sizes:
        total += size
        if count and total > most:
            break
        count += 1
    return count
