"""Which groups are bound on the broker, against which have members here. Pure: the clock is told.

A group is bound when its first local member joins. It stays bound for LINGER seconds after the last has left,
so that people who come and go cost nothing. There is one operation on a group at a time, and what is wanted
meanwhile is done when it has ended: so wanted and bound agree when all is quiet.
"""

LINGER = 5.0
TOGETHER = 100  # most that are unbound before those who have come meanwhile have their turn


class Bindings:
    """The shell does what `start` gives it, and says of each when it is `finished`."""

    def __init__(self) -> None:
        self.bound: set[str] = set()
        self._wanted: set[str] = set()
        self._missing: dict[str, None] = {}  # wanted, not bound, and nothing under way
        self._lingering: dict[str, float] = {}  # bound and not wanted: until when
        self._busy: set[str] = set()
        self._connected = False

    def want(self, group: str) -> None:
        """It has members."""
        self._wanted.add(group)
        self._lingering.pop(group, None)
        if group not in self.bound and group not in self._busy:
            self._missing[group] = None

    def unwant(self, group: str, now: float) -> None:
        """The last member has left."""
        self._wanted.discard(group)
        self._missing.pop(group, None)
        if group in self.bound:
            self._lingering[group] = now + LINGER

    def up(self, groups: list[str], now: float) -> None:
        """There is a link on which these are bound."""
        self.down()
        self._connected = True
        self.bound.update(groups)
        for group in self.bound - self._wanted:
            self._lingering[group] = now + LINGER
        self._missing = dict.fromkeys(self._wanted - self.bound)

    def down(self) -> None:
        """The link is gone, and what was bound and under way with it."""
        self._connected = False
        self.bound.clear()
        self._busy.clear()
        self._lingering.clear()

    def start(self, now: float) -> tuple[list[str], list[str]]:
        """What to bind and what to unbind now. It is under way then."""
        if not self._connected:
            return [], []
        bind = list(self._missing)
        unbind = [group for group, until in self._lingering.items() if until <= now][:TOGETHER]
        self._missing.clear()
        for group in unbind:
            del self._lingering[group]
        self.bound.difference_update(unbind)  # who joins now must wait for a new binding
        self._busy.update(bind, unbind)
        return bind, unbind

    def finished(self, group: str, now: float, *, bound: bool) -> None:
        """An operation on this link has succeeded."""
        if group not in self._busy:
            return
        self._busy.discard(group)
        if bound:
            self.bound.add(group)
            if group not in self._wanted:
                self._lingering[group] = now + LINGER
        elif group in self._wanted:
            self._missing[group] = None

    @property
    def due(self) -> float:
        """When there is something to start: at once, later, or never (infinity)."""
        if not self._connected:
            return float("inf")
        return float("-inf") if self._missing else min(self._lingering.values(), default=float("inf"))
