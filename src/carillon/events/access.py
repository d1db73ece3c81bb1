"""Messages to the sockets themselves rather than to their clients: they travel with the events, in one
order."""

from __future__ import annotations

import json
from collections.abc import Iterable

from django.db import transaction

from carillon.events import outbox
from carillon.events.queue import message

# No family's group begins with '!', so no client can name it.
ACCESS = "!access"

MOST = 4000
"""Users, and groups, that one word names: with the longest names it is no larger than an event may be."""


def access_changed(user_ids: Iterable[int] = (), groups: Iterable[str] = ()) -> None:
    """These users' sockets check anew who they are and what they may hear, and the sockets that hear these
    groups whether they still may.

    Written to the outbox in the current transaction, so that the change is not made without its word; sent
    as soon as it has committed. Raises DatabaseError."""
    users, groups = sorted(set(user_ids)), sorted(set(groups))
    words = [
        json.dumps({"users": users[at : at + MOST], "groups": groups[at : at + MOST]})
        for at in range(0, max(len(users), len(groups)), MOST)
    ]
    if words:
        outbox.store([message(ACCESS, word) for word in words])
        transaction.on_commit(outbox.send_now)
