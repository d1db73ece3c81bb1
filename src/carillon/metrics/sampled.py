"""Plain numbers of a hot path, and sizes: copied into the metrics when a snapshot is taken, not when they
change."""

from __future__ import annotations

import weakref
from typing import Protocol


class Sampled(Protocol):
    def sample(self) -> None:
        """Set the metrics of this object. Called from the thread that writes them: it reads, and changes
        nothing; what it walks it copies first, in one step."""


_sampled: list[weakref.ref[Sampled]] = []


def sampled(what: Sampled) -> None:
    """Sample this object from now on, for as long as it lives."""
    _sampled.append(weakref.ref(what, _sampled.remove))


def sample() -> None:
    """Bring the metrics up to date."""
    for each in tuple(_sampled):
        if (what := each()) is not None:
            what.sample()


class Grown:
    """How much a plain counter has grown since it was asked last."""

    def __init__(self) -> None:
        self._last = 0

    def by(self, now: int) -> int:
        grown, self._last = now - self._last, now
        return grown
