"""Rows of the measurements as lines, tables and plots: docs/reference/sockets_benchmark.*"""

import json
import os
import statistics
import textwrap
from collections import Counter
from math import log10
from pathlib import Path

from benchmarks.kinds import KINDS, OURS, PUBSUB, SOCKETIO

COLOURS = dict(zip(KINDS, ("#0b6e4f", "#c44536", "#e09f3e", "#5e6472", "#3d5a80"), strict=True))
RATES = {
    "200x1": "200 sockets, one group",
    "2000x1": "2 000 sockets, one group",
    "2000x2000": "2 000 sockets, each in a group of its own",
    "200x1 single": "200 sockets, one group, one send at a time",
}
WAYS = {"direct": "direct", "tls": "nginx with TLS"}
# What to reach: name, way, workloads, beside whom, how many times as many.
RATIOS = [
    ("through nginx with TLS, beside channels_redis pubsub", "tls", PUBSUB, 10),
    ("direct, beside Socket.IO", "direct", SOCKETIO, 1.5),
]
TOWARD = {"200x1": 400_000, "2000x1": 200_000}
STACK = {  # key, unit, most that was asked for
    "handshakes": ("handshakes with authentication and subscription /s", None),
    "memory": ("memory of daphne per socket, KiB", 30),
    "nginx memory": ("memory of nginx per socket, KiB", None),
    "broker frames": ("AMQP frames to the broker per socket that came", None),
}


def _short(value):
    if isinstance(value, dict):
        return {key: _short(each) for key, each in value.items()}
    return round(value, 3) if isinstance(value, float) else value


def line(row):
    """One row for the terminal."""
    head = f"{row['workload']:13} {row['way']:6} {row['kind']:18}"
    return f"{head} {_short({key: row[key] for key in row if key not in ('workload', 'way', 'kind')})}"


def read(source):
    return [json.loads(text) for text in source.read_text().splitlines()] if source.exists() else []


def median(rows, key, inner=None):
    values = [row[key] for row in rows if row.get(key) is not None]
    if inner is not None:
        values = [value[inner] for value in values if inner in value]
    return statistics.median(values) if values else None


def number(value):
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


