"""The tables of Carillon, one Django app: each model stands in the room that it belongs to."""

from carillon.accounts.models import (
    ApiToken,
    EndedSession,
    ExternalIdentity,
    LoginBudget,
    Team,
    UserSession,
)
from carillon.events.models import Head, Outbox
from carillon.sockets.models import Connection, Process, Watch

__all__ = [
    "ApiToken",
    "Connection",
    "EndedSession",
    "ExternalIdentity",
    "Head",
    "LoginBudget",
    "Outbox",
    "Process",
    "Team",
    "UserSession",
    "Watch",
]
