"""What the accounts tell of: that a user has too many sessions."""

from carillon.notifications import Family, register

# Only one's own: the family once told every subscriber about everybody.
register(
    Family(
        "control",
        ("limit_reached_<id>",),
        may_subscribe=lambda user, key: user.is_superuser or key.id == user.pk,
    )
)
