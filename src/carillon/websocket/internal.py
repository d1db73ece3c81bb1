"""Messages to the sockets themselves rather than to their clients."""

from __future__ import annotations

from collections.abc import Iterable

from carillon.notifications.emit import publish_on_commit

# Every socket listens here. No family's group has a '.' in its name, so no client can.
GROUP = "internal.sockets"


def access_changed(user_ids: Iterable[int]) -> None:
    """After the transaction: these users' sockets check anew who they are and what they may hear."""
    users = sorted(set(user_ids))
    if users:
        publish_on_commit([{"group": GROUP, "message": {"type": "access.changed", "users": users}}])
