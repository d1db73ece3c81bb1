"""From emit to frame through every hop of a running stack, one event at a time: percentiles in milliseconds.

    CARILLON_STACK_ENV=.dev/env CARILLON_STACK_PROJECT=carillon python benchmarks/latency.py [events]

`emit` is `emit_channel_notification` in a Django process beside uwsgi's: to its return (the queue's confirm),
and to the client's frame. `view` is a POST to /api/v2/notifications/ with everything around it, `job` a PATCH
of a job's status, database and all, `ping` a request that does nothing. Idle: the next event goes out when
the last has arrived. Times are CLOCK_MONOTONIC, which every process of the machine reads alike. Appends to
.dev-bench/latency.jsonl.
"""

from __future__ import annotations

import http.client
import json
import os
import queue
import shlex
import ssl
import statistics
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.inside import Inside  # noqa: E402

WARM_UP = 20  # the first events open connections

EMITTER = """
import json, sys, time
from carillon.events import emit_channel_notification
print("ready", flush=True)
for line in sys.stdin:
    group, number = line.split()
    began = time.perf_counter()
    emit_channel_notification(group, {"n": int(number), "stdout": "x" * 400})
    print(began, time.perf_counter(), flush=True)
"""


class Api:
    """One connection that stays open, as a page's does: no TLS handshake is measured."""

    def __init__(self, stack: dict[str, str], context: ssl.SSLContext) -> None:
        url = urlsplit(stack["CARILLON_URL"])
        self._connection = http.client.HTTPSConnection(url.hostname or "", url.port, context=context)
        self._headers = {
            "Authorization": f"Bearer {stack['CARILLON_TOKEN']}",
            "Content-Type": "application/json",
        }

    def ask(self, method: str, path: str, body: object = None) -> dict:
        self._connection.request(
            method, f"/api/v2/{path}", None if body is None else json.dumps(body), self._headers
        )
        answer = self._connection.getresponse()
        text = answer.read()
        if answer.status >= 300:
            raise SystemExit(f"{method} {path}: {answer.status} {text[:200]!r}")
        return json.loads(text)


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    text = Path(os.environ.get("CARILLON_STACK_ENV", ".dev/env")).read_text()
    words = (word for line in text.splitlines() for word in shlex.split(line, comments=True))
    stack = dict(word.split("=", 1) for word in words if "=" in word)
    context = ssl.create_default_context(cafile=stack["CARILLON_CA_CERT"])
    api = Api(stack, context)
    job = api.ask("POST", "jobs/", {"name": "latency"})["id"]
    group = f"job_events-{job}"
    address = stack["CARILLON_URL"].replace("http", "ws", 1) + "/websocket/"
    bearer = {"Authorization": f"Bearer {stack['CARILLON_TOKEN']}"}
    with connect(address, ssl=context, additional_headers=bearer, proxy=None) as socket:
        socket.recv(20)
        socket.send(json.dumps({"groups": {"job_events": [job], "jobs": ["status_changed"]}}))
        socket.recv(20)
        # A thread of its own: a frame often comes before the answer to the request that caused it.
        arrivals: queue.Queue[tuple[float, dict]] = queue.Queue()
        threading.Thread(target=read, args=(socket, arrivals), daemon=True).start()

        emitter = Inside(os.environ.get("CARILLON_STACK_PROJECT", "carillon"), EMITTER)
        returns, frames = [], []
        for number in range(count + WARM_UP):
            began, ended = map(float, emitter.ask(f"{group} {number}"))
            returns.append(ended - began)
            frames.append(arrival(arrivals, "n", number) - began)
        emitter.close()
        show("emit to its return", returns[WARM_UP:])
        show("emit to frame", frames[WARM_UP:])

        answers = []
        for _ in range(count + WARM_UP):
            start = time.perf_counter()
            api.ask("GET", "ping/")
            answers.append(time.perf_counter() - start)
        show("ping: GET to its answer", answers[WARM_UP:])

        answers, frames = [], []
        for number in range(count + WARM_UP):
            body = {"group": group, "payload": {"n": number, "stdout": "x" * 400}}
            start = time.perf_counter()
            api.ask("POST", "notifications/", body)
            answers.append(time.perf_counter() - start)
            frames.append(arrival(arrivals, "n", number) - start)
        show("view: POST to its answer", answers[WARM_UP:])
        show("view: POST to frame", frames[WARM_UP:])

        frames = []
        for number in range(count):
            made = api.ask("POST", "jobs/", {"name": f"latency {number}"})["id"]
            arrival(arrivals, "unified_job_id", made)
            start = time.perf_counter()
            api.ask("PATCH", f"jobs/{made}/", {"status": "running"})
            frames.append(arrival(arrivals, "unified_job_id", made) - start)
        show("job: PATCH to frame", frames)


def read(socket: ClientConnection, arrivals: queue.Queue[tuple[float, dict]]) -> None:
    try:
        for text in socket:
            arrivals.put((time.perf_counter(), json.loads(text)))
    except ConnectionClosed:
        return


def arrival(arrivals: queue.Queue[tuple[float, dict]], key: str, value: int) -> float:
    """When the frame with this key and value came."""
    while True:
        at, frame = arrivals.get(timeout=20)
        if frame.get(key) == value:
            return at


def show(what: str, seconds: list[float]) -> None:
    cuts = [cut * 1000 for cut in statistics.quantiles(seconds, n=100)]
    row = {"what": what, "events": len(seconds), "p50": cuts[49], "p90": cuts[89], "p99": cuts[98]}
    row["load"] = os.getloadavg()[0]
    print(
        f"{what:26} n={len(seconds)}  p50 {cuts[49]:.2f} ms  p90 {cuts[89]:.2f} ms  p99 {cuts[98]:.2f} ms",
        flush=True,
    )
    out = ROOT / ".dev-bench" / "latency.jsonl"
    out.parent.mkdir(exist_ok=True)
    with out.open("a") as file:
        file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
