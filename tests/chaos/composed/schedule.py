"""What happens, when and to whom, drawn from a seed: faults that overlap or follow closely. Pure."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

BROKERS = ("leader", "second", "third")
"""Of the queue; of the stream, where that is another; the last. Which they are is seen at the beginning."""
PROCESSES = ("runworker", "daphne", "uwsgi", "nginx", "postgresql")
CLOCKS = ("runworker", "daphne", "uwsgi")
"""Those that run with a clock of their own."""
BEGIN_WITHIN = 7.0
"""Seconds, in which all faults begin."""
CLOSELY = 0.8
"""The most seconds between the end of all faults and the beginning of the next."""


@dataclass(frozen=True)
class Fault:
    """`kind` befalls `on`, `at` seconds after the beginning, for `seconds`; `how` is what the kind needs."""

    kind: str
    on: tuple[str, ...]
    at: float
    seconds: float
    how: str = ""

    @property
    def end(self) -> float:
        return self.at + self.seconds

    def words(self) -> str:
        """What happens, for a story."""
        first, *others = self.on
        return {
            "partition": f"{first} and {', '.join(others)} cannot reach each other ({self.how})",
            "pause": f"{first} is paused",
            "kill": f"{first} is killed",
            "power": f"{', '.join(self.on)} lose power, and {self.how} bytes off the end of the stream",
            "clock": f"the clock of {first} jumps by {self.how} s",
            "disk": f"the disk takes {self.how} writes a second from {first}",
            "line": f"the line of two clients is {self.how}",
        }[self.kind]


@dataclass(frozen=True)
class Schedule:
    """The faults of a seed, in the order of their beginnings."""

    seed: int
    faults: tuple[Fault, ...]

    @property
    def kinds(self) -> list[str]:
        return [fault.kind for fault in self.faults]

    def words(self) -> list[str]:
        """One line for each fault."""
        return [f"{each.at:5.1f} s, for {each.seconds:.1f} s: {each.words()}" for each in self.faults]

    @property
    def may_lose_the_log(self) -> bool:
        """Whether anybody may be told that the log has lost something."""
        return "power" in self.kinds


class Draw:
    """One schedule being drawn. A container is paused, killed or deprived of its power, clock or disk at most
    once, so that each of these is seen to take effect; what befalls links goes across everything."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(f"chaos {seed}")
        self.free = [*BROKERS, *PROCESSES]

    def take(self, among: tuple[str, ...]) -> str | None:
        there = [name for name in self.free if name in among]
        if not there:
            return None
        name = self.chance.choice(there)
        self.free.remove(name)
        return name

    def seconds(self, least: float, most: float) -> float:
        return round(self.chance.uniform(least, most), 1)

    def partition(self, at: float) -> Fault | None:
        how = self.chance.choice(("refused", "silent"))
        one, *others = self.chance.sample(BROKERS, 3)
        on = self.chance.choice(
            [
                (one, *others),
                (one, *others),
                (one, others[0]),
                (self.chance.choice(("runworker", "daphne", "uwsgi")), *BROKERS),
                (self.chance.choice(("runworker", "daphne", "uwsgi")), one),
                (self.chance.choice(("runworker", "daphne", "uwsgi")), "postgresql"),
            ]
        )
        return Fault("partition", on, at, self.seconds(1.5, 5), how)

    def pause(self, at: float) -> Fault | None:
        if (name := self.take((*BROKERS, *PROCESSES))) is None:
            return None
        return Fault("pause", (name,), at, self.seconds(1, 5))

    def kill(self, at: float) -> Fault | None:
        if (name := self.take((*BROKERS, *PROCESSES))) is None:
            return None
        return Fault("kill", (name,), at, self.seconds(0.2, 2))

    def power(self, at: float) -> Fault | None:
        brokers = [self.take(BROKERS) for _ in range(self.chance.choice((1, 1, 2, 3)))]
        if not (there := tuple(filter(None, brokers))):
            return None
        size = self.chance.choice((1_000, 20_000, 60_000))
        return Fault("power", there, at, self.seconds(0.2, 1), str(size))

    def clock(self, at: float) -> Fault | None:
        if (name := self.take(CLOCKS)) is None:
            return None
        return Fault("clock", (name,), at, self.seconds(2, 5), self.chance.choice(("+7200", "-3600", "+30")))

    def disk(self, at: float) -> Fault | None:
        if (name := self.take((*BROKERS, "postgresql"))) is None:
            return None
        return Fault("disk", (name,), at, self.seconds(1, 3), self.chance.choice(("10", "30")))

    def line(self, at: float) -> Fault | None:
        return Fault("line", ("clients",), at, self.seconds(0.5, 3), self.chance.choice(("cut", "silent")))


KINDS: dict[Callable[[Draw, float], Fault | None], int] = {
    Draw.partition: 5,
    Draw.pause: 4,
    Draw.kill: 5,
    Draw.power: 3,
    Draw.clock: 1,
    Draw.disk: 2,
    Draw.line: 2,
}
"""How often each is drawn."""


def schedule(seed: int) -> Schedule:
    """Two to four faults; each begins while one before goes on, or at most `CLOSELY` after."""
    draw = Draw(seed)
    wanted = draw.chance.choice((2, 3, 3, 4))
    faults: list[Fault] = []
    at = draw.seconds(0.3, 1)
    while len(faults) < wanted:
        (kind,) = draw.chance.choices(list(KINDS), list(KINDS.values()))
        if kind is Draw.line and "line" in (fault.kind for fault in faults):
            continue
        if (fault := kind(draw, at)) is None:
            continue
        faults.append(fault)
        end = max(each.end for each in faults)
        at = round(min(draw.chance.uniform(at + 0.1, end + CLOSELY), BEGIN_WITHIN), 1)
    return Schedule(seed, tuple(faults))
