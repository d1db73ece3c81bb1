"""What the sessions of a layer share, and its parts read."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .codec import Message
from .connection import Options
from .mailbox import Mailbox
from .metrics import Stats
from .topology import Topology

if TYPE_CHECKING:
    from .receiver import Receiver


@dataclass(frozen=True)
class Config:
    """The layer's options, those that concern more than the layer itself."""

    options: Options
    topology: Topology
    stats: Stats
    expiry: float
    buffer_bytes: int
    queue_bytes: int
    idle: float
    timeout: float
    capacity: Callable[[str], int]
    gap_type: str | None
    homes: dict[str, tuple[Mailbox, "Receiver"]]  # of the process-local channels of all sessions

    def gap(self, reason: str, count: int | None) -> Message | None:
        """What a channel is told where messages for it were lost, if it wants to know."""
        return {"type": self.gap_type, "reason": reason, "count": count} if self.gap_type else None

    def connect(self, role: str) -> Options:
        """How to open a connection for this role; the broker's management pages show it."""
        return replace(self.options, name=f"{self.options.name} {role} {os.getpid()}")
