"""When this process has fanned out what: its last stream messages, for `carillon explain`."""

from __future__ import annotations

from array import array

MESSAGES = 16_384
"""Stream messages that are remembered, 16 bytes each."""


class History:
    """A ring of pairs: the number up to which events were fanned out, and when (ms since 1970, UTC)."""

    __slots__ = ("_at", "_epoch", "_pairs")

    def __init__(self) -> None:
        self.begin("", 0, 0)

    def begin(self, epoch: str, number: int, now: int) -> None:
        """What follows is behind `number`. What was before is forgotten."""
        self._epoch = epoch
        self._pairs = array("Q", [number, now])
        self._at = 0

    def note(self, number: int, now: int) -> None:
        self._at = (self._at + 2) % (2 * MESSAGES)
        self._pairs[self._at : self._at + 2] = array("Q", [number, now])

    def pack(self) -> bytes:
        """For `when`; in any thread."""
        return self._epoch.encode() + b"\n" + self._pairs.tobytes()


def when(packed: bytes, epoch: str, number: int) -> int | None:
    """When the event of this number was fanned out; None: not known, or not yet."""
    began, _, rest = packed.partition(b"\n")
    if began != epoch.encode():
        return None
    values = array("Q")
    values.frombytes(rest[: len(rest) // 16 * 16])
    pairs = sorted(zip(values[::2], values[1::2], strict=True))
    # The oldest one says only that its events were fanned out by then.
    return next((at for reached, at in pairs[1:] if reached >= number > pairs[0][0]), None)
