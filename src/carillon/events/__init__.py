"""What an event is, which families exist, and how one is accepted.

The names below are the whole interface for applications; `queue` is the one place that knows how an event
gets onto the durable queue.
"""

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
    "register",
]
