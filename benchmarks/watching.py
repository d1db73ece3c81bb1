"""What it costs to be watched: the same events to the same sockets with neither metrics nor spans, with
metrics, and with both, in turns; medians.

    python benchmarks/watching.py [--rounds 5] [--without-spans]

As `make bench-sockets` does it, with 200 sockets, direct. Metrics: each process leaves its snapshot once a
second. Spans: each event has one for its emit, its relay and its fan-out, and they are sent to a collector
beside it that throws them away. Appends to .dev-bench/watching.jsonl, and needs what `make bench-sockets`
needs of it.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import observed, sockets  # noqa: E402
from benchmarks.crowd import program  # noqa: E402
from benchmarks.kinds import OURS  # noqa: E402
from tests.integration.asgi_amqp import broker as brokers  # noqa: E402

WAYS = ("neither", "metrics", "metrics and spans")
sockets.SECONDS = 15.0  # a processor's clock ticks a hundred times a second
SHOWN = {
    "rate": "frames a second",
    "p50": "p50, ms",
    "p99": "p99, ms",
    # Of these a machine that does much else says the truth, too.
    "server": "daphne's CPU, µs an event",
    "relay": "runworker's CPU, µs an event",
}


class Drop(BaseHTTPRequestHandler):
    def do_POST(self):
        self.server.taken += len(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *about):
        pass


@contextmanager
def collector():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Drop)
    server.taken = 0
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def measure(way, url, folder, server):
    os.environ.pop("BENCH_METRICS", None)
    os.environ.pop("BENCH_TRACES", None)
    if way != WAYS[0]:
        os.environ["BENCH_METRICS"] = folder
    if way == WAYS[2]:
        os.environ["BENCH_TRACES"] = f"http://127.0.0.1:{server.server_port}/v1/traces"
    before = server.taken
    row = {}
    with sockets.Serving(OURS, "direct", url) as serving:
        row |= sockets.rate(serving, *sockets.RATES["200x1"])
        row |= {name: row["cpu"][name] * sockets.RATES["200x1"][0] for name in ("server", "relay")}
        steady = sockets.steady(serving)
        row |= {name: steady[name] for name in ("p50", "p99")} | {"late": steady["lost"]}
    if (server.taken > before) is not (way == WAYS[2]):
        raise SystemExit(f"{way}: the collector was sent {server.taken - before} bytes")
    return row


def table(rows, ways):
    """Medians, and by how much each way is apart from the first."""
    found = {
        way: {name: statistics.median(row[name] for row in rows if row["way"] == way) for name in SHOWN}
        for way in ways
    }
    yield f"| | {' | '.join(SHOWN.values())} |"
    yield "|---" * (len(SHOWN) + 1) + "|"
    for way, medians in found.items():
        cells = []
        for name, value in medians.items():
            apart = (value / found[WAYS[0]][name] - 1) * 100
            shown = f"{value:.2f}" if name.startswith("p") else f"{value:,.0f}"
            cells.append(shown if way == WAYS[0] else f"{shown} ({apart:+.1f} %)")
        yield f"| {way} | {' | '.join(cells)} |"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--without-spans", action="store_true")
    options = parser.parse_args()
    ways = WAYS[:2] if options.without_spans else WAYS
    program()
    out = ROOT / ".dev-bench" / "watching.jsonl"
    out.parent.mkdir(exist_ok=True)
    rows, loads = [], []
    os.environ["NO_PROXY"] = "127.0.0.1"
    brokers.NAME = "carillon-bench-watching-"  # not for the tests to clear away
    with ExitStack() as stack:
        rabbit = stack.enter_context(brokers.Broker())
        url = rabbit.url.replace(f"127.0.0.1:{rabbit.port}", f"{observed.address(rabbit.name)}:5672")
        folder = stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm"))
        server = stack.enter_context(collector())
        for turn in range(options.rounds):
            # Each begins a round in its turn: what warms up, or wears out, is nobody's.
            first = turn % len(ways)
            for way in (*ways[first:], *ways[:first]):
                loads.append(os.getloadavg()[0])
                row = {"way": way, "round": turn, "load": loads[-1], **measure(way, url, folder, server)}
                rows.append(row)
                shown = " ".join(f"{name} {row[name]:,.2f}" for name in SHOWN)
                print(f"{way:<18} {shown} lost {row['lost'] + row['late']} load {loads[-1]:.1f}", flush=True)
                with out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    print(f"\n{options.rounds} rounds, load before each {min(loads):.1f} to {max(loads):.1f}\n")
    print("\n".join(table(rows, ways)))


if __name__ == "__main__":
    main()
