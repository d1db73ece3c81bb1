"""Messages to the sockets themselves rather than to their clients: they travel with the events, in one
order."""

from __future__ import annotations

import json
from collections.abc import Iterable

from carillon.events.emit import publish_on_commit
from carillon.events.queue import message

# No family's group begins with '!', so no client can name it.
ACCESS = "!access"


def access_changed(user_ids: Iterable[int] = (), groups: Iterable[str] = ()) -> None:
    """After the transaction: these users' sockets check anew who they are and what they may hear, and the
    sockets that hear these groups whether they still may."""
    what = {"users": sorted(set(user_ids)), "groups": sorted(set(groups))}
    if what["users"] or what["groups"]:
        publish_on_commit([message(ACCESS, json.dumps(what))])
