"""`carillon top`: what this host's processes count, as a table that is made anew every second."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from prometheus_client.core import Metric

from carillon.conf import conf
from carillon.metrics import shared
from carillon.process.launcher import EXIT_NOT_READY, say

Seen = Mapping[tuple[str, str], float]
"""Sums of samples: by name, and by process and slot together ("daphne 0") or "" for all."""

HOME = "\x1b[H\x1b[J"
"""Terminal: to the upper left, and clear what follows."""

RATES = (
    ("emitted", "carillon_events_emitted_total"),
    ("relayed", "carillon_relay_events_total"),
    ("delivered", "carillon_fanout_deliveries_total"),
    ("requests", "carillon_http_requests_total"),
)
WAITING = (
    ("on the queue", "carillon_queue_messages"),
    ("in the outbox", "carillon_outbox_events"),
    ("dead letters", "carillon_dead_letters"),
)
COLUMNS = ("process", "up", "position", "behind", "sockets", "slow", "held", "wait KiB", "MiB", "CPU %")


def add_up(families: Iterable[Metric]) -> dict[tuple[str, str], float]:
    """The samples by name, for each process and for all."""
    sums: dict[tuple[str, str], float] = {}
    for family in families:
        for sample in family.samples:
            labels = sample.labels
            for who in ("", f"{labels.get('process')} {labels.get('slot')}"):
                key = (sample.name, who)
                sums[key] = sums.get(key, 0.0) + sample.value
    return sums


class Row(NamedTuple):
    """A process and what it says; None: it does not say that, or not any more."""

    name: str
    up: bool
    position: float | None
    behind: float | None
    sockets: float | None
    slow: float | None
    held: float | None
    waiting_bytes: float | None
    memory_bytes: float | None


def rows(now: Seen) -> list[Row]:
    """All processes. Pure."""
    processes = sorted(who for name, who in now if name == "carillon_process_up" and who)
    # One that has stepped down shows where it was, perhaps in an epoch of before.
    active = [who for who in processes if now.get(("carillon_relay_active", who))]
    relay = max((now.get(("carillon_relay_position", who), 0) for who in active), default=0)
    found = []
    for who in processes:

        def value(name: str, who: str = who) -> float | None:
            return now.get((name, who))

        at = value("carillon_fanout_position")
        found.append(
            Row(
                who,
                bool(value("carillon_process_up")),
                value("carillon_relay_position") if at is None else at,
                None if at is None or not relay else max(0, relay - at),
                value("carillon_sockets"),
                value("carillon_sockets_behind"),
                value("carillon_sockets_held"),
                value("carillon_sockets_waiting_bytes"),
                value("process_resident_memory_bytes"),
            )
        )
    return found


def lines(now: Seen, before: Seen, seconds: float) -> Iterator[str]:
    """The table, from what was counted now and `seconds` before. Pure."""

    def rate(name: str, who: str = "") -> float:
        return max(0.0, now.get((name, who), 0.0) - before.get((name, who), 0.0)) / seconds

    yield "   ".join(f"{title} {rate(name):,.0f}/s" for title, name in RATES)
    yield "   ".join(f"{title} {_number(now.get((name, '')), 'not known')}" for title, name in WAITING)
    yield ""
    yield _row(COLUMNS)
    for row in rows(now):
        yield _row(
            (
                row.name,
                "yes" if row.up else "NO",
                _number(row.position),
                _number(row.behind),
                _number(row.sockets),
                _number(row.slow),
                _number(row.held),
                _number(None if row.waiting_bytes is None else row.waiting_bytes / 1024),
                _number(None if row.memory_bytes is None else row.memory_bytes / 2**20),
                _number(100 * rate("process_cpu_seconds_total", row.name)),
            )
        )


def _row(cells: Iterable[str]) -> str:
    first, *rest = cells
    return f"{first:<14}" + "".join(f" {cell:>11}" for cell in rest)


def _number(value: float | None, unknown: str = "") -> str:
    return unknown if value is None else f"{value:,.0f}"


def run(seconds: float, *, once: bool, directory: Path | None = None) -> int:
    """Show the table until interrupted."""
    directory = directory or conf.METRICS_DIRECTORY
    if directory is None:
        say("no metrics are kept: CARILLON_METRICS_DIRECTORY is none")
        return EXIT_NOT_READY
    before: dict[tuple[str, str], float] | None = None
    begun = time.monotonic()
    try:
        while True:
            try:
                now = add_up(shared.read(directory).collect())
            except OSError as error:
                say(f"{directory} cannot be read ({error.strerror}): is this where Carillon's processes run?")
                return EXIT_NOT_READY
            looked = time.monotonic()
            if before is not None:
                table = "\n".join(lines(now, before, max(looked - begun, 0.001)))
                print(table if once else f"{HOME}{table}", flush=True)
                if once:
                    return 0
            before, begun = now, looked
            time.sleep(max(0.1, seconds))
    except KeyboardInterrupt:
        print(file=sys.stdout)
        return 0
