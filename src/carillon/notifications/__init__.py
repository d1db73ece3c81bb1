"""Notifications: which families exist, how one is emitted, and how it travels to the sockets.

`emit_channel_notification` and its kin are the whole interface for applications; `delivery` is the one place
that knows how a notification travels.
"""

from carillon.notifications.delivery import NotificationsUnavailable
from carillon.notifications.emit import (
    Notification,
    aemit_channel_notification,
    emit_channel_notification,
    emit_many,
    emit_on_commit,
)
from carillon.notifications.registry import Family, register

__all__ = [
    "Family",
    "Notification",
    "NotificationsUnavailable",
    "aemit_channel_notification",
    "emit_channel_notification",
    "emit_many",
    "emit_on_commit",
    "register",
]
