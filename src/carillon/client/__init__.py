"""A client of Carillon: a socket that comes back by itself, the commands `watch` and `output`. No Django."""

from carillon.client.errors import (
    Away,
    CertificateError,
    ClientError,
    ConfigurationError,
    Refused,
    SubscriptionError,
)
from carillon.client.link import Socket, connect
from carillon.client.protocol import Event, Subscription

__all__ = [
    "Away",
    "CertificateError",
    "ClientError",
    "ConfigurationError",
    "Event",
    "Refused",
    "Socket",
    "Subscription",
    "SubscriptionError",
    "connect",
]
