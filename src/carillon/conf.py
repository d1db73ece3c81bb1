"""Carillon's own settings: `CARILLON = {…}` in Django's settings, over the defaults here.

    from carillon.conf import conf
    conf.WINDOW_BYTES

What differs between machines is in the environment instead (docs/reference/configuration.md).
"""

from __future__ import annotations

from collections.abc import Mapping
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
    # state anew, and passes over the log at once, each for those who wait near each other.
    "RESUME_SECONDS": 30.0,
    "RESUME_SCANS": 2,
    # Publishing: seconds until what the broker did not confirm counts as failed; events in one request, and
    # characters of JSON of one.
    "PUBLISH_SECONDS": 5.0,
    "PUBLISH_EVENTS": 1000,
    "PUBLISH_CHARACTERS": 256 * 1024,
    # A socket. Bytes that wait for its reader in this process, whatever it does; what is more it gets later,
    # from the window or the log. Bytes that a reader of version 1 may be behind before it is closed with
    # 4408. Messages of the client, and bytes of them, that wait for their consumer before it is read no
    # further.
    "SOCKET_BUFFER_BYTES": 2**18,
    "SOCKET_BACKLOG_BYTES": 2**20,
    "SOCKET_INBOUND_MESSAGES": 32,
    "SOCKET_INBOUND_BYTES": 2**18,
    # What any client may send at once and a second, a project's own consumers' too: frames (pings and empty
    # ones as well) and their bytes. Beyond it: 1008.
    "SOCKET_FRAME_BURST": 1000,
    "SOCKET_FRAME_RATE": 100.0,
    "SOCKET_BYTES_BURST": 8 * 2**20,
    "SOCKET_BYTES_RATE": 2**20,
    # Bytes of the largest message that any client may send, one of a project's own consumers included: a
    # larger one is closed with 1009.
    "SOCKET_MESSAGE_BYTES": 2**20,
    # What one client may ask for: bytes of a message (a larger one: 1009), groups, and messages and nonsense
    # at once and a second.
    "MESSAGE_BYTES": 64 * 1024,
    "GROUPS_PER_SOCKET": 250,
    "MESSAGE_BURST": 100,
    "MESSAGE_RATE": 10.0,
    # … and groups to subscribe to, whether it may hear them or not.
    "KEY_BURST": 1000,
    "KEY_RATE": 50.0,
    "NONSENSE_BURST": 20,
    "NONSENSE_RATE": 0.5,
    # Logins by password, before any hashing: wrong ones at once and a second, for one name from one address,
    # and from one address for names that never logged in from there. Days for which it is known that one did.
    # An attempt under way counts as a wrong one until its password was looked at, so a burst is also how many
    # right ones may be under way at once. All hosts together look at no more than uwsgi's processes times its
    # threads (8 in a container): with a burst of at least that nobody who types a right one is sent to wait.
    "LOGIN_NAME_BURST": 20,
    "LOGIN_NAME_RATE": 1 / 30,
    "LOGIN_ADDRESS_BURST": 10,
    "LOGIN_ADDRESS_RATE": 0.2,
    "LOGIN_PROVEN_DAYS": 90,
    # What one user may make, in each uwsgi process: at once, and a day over time. Events are Ansible's: two
    # for each task of each host, so that 1 000 hosts and 500 tasks are a million in one run. A user may be
    # the account that all runs of a team come by: one such run after another is 20 million a day, 230 a
    # second, which is what a control node with some hundred results a second tells for as long as it likes.
    "QUOTAS": {
        "jobs": (5_000, 10_000),
        "events": (2_000_000, 20_000_000),
        "notifications": (200_000, 20_000_000),
        "schedules": (1_000, 1_000),
        "tokens": (200, 2_000),
    },
    # What is made for one team, by whomever, likewise: as much as four such accounts.
    "TEAM_QUOTAS": {
        "jobs": (20_000, 40_000),
        "events": (8_000_000, 80_000_000),
        "schedules": (4_000, 4_000),
    },
    # API tokens that a user may have at a time, and sockets in each daphne process.
    "TOKENS_PER_USER": 200,
    "SOCKETS_PER_USER": 1000,
    # Bytes of one page of a list of job events, and how much of such pages one user may have made at a time
    # in each uwsgi process. Characters of JSON of one event's `event_data`, as PostgreSQL writes its numbers.
    "PAGE_BYTES": 2 * 2**20,
    "PAGE_BYTES_AT_ONCE": 4 * 2**20,
    "EVENT_DATA_CHARACTERS": 256 * 1024,
    # Seconds: for who it is at a handshake; between two looks at who it is if no word came that it changed;
    # between two comments on a quiet stream of server-sent events.
    "LOGIN_SECONDS": 10.0,
    "RECHECK_SECONDS": 300.0,
    "SSE_COMMENT_SECONDS": 20.0,
    # TERM: seconds over which daphne spreads its closes, and milliseconds within which clients of version 2
    # are asked to come back, each at a time of its own.
    "DRAIN_SECONDS": 5.0,
    "RECONNECT_WITHIN_MS": 2000,
    # Access tokens of an issuer outside, which are good where Carillon's own are: whose (as their `iss` has
    # it; None: nobody's), for whom (`aud`), and the keys: the URL of a JSON Web Key Set, or a set itself.
    # What the tokens may be signed by, and the scope that each of them has. Never `none` or a shared secret.
    "JWT_ISSUER": None,
    "JWT_AUDIENCE": None,
    "JWT_KEYS": None,
    "JWT_ALGORITHMS": ("RS256", "ES256", "EdDSA"),
    "JWT_SCOPE": "read write",
    # Logins by an OpenID provider: its address (None: there is none), what it knows us by, what its link on
    # the login page says, and what is asked for.
    "OIDC_ISSUER": None,
    "OIDC_CLIENT_ID": None,
    "OIDC_CLIENT_SECRET": None,
    "OIDC_NAME": "single sign-on",
    "OIDC_SCOPE": "openid profile",
    # A claim with a list of groups: at each login the user is made a member of those teams here that are
    # called so, and of no others; and an admin or none, by the group for them. None: these are left alone.
    "OIDC_GROUPS_CLAIM": None,
    "OIDC_ADMIN_GROUP": None,
    # Of both: whether who is new gets a user ("create", without any rights) or has to be linked to one
    # ("known"); the claim that such a user is named by; a PEM file with who signed the servers' certificates
    # (None: whom this machine trusts).
    "IDENTITY_USERS": "create",
    "IDENTITY_NAME_CLAIM": "preferred_username",
    "IDENTITY_TLS_CA": None,
    # Sessions that a user may have at a time; a new one beyond that ends the oldest. -1: any number.
    "SESSIONS_PER_USER": -1,
    # Where every process leaves what it counts, once a second (a Path; None: nowhere), and the addresses and
    # networks from which metrics may be read without a token.
    "METRICS_DIRECTORY": None,
    "METRICS_ADDRESSES": (),
    # Where spans are sent, the address of a collector for OTLP over HTTP (None: there are none), and in how
    # many of the traces that begin here: one in two is 0.5. Of those that come with a request, it says so.
    "TRACES_ENDPOINT": None,
    "TRACES_RATIO": 1.0,
    # Days that a token lives when nobody says otherwise.
    "TOKEN_DAYS": 365,
    # Seconds for which a session may make tokens after its login; then it has to log in again. 0: for ever.
    "FRESH_LOGIN_SECONDS": 3600,
    # Days for which `carillon prune` keeps what has ended; 0 or None: for ever. Jobs with their events, since
    # they finished; API tokens, since they expired; results of tasks, since they ended; dead letters, since
    # they died; the audit log.
    "KEEP_JOBS_DAYS": 180,
    "KEEP_TOKENS_DAYS": 90,
    "KEEP_TASKS_DAYS": 7,
    "KEEP_DEAD_LETTERS_DAYS": 30,
    "KEEP_AUDIT_DAYS": 365,
    # A module with `websocket_urlpatterns`: a project's own consumers, as Channels' URLRouter takes them; and
    # with `http_urlpatterns`, where it has HTTP consumers. None: there are none.
    "WEBSOCKET_URLCONF": None,
    # The Content-Security-Policy of pages: {"default-src": "'self'", …}. None: the one that nginx has.
    "CONTENT_SECURITY_POLICY": None,
    # Below these paths a GET is answered with X-Carillon-Position; ("/",): everywhere, a query each.
    "POSITION_PREFIXES": ("/api/v2/",),
    # Threads of a process for synchronous code of these consumers (handlers, queries): none of Carillon's own
    # runs there. A connection keeps to one.
    "CONSUMER_THREADS": 4,
    # Requests of Django's at a time in each daphne process, below the project's `http_prefixes`: each has a
    # thread. Beyond it: 503.
    "HTTP_REQUESTS": 64,
    # Django's debug page for what fails, at a loopback address of this machine: development alone has it on.
    "DEBUG_PAGE": False,
}
# Where None is a value, beside those whose default it is.
_OPTIONAL = frozenset(("STREAM", *(name for name in DEFAULTS if name.startswith("KEEP_"))))
_KINDS: dict[type, tuple[tuple[type, ...], str]] = {
    bool: ((bool,), "True or False"),
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    str: ((str,), "a text"),
    tuple: ((list, tuple, set, frozenset), "a list"),
    dict: ((Mapping,), "a dictionary"),
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
    """Raises ImproperlyConfigured for a name that is none, which would be ignored without a word, and for a
    value of another kind than the default's.
    """
    said = getattr(settings, "CARILLON", {})
    if unknown := sorted(set(said) - DEFAULTS.keys()):
        raise ImproperlyConfigured(
            f"CARILLON has no setting {', '.join(unknown)}: there are {', '.join(sorted(DEFAULTS))}"
        )
    for name, value in said.items():
        default = DEFAULTS[name]
        if default is None or (value is None and name in _OPTIONAL):
            continue
        types, words = _KINDS[type(default)]
        if not isinstance(value, types) or (isinstance(value, bool) and type(default) is not bool):
            raise ImproperlyConfigured(
                f"CARILLON: {name} must be {words}, as {default!r} is, and not {value!r}: correct it in "
                "settings.py"
            )
