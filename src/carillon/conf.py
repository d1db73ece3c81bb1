"""Carillon's own settings: `CARILLON = {…}` in Django's settings, over the defaults here.

    from carillon.conf import conf
    conf.WINDOW_BYTES

What differs between machines is in the environment instead (docs/reference/configuration.md).
"""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

DEFAULTS: dict[str, Any] = {
    # The event log. How long what happened can be asked for again: seconds, bytes. Retention works by whole
    # segments: keep them small. None: there is no log, and sockets hear only what a test gives to the hub.
    "STREAM": {"max_age": 24 * 3600, "max_bytes": 4 * 2**30, "segment_bytes": 16 * 2**20},
    # Bytes of recent events that each daphne process keeps, for resumes that need not ask the broker.
    "WINDOW_BYTES": 64 * 2**20,
    # Seconds that a resume may wait for the log without getting on, before the client is told to fetch its
    # state anew, and passes over the log at once, each for everyone who waits.
    "RESUME_SECONDS": 30.0,
    "RESUME_SCANS": 2,
    # Publishing: seconds until what the broker did not confirm counts as failed; events in one request, and
    # characters of JSON of one.
    "PUBLISH_SECONDS": 5.0,
    "PUBLISH_EVENTS": 1000,
    "PUBLISH_CHARACTERS": 256 * 1024,
    # A socket. Bytes that wait for its reader in this process, whatever it does; what is more it gets later,
    # from the window or the log. Bytes that a reader of version 1 may be behind before it is closed with
    # 4408. Messages of the client that wait for their consumer before it is read no further.
    "SOCKET_BUFFER_BYTES": 2**18,
    "SOCKET_BACKLOG_BYTES": 2**20,
    "SOCKET_INBOUND_MESSAGES": 32,
    # Bytes of the largest message that any client may send, one of a project's own consumers included: a
    # larger one is closed with 1009.
    "SOCKET_MESSAGE_BYTES": 2**20,
    # What one client may ask for: bytes of a message, groups, and messages and nonsense at once and a second.
    "MESSAGE_BYTES": 64 * 1024,
    "GROUPS_PER_SOCKET": 250,
    "MESSAGE_BURST": 100,
    "MESSAGE_RATE": 10.0,
    "NONSENSE_BURST": 20,
    "NONSENSE_RATE": 0.5,
    # Seconds: for who it is at a handshake; between two looks at who it is if no word came that it changed;
    # between two comments on a quiet stream of server-sent events.
    "LOGIN_SECONDS": 10.0,
    "RECHECK_SECONDS": 300.0,
    "SSE_COMMENT_SECONDS": 20.0,
    # TERM: seconds over which daphne spreads its closes, and milliseconds within which clients of version 2
    # are asked to come back, each at a time of its own.
    "DRAIN_SECONDS": 5.0,
    "RECONNECT_WITHIN_MS": 2000,
    # Sessions that a user may have at a time; a new one beyond that ends the oldest. -1: any number.
    "SESSIONS_PER_USER": -1,
    # Where every process leaves what it counts, once a second (a Path; None: nowhere), and the addresses and
    # networks from which metrics may be read without a token.
    "METRICS_DIRECTORY": None,
    "METRICS_ADDRESSES": (),
    # Days that a token lives when nobody says otherwise.
    "TOKEN_DAYS": 365,
    # A module with `websocket_urlpatterns`: a project's own consumers under /websocket/, as Channels'
    # URLRouter takes them. None: there are none.
    "WEBSOCKET_URLCONF": None,
    # Threads of a process for synchronous code of these consumers (handlers, queries): none of Carillon's own
    # runs there. A connection keeps to one.
    "CONSUMER_THREADS": 4,
}


class Conf:
    """The settings as attributes; read each time, so that a test may override them."""

    def __getattr__(self, name: str) -> Any:
        try:
            default = DEFAULTS[name]
        except KeyError:
            raise AttributeError(f"CARILLON has no setting {name!r}") from None
        return getattr(settings, "CARILLON", {}).get(name, default)


conf = Conf()


def check() -> None:
    """Raises ImproperlyConfigured for a name that is none: it would be ignored without a word."""
    if unknown := sorted(set(getattr(settings, "CARILLON", {})) - DEFAULTS.keys()):
        raise ImproperlyConfigured(
            f"CARILLON has no setting {', '.join(unknown)}: there are {', '.join(sorted(DEFAULTS))}"
        )
