"""The recent events of this process, in memory: what most resumes are served from, without asking the
broker."""

from collections import deque


class Window:
    """Keeps the newest events up to `limit` bytes, oldest out first, and answers by group.

    `start` is the offset after which nothing is missing: a client whose position lies at or after it can be
    served from here. It is None until the first event, or mark(), says where the window begins.
    """

    def __init__(self, limit: int):
        self.limit = limit
        self.size = 0
        self.start: int | None = None
        self.end: int | None = None
        self._events = deque()
        self._groups: dict[bytes, deque] = {}

    def __len__(self):
        return len(self._events)

    def mark(self, offset: int) -> None:
        """Everything up to `offset` has been seen: what the next extend() brings follows it without a gap."""
        if self.start is None:
            self.start = offset
        if self.end is None or offset > self.end:
            self.end = offset

    def extend(self, events) -> None:
        """Add events in the stream's order; they follow what is here without a gap."""
        groups = self._groups
        for event in events:
            if self.start is None:
                self.start = event.offset - 1
            self._events.append(event)
            held = groups.get(event.group)
            if held is None:
                groups[event.group] = deque((event,))
            else:
                held.append(event)
            self.size += event.size
        if events:
            self.end = events[-1].offset
        while self.size > self.limit and len(self._events) > 1:
            oldest = self._events.popleft()
            held = groups[oldest.group]
            held.popleft()
            if not held:
                del groups[oldest.group]
            self.size -= oldest.size
            self.start = oldest.offset

    def reset(self) -> None:
        """Forget everything: what comes next does not follow what was here."""
        self.__init__(self.limit)

    def covers(self, offset: int) -> bool:
        """Whether after(…, offset) would be complete."""
        return self.start is not None and self.start <= offset <= self.end

    def after(self, groups, offset: int) -> list | None:
        """The events of `groups` behind `offset` in the stream's order, or None where the window does not
        cover it."""
        if not self.covers(offset):
            return None
        found = []
        for group in groups:
            for event in reversed(self._groups.get(group, ())):
                if event.offset <= offset:
                    break
                found.append(event)
        found.sort(key=_offset)
        return found


def _offset(event):
    return event.offset
