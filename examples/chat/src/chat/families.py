"""What may be subscribed to at /websocket, and by whom: `{"groups": {"rooms": [1, 2]}}`."""

from carillon.events import Family, register
from chat.models import Room


def permitted(user, keys):
    """Those rooms that the user is a member of: one query for all keys."""
    mine = set(
        Room.objects.filter(members=user, pk__in=[key.id for key in keys]).values_list("pk", flat=True)
    )
    return {key for key in keys if key.id in mine}


register(Family("rooms", ("<id>",), permitted=permitted))
