"""From emit to frame through every hop of a running stack, one event at a time: percentiles in milliseconds.

    CARILLON_STACK_ENV=.dev/env python benchmarks/latency.py [events]

`view` is a POST to /api/v2/notifications/ (nginx, uwsgi, broker, runworker, daphne, nginx), with the time of
the POST itself beside it; `job` is a PATCH of a job's status, database and all. Idle: the next event goes out
when the last has arrived. Both times are taken by the client, so the request's way to the view is in them.
"""

from __future__ import annotations

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

import requests
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

WARM_UP = 20  # the first events open connections


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    text = Path(os.environ.get("CARILLON_STACK_ENV", ".dev/env")).read_text()
    words = (word for line in text.splitlines() for word in shlex.split(line, comments=True))
    stack = dict(word.split("=", 1) for word in words if "=" in word)
    api = stack["CARILLON_URL"] + "/api/v2"
    bearer = {"Authorization": f"Bearer {stack['CARILLON_TOKEN']}"}

    http = requests.Session()  # keeps its connection, as a page does: no TLS handshake is measured
    http.trust_env = False  # REQUESTS_CA_BUNDLE would go before the next line
    http.verify = stack["CARILLON_CA_CERT"]
    http.headers.update(bearer)
    job = http.post(f"{api}/jobs/", json={"name": "latency"}, timeout=20).json()["id"]
    context = ssl.create_default_context(cafile=stack["CARILLON_CA_CERT"])
    address = stack["CARILLON_URL"].replace("http", "ws", 1) + "/websocket/"
    with connect(address, ssl=context, additional_headers=bearer, proxy=None) as socket:
        socket.recv(20)
        socket.send(json.dumps({"groups": {"job_events": [job], "jobs": ["status_changed"]}}))
        socket.recv(20)
        # A thread of its own: a frame often comes before the answer to the request that caused it.
        arrivals: queue.Queue[tuple[float, dict]] = queue.Queue()
        threading.Thread(target=read, args=(socket, arrivals), daemon=True).start()

        answers, frames = [], []
        for number in range(count + WARM_UP):
            body = {"group": f"job_events-{job}", "payload": {"n": number, "stdout": "x" * 400}}
            start = time.perf_counter()
            http.post(f"{api}/notifications/", json=body, timeout=20).raise_for_status()
            answers.append(time.perf_counter() - start)
            frames.append(arrival(arrivals, "n", number) - start)
        show("view: POST to its answer", answers[WARM_UP:])
        show("view: POST to frame", frames[WARM_UP:])

        frames = []
        for number in range(count):
            made = http.post(f"{api}/jobs/", json={"name": f"latency {number}"}, timeout=20).json()["id"]
            arrival(arrivals, "unified_job_id", made)
            start = time.perf_counter()
            http.patch(f"{api}/jobs/{made}/", json={"status": "running"}, timeout=20).raise_for_status()
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
    print(f"{what:26} n={len(seconds)}  p50 {cuts[49]:.2f} ms  p90 {cuts[89]:.2f} ms  p99 {cuts[98]:.2f} ms")


if __name__ == "__main__":
    main()
