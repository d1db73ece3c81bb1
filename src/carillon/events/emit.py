"""Emitting: a payload becomes one message on the durable queue.

The payload is the frame that clients will see, so it is encoded once, here, with `DjangoJSONEncoder`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.core.serializers.json import DjangoJSONEncoder
from django.db import Error, transaction

from carillon.events import outbox, queue
from carillon.metrics.names import DROPPED, KEPT, LOST

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Notification:
    """A payload for a group.

    `audience`: `{"users": [ids], "teams": [ids]}` is these users, these teams' members, and admins;
    None: everyone who subscribed. `id`: 16 bytes of the caller's, for one who tries again after an error:
    what came through the first time is recognised by it. Without one the event gets its own.
    """

    group: str
    payload: Mapping[str, Any]
    audience: Mapping[str, Sequence[int]] | None = None
    id: bytes | None = None

    def message(self) -> dict[str, Any] | None:
        """The queue's message, or None (and a line in the log) when the payload cannot be JSON."""
        try:
            text = json.dumps(self.payload, cls=DjangoJSONEncoder, allow_nan=False)
        except (ValueError, TypeError, RecursionError) as error:
            # As AWX did: one bad payload must not undo the work it tells of.
            logger.error("Invalid payload for %s dropped: %s", self.group, error)
            DROPPED.inc()
            return None
        return queue.message(self.group, text, self.audience, self.id)


def emit_channel_notification(
    group: str, payload: Mapping[str, Any], *, audience: Mapping[str, Sequence[int]] | None = None
) -> bool:
    """Emit at once, from synchronous code; returns when the broker has confirmed.

    False: the payload was no JSON; it is logged and dropped. Raises NotificationsUnavailable.
    """
    return emit_many([Notification(group, payload, audience)]) == 1


def emit_many(notifications: Iterable[Notification]) -> int:
    """Emit in order, as one batch; how many had a payload that is JSON. Raises NotificationsUnavailable."""
    messages = _messages(notifications)
    queue.publish(messages)
    return len(messages)


async def aemit_channel_notification(
    group: str, payload: Mapping[str, Any], *, audience: Mapping[str, Sequence[int]] | None = None
) -> bool:
    """`emit_channel_notification` for asynchronous code."""
    messages = _messages([Notification(group, payload, audience)])
    await queue.apublish(messages)
    return bool(messages)


def emit_on_commit(notifications: Iterable[Notification]) -> None:
    """Emit as one batch when the current transaction has committed (at once outside of one).

    The change is made by then, so nothing is raised: what the broker does not take is logged and counted.
    """
    messages = _messages(notifications)
    if messages:
        transaction.on_commit(lambda: _publish_or_keep(messages))


def emit_in_transaction(notifications: Iterable[Notification]) -> None:
    """Emit exactly when the current transaction commits: written to the outbox as part of it, and sent by
    runworker a moment later. Raises DatabaseError."""
    outbox.store(_messages(notifications))


def _messages(notifications: Iterable[Notification]) -> list[dict[str, Any]]:
    return [message for notification in notifications if (message := notification.message()) is not None]


def _publish_or_keep(messages: Sequence[dict[str, Any]]) -> None:
    """The change is made: what the broker does not take waits in the outbox, and is lost only with the
    database, or with this process. While anything waits there, what follows waits behind it: the order is
    that of the changes."""
    reason = None
    try:
        if not outbox.waits():
            queue.publish(messages)
            return
    except Error as error:
        reason = f"the database: {type(error).__name__}"
    except queue.NotificationsUnavailable as error:
        reason = str(error)
    try:
        outbox.store(messages)
    except Error as error:
        LOST.inc(len(messages))
        groups = sorted({message["group"] for message in messages})
        reason = reason or f"the database: {type(error).__name__}"
        logger.error(
            "Lost %d notifications to %s: %s",
            len(messages),
            ", ".join(groups[:5]),
            reason,
            extra={"event": _ids(messages)},
        )
        return
    KEPT.inc(len(messages))
    if reason is None:
        outbox.send_now()
    else:
        logger.warning(
            "%d notifications wait in the outbox: %s", len(messages), reason, extra={"event": _ids(messages)}
        )


def _ids(messages: Sequence[dict[str, Any]]) -> str:
    """Of the first of them, for a log line."""
    return " ".join(message["id"].hex() for message in messages[:5])
