"""Every metric of Carillon's, by Prometheus' conventions: docs/reference/metrics.md is held against this.

Labels are bounded: never a user, a group or an id. What has a fixed set of labels is there from the start, at
0: the first of a kind is then an increase, too. `process` and `slot` are added where a snapshot is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, TypeVar

from prometheus_client import Counter, Gauge, Histogram

UWSGI, DAPHNE, RUNWORKER = "uwsgi", "daphne", "runworker"
EVERYWHERE = (UWSGI, DAPHNE, RUNWORKER)  # and in the processes that a project has declared

OWNERS: dict[str, tuple[str, ...]] = {}
"""Name of a family, as a registry has it, to the processes that show it. Of what is not here, all do."""

QUICK = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Bounds of the histograms, in seconds."""

Kind = TypeVar("Kind", Counter, Gauge, Histogram)
Labels = Mapping[str, Sequence[str] | None]
"""Names of labels, each with its values; None: those that turn up (the code that gives them bounds them)."""


def _made(
    kind: type[Kind], name: str, text: str, owners: tuple[str, ...], labels: Labels, **options: Any
) -> Kind:
    metric = kind(name, text, tuple(labels), **options)
    if labels and None not in labels.values():
        for values in product(*labels.values()):
            metric.labels(*values)
    OWNERS[name] = owners
    return metric


def _counter(name: str, text: str, owners: tuple[str, ...], **labels: Sequence[str] | None) -> Counter:
    return _made(Counter, name, text, owners, labels)


def _gauge(name: str, text: str, owners: tuple[str, ...], **labels: Sequence[str] | None) -> Gauge:
    return _made(Gauge, name, text, owners, labels)


def _seconds(name: str, text: str, owners: tuple[str, ...], **labels: Sequence[str] | None) -> Histogram:
    return _made(Histogram, name, text, owners, labels, buckets=QUICK)


# Emitting
EMITTED = _counter("carillon_events_emitted", "Events that the broker has confirmed on the queue", EVERYWHERE)
EMIT_FAILURES = _counter(
    "carillon_emit_failures", "Batches of events that the broker did not confirm in time", EVERYWHERE
)
EMIT_SECONDS = _seconds(
    "carillon_emit_seconds", "From handing a batch to the broker until it confirmed", EVERYWHERE
)
LOST = _counter(
    "carillon_events_lost", "Events of committed changes that neither broker nor database took", EVERYWHERE
)
KEPT = _counter(
    "carillon_events_kept",
    "Events that went by the outbox: the broker was away, or others waited",
    EVERYWHERE,
)
DROPPED = _counter("carillon_events_dropped", "Events that were no JSON, or too large", EVERYWHERE)

# The outbox
OUTBOX_EVENTS = _gauge("carillon_outbox_events", "Events that wait in the outbox", (RUNWORKER,))
OUTBOX_OLDEST = _gauge(
    "carillon_outbox_oldest_seconds", "Age of the oldest event in the outbox", (RUNWORKER,)
)

# Retention
OVERDUE = _gauge(
    "carillon_retention_overdue_seconds",
    "For how long `carillon prune` has been due for what is oldest",
    (RUNWORKER,),
    kind=None,
)

# The relay
RELAYED = _counter(
    "carillon_relay_events",
    "Events that came by the durable queue",
    (RUNWORKER,),
    outcome=("relayed", "double", "poison"),
)
DEAD_LETTERS = _gauge(
    "carillon_dead_letters", "Dead letters that wait: see `carillon dead-letters`", (RUNWORKER,)
)
QUEUE_MESSAGES = _gauge(
    "carillon_queue_messages", "Messages on the durable queue that no relay has in hand", (RUNWORKER,)
)
RELAY_ACTIVE = _gauge("carillon_relay_active", "1: this relay is the active one", (RUNWORKER,))
RELAY_POSITION = _gauge(
    "carillon_relay_position", "Number up to which the active relay's log is noted", (RUNWORKER,)
)
RELAY_TAKEOVERS = _counter(
    "carillon_relay_takeovers", "Times that a relay became the active one", (RUNWORKER,)
)
RELAY_LINKS_LOST = _counter(
    "carillon_relay_links_lost", "Links to the broker that the relay lost", (RUNWORKER,)
)
RELAY_SECONDS = _seconds(
    "carillon_relay_append_seconds", "From a stream message's append to its confirm", (RUNWORKER,)
)