class Page:
    """The text, from rows of `sockets.py` (`rows`), `stack_sockets.py` (`stack`), `latency.py` and
    `emits.py`."""

    def __init__(self, rows, stack, hops, emits):
        self.rows, self.stack, self.hops, self.emits = rows, stack, hops, emits
        self.kinds = [kind for kind in KINDS if any(row["kind"] == kind for row in rows)]
        self.lines = []

    def of(self, workload, way, kind):
        return [
            row for row in self.rows if (row["workload"], row["way"], row["kind"]) == (workload, way, kind)
        ]

    def rate(self, workload, way, kind):
        return median(self.of(workload, way, kind), "rate")

    def about(self, title, text):
        self.lines += ["", f"## {title}", "", text]

    def head(self, first, columns):
        self.lines += ["", f"| {first} | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]

    def row(self, title, cells):
        if any(cells):
            self.lines.append(f"| {title} | {' | '.join(cells)} |")

    def text(self):
        loads = [row["load"] for row in self.rows] or [0]
        times = Counter((row["workload"], row["way"], row["kind"]) for row in self.rows)
        fewest, most = min(times.values(), default=1), max(times.values(), default=1)
        rounds = f"{fewest} to {most}" if fewest < most else most
        basis = "One round of each" if most == 1 else f"Rounds in turns, medians of {rounds}"
        self.lines = [
            "# Measured: events to sockets",
            "",
            f"Written by `benchmarks/sockets.py --report`. {basis}. "
            f"{os.cpu_count()} cores for everything: publisher, broker, server, nginx and clients; one "
            "serving process each; events of 480 bytes of JSON; 100 sends in flight, or one where said. "
            "Clients: one process in C (`benchmarks/crowd.c`), which reads frames and checks each socket's "
            f"sequence. Load when a measurement began: {min(loads):.1f} to {max(loads):.1f} (the measurement "
            "before it is in that). Compare the columns: absolute figures are those of this machine.",
        ]
        for way, said in WAYS.items():
            self._rates(way, said)
        self._ratios()
        self._steady()
        self._idle()
        self._stack()
        self._hops()
        self._emits()
        return "\n".join(line if line[:1] == "|" else textwrap.fill(line, 100) for line in self.lines) + "\n"

    def _rates(self, way, said):
        if not any(row["way"] == way and "rate" in row for row in self.rows):
            return
        self.lines += ["", f"## Deliveries a second, {said}", "", f"![]({picture(way)})"]
        self.head("deliveries/s", self.kinds)
        for name, title in RATES.items():
            cells = []
            for kind in self.kinds:
                rows = self.of(name, way, kind)
                lost = median(rows, "lost") if rows else 0
                gone = median(rows, "closed") if rows else 0
                note = f" ({gone:.0f} sockets given up)" if gone else f" ({lost:,.0f} lost)" if lost else ""
                cells.append(number(median(rows, "rate")) + note)
            self.row(title, cells)
        self.head("processor time of the server per delivery, microseconds", self.kinds)
        for name, title in RATES.items():
            rows = [self.of(name, way, kind) for kind in self.kinds]
            self.row(title, [number(median(each, "cpu", "server")) for each in rows])
        self.head("our processes: busy, of one core", ["server", "relay", "nginx"])
        for name, title in RATES.items():
            rows = self.of(name, way, OURS)
            self.row(title, [number(median(rows, "busy", each)) for each in ("server", "relay", "nginx")])

    def _ratios(self):
        self.lines += ["", "## What was to be reached"]
        self.head("what", ["reached", "to reach", ""])

        def judge(title, value, target):
            if value is not None:
                word = "reached" if value >= target else "**not reached**"
                self.lines.append(f"| {title} | {number(value)} | {number(target)} | {word} |")

        for said, way, peer, target in RATIOS:
            for name, title in RATES.items():
                ours, theirs = self.rate(name, way, OURS), self.rate(name, way, peer)
                if ours and theirs:
                    judge(f"{title}, {said}, times", ours / theirs, target)
        for name, target in TOWARD.items():
            judge(f"{RATES[name]}, direct, deliveries/s", self.rate(name, "direct", OURS), target)

    def _steady(self):
        if not any(row["workload"] == "steady" for row in self.rows):
            return
        self.about(
            "Latency at a steady rate", "Publish to frame, 10 events/s to 200 sockets, over all sockets: ms."
        )
        self.head("", self.kinds)
        for way, said in WAYS.items():
            for key, title in {"p50": "p50", "p99": "p99", "p100": "worst"}.items():
                cells = [number(median(self.of("steady", way, kind), key)) for kind in self.kinds]
                self.row(f"{said}, {title}", cells)

    def _idle(self):
        rows = [row for row in self.rows if row["workload"] == "idle"]
        if not rows:
            return
        sockets = max(row["sockets"] for row in rows)
        self.about(
            f"{sockets:,} idle sockets",
            "One subscription each, no login. Operations: AMQP frames or Redis commands.",
        )
        self.head("", self.kinds)
        for way, said in WAYS.items():
            for title, key, inner in (
                ("memory of the server per socket, KiB", "memory", None),
                ("memory of nginx per socket, KiB", "nginx memory", None),
                ("processor time of the server per socket, microseconds/s", "cpu", "server"),
                ("handshakes and subscriptions/s", "handshakes", None),
                ("broker operations per socket that came", "broker operations", None),
                ("broker processor time per socket that came, microseconds", "broker cpu", None),
            ):
                cells = [number(median(self.of("idle", way, kind), key, inner)) for kind in self.kinds]
                self.row(f"{said}: {title}", cells)

    def _stack(self):
        costs = [row for row in self.stack if row["what"] == "cost"]
        if costs:
            self.about(
                "Clients with a login, on a running stack",
                "Through nginx with TLS, version 2, each a user of its own, with a token and two groups.",
            )
            sizes = sorted({row["sockets"] for row in costs})
            self.head("", [f"{size:,} sockets" for size in sizes])
            of = {size: [row for row in costs if row["sockets"] == size] for size in sizes}
            for key, (title, most) in STACK.items():
                note = f" (at most {most})" if most else ""
                self.row(title + note, [number(median(of[size], key)) for size in sizes])
            for process in ("daphne", "nginx", "rabbitmq", "runworker"):
                self.row(
                    f"{process}: processor time per handshake, microseconds",
                    [number(median(of[size], "cpu per handshake", process)) for size in sizes],
                )
            for process in ("daphne", "nginx", "rabbitmq"):
                self.row(
                    f"{process}: processor time per idle socket, microseconds/s",
                    [number(median(of[size], "idle cpu", process)) for size in sizes],
                )
            idle = [number(median(of[size], "broker idle")) for size in sizes]
            self.row("RabbitMQ meanwhile, of one core", idle)
        restarts = [row for row in self.stack if row["what"].startswith("restart")]
        if restarts:
            self.about(
                "daphne restarted under events",
                "Three events a second to everybody meanwhile; every client comes back from its position: "
                "seconds until the last of them has what it missed.",
            )
            names = sorted({(row["what"], row["sockets"]) for row in restarts})
            self.head("", [f"{what}, {sockets:,} clients" for what, sockets in names])
            for key, title in {
                "back after signal": "all back after the signal, s",
                "back after its end": "all back after the old process had ended, s",
                "missed": "events missed", "behind": "doubled or out of order", "skipped": "gaps",
                "unrecovered": "told to look anew",
            }.items():  # fmt: skip
                cells = []
                for what, sockets in names:
                    rows = [row for row in restarts if (row["what"], row["sockets"]) == (what, sockets)]
                    cells.append(number(median(rows, key)))
                self.row(title, cells)

    def _hops(self):
        if not self.hops:
            return
        self.about(
            "One event at a time, through every hop of an idle stack",
            "Milliseconds, as `benchmarks/latency.py` measures them.",
        )
        self.head("", ["p50", "p90", "p99"])
        for title in dict.fromkeys(row["what"] for row in self.hops):
            rows = [row for row in self.hops if row["what"] == title]
            self.row(title, [number(median(rows, key)) for key in ("p50", "p90", "p99")])

    def _emits(self):
        if not self.emits:
            return
        self.about(
            "Events a second from one process, and through every hop",
            "As `benchmarks/emits.py` measures them: until the last emit had its confirm, and until the one "
            "client had the last frame. One runworker.",
        )
        self.head("emits, each waiting for its confirm", ["emitted/s", "arrived/s", "lost"])
        for title in dict.fromkeys(row["what"] for row in self.emits):
            rows = [row for row in self.emits if row["what"] == title]
            self.row(title, [number(median(rows, key)) for key in ("emitted", "arrived", "lost")])

    def plot(self, way):
        """A bar chart, logarithmic, as SVG text."""
        names = [name for name in RATES if any(self.rate(name, way, kind) for kind in self.kinds)]
        top = max(self.rate(name, way, kind) or 0 for name in names for kind in self.kinds)
        width, height, left = 890, 22, 350
        parts, y = [], 40
        for place, kind in enumerate(self.kinds):
            x = 8 + place * 160
            parts.append(
                f'<rect x="{x}" y="12" width="12" height="12" fill="{COLOURS[kind]}"/>'
                f'<text x="{x + 18}" y="23">{kind}</text>'
            )
        for name in names:
            parts.append(f'<text x="8" y="{y + 14}" font-weight="bold">{RATES[name]}</text>')
            for kind in self.kinds:
                value = self.rate(name, way, kind)
                if value:
                    size = max(2, (width - left - 90) * (log10(value) - 2) / (log10(top) - 2))
                    parts.append(
                        f'<rect x="{left}" y="{y}" width="{size:.0f}" height="{height - 6}" '
                        f'fill="{COLOURS[kind]}"/>'
                        f'<text x="{left + size + 6:.0f}" y="{y + 13}">{value:,.0f}</text>'
                    )
                    y += height
            y += 12
        title = f"Deliveries a second, {WAYS[way]}, logarithmic"
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y}" font-family="sans-serif" '
            f'font-size="13"><title>{title}</title><rect width="{width}" height="{y}" fill="white"/>'
            f"{''.join(parts)}</svg>\n"
        )


def picture(way):
    return f"sockets_benchmark_{way}.svg"


def write(folder: Path, docs: Path):
    """The page and its pictures into `docs`, of the rows in `folder`; the page's text."""
    sources = ("sockets", "stack_sockets", "latency", "emits")
    page = Page(*(read(folder / f"{name}.jsonl") for name in sources))
    text = page.text()
    (docs / "sockets_benchmark.md").write_text(text)
    for way in WAYS:
        if any(row["way"] == way and "rate" in row for row in page.rows):
            (docs / picture(way)).write_text(page.plot(way))
    return text
