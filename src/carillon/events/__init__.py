"""What an event is, which families exist, and how one is accepted.

The names below are the whole interface for applications; `queue` is the one place that knows how an event
gets onto the durable queue.
"""

from asgi_amqp import Position
from carillon.events.access import access_changed
from carillon.events.emit import (
    Notification,
    aemit_channel_notification,
    emit_channel_notification,
    emit_in_transaction,
    emit_many,
    emit_on_commit,
)
from carillon.events.families import Family, register
from carillon.events.queue import NotificationsUnavailable

__all__ = [
    "Family",
    "Notification",
    "NotificationsUnavailable",
    "access_changed",
    "aemit_channel_notification",
    "emit_channel_notification",
    "emit_in_transaction",
    "emit_many",
    "emit_on_commit",
    "position",
    "register",
]


def position() -> Position | None:
    """A position that the log had reached before this call: what is emitted afterwards lies behind it. None:
    there is no log yet. Asks the database; raises DatabaseError."""
    from carillon.events import heads  # only now: families are imported before Django's models may be

    return heads.position()
