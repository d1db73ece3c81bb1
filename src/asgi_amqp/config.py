"""What the sessions of a layer share."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .codec import Message
from .exceptions import ConfigurationError
from .metrics import Stats
from .options import Options, checked
from .topology import Topology


@dataclass(frozen=True)
class Config:
    """Times in seconds, sizes in bytes. `homes`: the process-local channels of all sessions, each with its
    mailbox and its receiver.
    """

    options: Options
    stats: Stats
    capacity: Callable[[str], int]
    homes: dict[str, Any]
    prefix: str
    expiry: float
    group_expiry: float
    timeout: float
    buffer_bytes: int
    queue_bytes: int
    max_message_bytes: int
    overflow: str
    gap_type: str | None

    def __post_init__(self) -> None:
        for name in ("expiry", "group_expiry", "timeout"):
            checked(name, getattr(self, name), 0.001, 10 * 365 * 86400)
        for name in ("buffer_bytes", "queue_bytes", "max_message_bytes"):
            checked(name, getattr(self, name), 1000, whole=True)
        if self.overflow not in ("drop-newest", "drop-oldest"):
            raise ConfigurationError(f"overflow={self.overflow!r}: write 'drop-newest' or 'drop-oldest'")
        if self.gap_type is not None and not isinstance(self.gap_type, str):
            raise ConfigurationError(f"gap_type={self.gap_type!r}: write the type of a message, or None")

    @functools.cached_property
    def topology(self) -> Topology:
        return Topology(self.prefix, self.expiry)

    def gap(self, reason: str, count: int | None) -> Message | None:
        """What a channel is told where messages for it were lost, if it wants to know."""
        return {"type": self.gap_type, "reason": reason, "count": count} if self.gap_type else None
