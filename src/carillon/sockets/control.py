"""What the sockets tell of: that a user has too many sessions, and that somebody came or went."""

from carillon.events import Family, register

# Only one's own: the family once told every subscriber about everybody.
register(
    Family(
        "control",
        ("limit_reached_<id>",),
        may_subscribe=lambda user, key: user.is_superuser or key.id == user.pk,
    )
)

# Who it was, the REST API tells those who may know.
register(
    Family(
        "connections",
        ("changed",),
        payload={
            "type": "object",
            "required": ["group_name", "changed"],
            "properties": {"group_name": {"const": "connections"}, "changed": {"const": True}},
        },
    )
)
