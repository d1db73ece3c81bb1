"""Whether events flow, in the words of the alerts: what a look at the numbers of one moment can tell.

An alert also waits for how long, and sees all hosts: Prometheus evaluates those (observability/alerts, and a
test holds these against them). Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from carillon.top import Row, Seen

LATE = 3.0
"""Seconds without a snapshot, of one a second, after which what a process says is old."""

LEAST = ("runworker", "daphne", "uwsgi")
"""Kinds of processes without which no event gets through."""


class Rule(NamedTuple):
    """An alert, true where its value is below (or above) the bound. `counter`: true where that has grown."""

    alert: str
    critical: bool
    below: bool
    bound: float
    summary: str
    action: str
    counter: str = ""


RULES = (
    Rule(
        "CarillonBrokerAway",
        True,
        True,
        1,
        "RabbitMQ at {who} does not answer.",
        "Read its log. Events of committed changes wait in the outbox, and go out when it is back.",
    ),
    Rule(
        "CarillonNoActiveRelay",
        True,
        True,
        1,
        "No runworker delivers: events are accepted, and wait on the queue.",
        "The log of runworker says what it waits for. What was accepted is on the queue, on disk: "
        "nothing is lost.",
    ),
    Rule(
        "CarillonProcessGone",
        True,
        True,
        1,
        "No {who} has written its metrics for ten seconds.",
        "On a host: carillon-ctl status; in containers: docker compose ps. Then read its log, which says "
        "why it ended.",
    ),
    Rule(
        "CarillonFanoutBehind",
        False,
        False,
        1000,
        "{who} is {value} events behind runworker.",
        "Its log says whether it is connected. If it is, look at its processor: add a daphne, or fewer "
        "groups for each client.",
    ),
    Rule(
        "CarillonOutboxWaits",
        False,
        False,
        30,
        "The oldest event in the outbox is {value} s old.",
        "Is the broker there, and does it block publishers (memory, disk)? runworker sends the outbox by "
        "itself when it is well.",
    ),
    Rule(
        "CarillonQueueGrows",
        False,
        False,
        1000,
        "{value} messages wait on the durable queue.",
        "Look at carillon_relay_append_seconds: a slow broker shows there. If it is low, look at runworker's "
        "processor.",
    ),
    Rule(
        "CarillonDeadLetters",
        False,
        False,
        0,
        "{value} events could not be delivered.",
        "Run carillon dead-letters list, which says why for each. Then replay or drop them.",
    ),
    Rule(
        "CarillonEventsLost",
        True,
        False,
        0,
        "{value} events of committed changes were lost.",
        "The log of uwsgi names their groups. Clients that look at the state see the change; those that only "
        "listen do not.",
        "carillon_events_lost_total",
    ),
    Rule(
        "CarillonEmitFails",
        False,
        False,
        0,
        "RabbitMQ does not confirm events in time.",
        "Look at the broker: its alarms, its disk. Events of committed changes wait in the outbox; "
        "publishers get 503.",
        "carillon_emit_failures_total",
    ),
    Rule(
        "CarillonFanoutGap",
        False,
        False,
        0,
        "A daphne cannot know what its clients missed, and has told them so.",
        "Was the broker's data lost or restored? If not, raise the setting STREAM.",
        "carillon_fanout_gaps_total",
    ),
)


class Holds(NamedTuple):
    """A condition that is true of `who`: a process, a kind of them, a broker, or "" for the whole."""

    alert: str
    who: str
    critical: bool
    summary: str
    action: str


class Facts(NamedTuple):
    """What was seen at one moment. `queue`, `dead`, `readers`: None where the broker did not answer, and
    `oldest`, of the outbox, where the database did not."""

    rows: Sequence[Row]
    heard: Mapping[str, float]
    broker: str
    queue: int | None
    dead: int | None
    readers: int | None
    oldest: float | None


def holding(facts: Facts) -> Iterator[Holds]:
    """What is true now."""
    values = _values(facts)
    for rule in RULES:
        for who, value in values.get(rule.alert, {}).items():
            if value is not None and (value < rule.bound if rule.below else value > rule.bound):
                said = rule.summary.format(who=who, value=f"{value:,.0f}")
                yield Holds(rule.alert, who, rule.critical, said, rule.action)


def _values(facts: Facts) -> dict[str, dict[str, float | None]]:
    up: dict[str, float | None] = dict.fromkeys(LEAST, 0)
    for row in facts.rows:
        kind = _kind(row.name)
        up[kind] = (up.get(kind) or 0) + row.up
    return {
        "CarillonBrokerAway": {facts.broker: facts.readers is not None},
        # Of all hosts: the queue is one, and gives to one of its readers.
        "CarillonNoActiveRelay": {"": facts.readers},
        "CarillonProcessGone": up,
        "CarillonFanoutBehind": {row.name: row.behind for row in facts.rows},
        "CarillonOutboxWaits": {"": facts.oldest},
        "CarillonQueueGrows": {"": facts.queue},
        "CarillonDeadLetters": {"": facts.dead},
    }


def counted(now: Seen) -> Iterator[dict[str, Any]]:
    """Counters that should not grow: who looks twice can tell. `{value}` in the words: by how much."""
    for rule in RULES:
        if rule.counter:
            total = now.get((rule.counter, ""), 0.0)
            yield {
                "total": total,
                **Holds(rule.alert, "", rule.critical, rule.summary, rule.action)._asdict(),
            }


def verdict(facts: Facts, holds: Sequence[Holds]) -> tuple[str, str]:
    """`flowing`, `doubtful` or `stopped`, and why."""
    for one in holds:
        # A runworker that is gone here stops nothing while the queue has another reader.
        elsewhere = facts.readers and (one.alert, one.who) == ("CarillonProcessGone", "runworker")
        if one.critical and not elsewhere:
            return "stopped", one.summary
    for kind in LEAST:
        heard = min((facts.heard[row.name] for row in facts.rows if _kind(row.name) == kind), default=0.0)
        if heard > LATE:
            return "doubtful", f"Nothing was heard of {kind} for {heard:.0f} s."
    if holds:
        return "flowing", "Events flow, and something needs a look."
    return "flowing", "Events flow."


def _kind(name: str) -> str:
    return name.rpartition(" ")[0]
