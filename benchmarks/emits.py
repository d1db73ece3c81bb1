"""How many events a second one process emits, and how many the whole way carries: queue, runworker, stream,
daphne, socket.

    CARILLON_STACK_ENV=.dev/env CARILLON_STACK_PROJECT=carillon python benchmarks/emits.py

The process is a Django process beside uwsgi's, in its container; an emit returns when the quorum queue has
confirmed. `emitted`: until the last returned. `arrived`: until the one client of version 2 behind nginx had
the last frame. Appends to .dev-bench/emits.jsonl.
"""

import json
import os
import shlex
import sys
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.crowd import Crowd  # noqa: E402
from benchmarks.inside import Inside  # noqa: E402

# name: threads, events in one emit_many, events
RUNS = {
    "one thread, one at a time": (1, 1, 3_000),
    "four threads (a worker of uwsgi), one at a time each": (4, 1, 8_000),
    "one thread, 100 together": (1, 100, 100_000),
    "one thread, 1 000 together": (1, 1000, 300_000),
}
PATIENCE = 20  # seconds of silence that end a run: what has not come is lost

EMITTER = """
import itertools, sys, threading, time
from carillon.events.emit import Notification, emit_many
print("ready", flush=True)
for line in sys.stdin:
    group, threads, together, events = line.split()
    threads, together, events = int(threads), int(together), int(events)
    numbers, lock = itertools.count(), threading.Lock()
    def work():
        while True:
            with lock:
                mine = list(itertools.islice(numbers, together))
            if mine[0] >= events:
                return
            emit_many(Notification(group, {"n": f"{n:09d}", "stdout": "x" * 420}) for n in mine)
    crew = [threading.Thread(target=work) for _ in range(threads)]
    began = time.monotonic()
    for each in crew:
        each.start()
    for each in crew:
        each.join()
    print(began, time.monotonic(), flush=True)
"""


def main():
    text = Path(os.environ.get("CARILLON_STACK_ENV", ".dev/env")).read_text()
    words = (word for line in text.splitlines() for word in shlex.split(line, comments=True))
    stack = dict(word.split("=", 1) for word in words if "=" in word)
    emitter = Inside(os.environ.get("CARILLON_STACK_PROJECT", "carillon"), EMITTER)
    out = ROOT / ".dev-bench" / "emits.jsonl"
    out.parent.mkdir(exist_ok=True)
    try:
        for name, (threads, together, events) in RUNS.items():
            client = Crowd(
                "127.0.0.1", urlsplit(stack["CARILLON_URL"]).port, tls=True, path="/websocket/",
                speak="carillon", sockets=1, headers=f"Authorization: Bearer {stack['CARILLON_TOKEN']}\r\n",
                subscribe='{"schedules": ["changed"]}',
            )  # fmt: skip
            client.begin("count", events, PATIENCE)
            began, ended = map(float, emitter.ask(f"schedules-changed {threads} {together} {events}"))
            seen = client.end()
            client.close()
            row = {
                "what": name, "events": events, "emitted": events / (ended - began),
                "arrived": seen["events"] / (seen["last"] - began), "lost": events - seen["events"],
                # With several threads the order is theirs.
                "behind": seen["behind"] if threads == 1 else 0, "closed": seen["closed"],
                "load": os.getloadavg()[0],
            }  # fmt: skip
            print(json.dumps(row), flush=True)
            with out.open("a") as file:
                file.write(json.dumps(row) + "\n")
    finally:
        emitter.close()


if __name__ == "__main__":
    main()
