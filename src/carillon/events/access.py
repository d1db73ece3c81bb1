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


def access_changed(user_ids: Iterable[int] = (), groups: Iterable[str] = ()) -> None:
    """These users' sockets check anew who they are and what they may hear, and the sockets that hear these
    groups whether they still may.

    Written to the outbox in the current transaction, so that the change is not made without its word; sent
    as soon as it has committed. Raises DatabaseError."""
    what = {"users": sorted(set(user_ids)), "groups": sorted(set(groups))}
    if what["users"] or what["groups"]:
        outbox.store([message(ACCESS, json.dumps(what))])
        transaction.on_commit(outbox.send_now)
