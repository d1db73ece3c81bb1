"""A timer wheel: many members, each visited once per turn, a few at every tick. Nothing walks all of them at
once."""


class Wheel:
    """`slots` ticks make a turn. A member stays in the slot that was current when it came."""

    def __init__(self, slots: int):
        self._slots = [set() for _ in range(slots)]
        self._now = 0

    def add(self, member) -> int:
        """Returns the slot, which discard() wants back. The first visit is a whole turn away."""
        slot = self._now
        self._slots[slot].add(member)
        return slot

    def discard(self, member, slot: int) -> None:
        self._slots[slot].discard(member)

    def tick(self) -> tuple:
        """Advance by one slot and return its members."""
        self._now = (self._now + 1) % len(self._slots)
        return tuple(self._slots[self._now])
