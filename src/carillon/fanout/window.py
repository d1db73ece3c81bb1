"""The recent events of this process, in memory: what most resumes are served from, without asking the
broker."""

from bisect import bisect_right
from collections import deque
from heapq import merge
from itertools import chain


class Window:
    """Keeps the newest events up to `limit` bytes, oldest out first, and answers by group.

    `start` is the number after which nothing is missing: a client whose position lies at or after it can be
    served from here. It is None until the first event, or mark(), says where the window begins.
    """

    def __init__(self, limit: int):
        self.limit = limit
        self.size = 0
        self.start: int | None = None
        self.end: int | None = None
        self._jumps: list[tuple[int, int]] = []
        self._events = deque()
        self._groups: dict[bytes, deque] = {}

    def __len__(self):
        return len(self._events)

    def mark(self, number: int) -> None:
        """Everything up to `number` has been seen: what the next extend() brings follows it without a gap."""
        if self.start is None:
            self.start = number
        if self.end is None or number > self.end:
            self.end = number

    def jump(self, before: int, after: int) -> None:
        """No event that is here has a number between these. Who holds one has heard what is not here."""
        self._jumps = [*(each for each in self._jumps if each[1] > self.start), (before, after)]

    def extend(self, events) -> None:
        """Add events in the stream's order; they follow what is here without a gap."""
        groups = self._groups
        for event in events:
            if self.start is None:
                self.start = event.number - 1
            self._events.append(event)
            held = groups.get(event.group)
            if held is None:
                groups[event.group] = deque((event,))
            else:
                held.append(event)
            self.size += event.size
        if events:
            self.end = events[-1].number
        while self.size > self.limit and len(self._events) > 1:
            oldest = self._events.popleft()
            held = groups[oldest.group]
            held.popleft()
            if not held:
                del groups[oldest.group]
            self.size -= oldest.size
            self.start = oldest.number

    def reset(self) -> None:
        """Forget everything: what comes next does not follow what was here."""
        self.__init__(self.limit)

    def covers(self, number: int) -> bool:
        """Whether nothing is missing behind `number`."""
        return self.start is not None and self.start <= number <= self.end and not self.jumped(number)

    def jumped(self, number: int) -> bool:
        """Whether a jump leads over `number`."""
        return any(before < number < after for before, after in self._jumps)

    def between(self, groups, number: int, upto: int, most: int) -> tuple[list, int] | None:
        """The events of `groups` behind `number` and up to `upto` in the stream's order, at most `most` bytes
        of them or one, and how far that goes. None where the window does not cover it."""
        if not self.covers(number):
            return None
        upto = min(upto, self.end)
        runs = []
        for group in groups:
            held = self._groups.get(group)
            if held is not None and held[-1].number > number:
                runs.append(_run(held, bisect_right(held, number, key=_number)))
        found, size = [], 0
        for event in merge(*runs, key=_number) if len(runs) > 1 else chain(*runs):
            if event.number > upto:
                break
            size += event.size
            if found and size > most:
                return found, found[-1].number
            found.append(event)
        return found, upto


def _run(events, place: int):
    """Those from `place` on; the first without walking to it."""
    while place < len(events):
        yield events[place]
        place += 1


def _number(event):
    return event.number