# The fan-out
FANOUT_POSITION = _gauge(
    "carillon_fanout_position", "Number up to which this process has fanned out", (DAPHNE,)
)
FANOUT_LEVEL = _gauge("carillon_fanout_level", "1: this process has caught up with the log once", (DAPHNE,))
FANOUT_EVENTS = _counter("carillon_fanout_events", "Events read from the log", (DAPHNE,))
FANOUT_DOUBLES = _counter("carillon_fanout_doubles", "Events that the log had twice", (DAPHNE,))
DELIVERED = _counter("carillon_fanout_deliveries", "Events written, one for each listener", (DAPHNE,))
EVENT_AGE = _seconds(
    "carillon_event_age_seconds", "From emit to the fan-out, of the oldest event of each batch", (DAPHNE,)
)
GAPS = _counter(
    "carillon_fanout_gaps",
    "Times that this process cannot know what its listeners missed",
    (DAPHNE,),
    reason=("epoch", "retention"),
)
REPLAYS = _counter("carillon_replay_passes", "Passes over the log for those who resume", (DAPHNE,))
WINDOW_BYTES = _gauge("carillon_window_bytes", "Recent events in memory, for resumes", (DAPHNE,))

# Sockets
PROTOCOLS = ("v1", "v2", "sse", "consumer")
SOCKETS = _gauge(
    "carillon_sockets", "Sockets and event streams that are logged in", (DAPHNE,), protocol=PROTOCOLS
)
SOCKETS_BEHIND = _gauge("carillon_sockets_behind", "Of those, how many are behind the log", (DAPHNE,))
SOCKETS_HELD = _gauge(
    "carillon_sockets_held", "Of those, how many are held: their rights are asked for", (DAPHNE,)
)
SOCKETS_WAITING = _gauge(
    "carillon_sockets_waiting_bytes", "Bytes that wait in this process for readers that are behind", (DAPHNE,)
)
HANDSHAKES = _counter(
    "carillon_handshakes", "Sockets and event streams accepted", (DAPHNE,), protocol=PROTOCOLS
)
REFUSALS = ("nothing", "invalid", "origin", "quota", "unavailable")
REFUSED = _counter("carillon_logins_refused", "Sockets and event streams refused", (DAPHNE,), reason=REFUSALS)
CODES = ("1000", "1008", "1009", "1012", "1013", "4401", "4403", "4408", "dead", "client", "other")
CLOSED = _counter(
    "carillon_sockets_closed",
    "Websockets that ended, by our close code; dead: no sign of life; client: by the client or the network",
    (DAPHNE,),
    code=CODES,
)
RESUMES = _counter(
    "carillon_resumes",
    "Resumes that had all, or were told that they cannot",
    (DAPHNE,),
    result=("recovered", "epoch", "retention", "timeout", "ahead", "unavailable"),
)
RECHECKED = _counter("carillon_rechecks", "Sockets whose rights were asked for again", (DAPHNE,))
RECHECK_SECONDS = _seconds("carillon_recheck_seconds", "One question about the rights of many", (DAPHNE,))
PRESENCE_FAILURES = _counter(
    "carillon_presence_failures", "Times that the database did not take who is connected", (DAPHNE,)
)

# REST
HTTP_REQUESTS = _counter(
    "carillon_http_requests",
    "Requests answered, by the route's name",
    (UWSGI,),
    route=None,
    method=None,
    status=None,
)
HTTP_SECONDS = _seconds(
    "carillon_http_request_seconds", "Until the answer, by the route's name", (UWSGI,), route=None
)

# The process
BUILD = _gauge("carillon_build_info", "1; the release that runs", EVERYWHERE, version=None)
METRICS_FAILURES = _counter(
    "carillon_metrics_failures", "Times that this process could not write its metrics", EVERYWHERE
)
SPANS = _counter(
    "carillon_spans",
    "Spans of traces: sent, or dropped: too many waited (full), or the collector did not take them (failed)",
    EVERYWHERE,
    outcome=("sent", "full", "failed"),
)

UP = ("carillon_process_up", "1: the process has written its metrics within ten seconds")
"""Added where snapshots are read, for every slot that ever had a process."""


def closed(code: int | str | None) -> None:
    """A websocket has ended, by our close code or one of the words in CODES."""
    text = "1000" if code is None else str(code)
    CLOSED.labels(text if text in CODES else "other").inc()


# Budgets
BUDGETS = (
    "keys", "logins", "messages", "nonsense", "pages", "quota_events", "quota_jobs", "quota_notifications",
    "quota_sockets", "quota_tokens", "socket_bytes", "socket_frames", "socket_pings",
)  # fmt: skip
OVER_BUDGET = _counter(
    "carillon_over_budget", "What was refused because a budget was used up", (UWSGI, DAPHNE), budget=BUDGETS
)
PASSWORDS = _counter(
    "carillon_passwords_tried",
    "Attempts to log in by password",
    (UWSGI,),
    outcome=("let_in", "wrong", "refused"),
)
