"""From emit to frame through every hop of a running stack, one event at a time: p50 and p99 in milliseconds.

    CARILLON_STACK_ENV=.dev/env python benchmarks/latency.py [events]

Two ways of emitting: `view`, a POST to /api/v2/notifications/ (nginx, uwsgi, broker, runworker, daphne, nginx), with
the time of the POST itself beside it; `job`, a PATCH of a job's status, database and all. Idle: the next event goes
out when the last has arrived.
"""

from __future__ import annotations

import json
import os
import shlex
import ssl
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import requests
from websockets.sync.client import connect


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    path = os.environ.get("CARILLON_STACK_ENV", ".dev/env")
    words = (word for line in Path(path).read_text().splitlines() for word in shlex.split(line, comments=True))
    stack = dict(word.split("=", 1) for word in words if "=" in word)
    url, token = stack["CARILLON_URL"], stack["CARILLON_TOKEN"]

    http = requests.Session()
    http.verify = stack["CARILLON_CA_CERT"]
    http.headers["Authorization"] = f"Bearer {token}"
    # A page keeps its connection too: what is measured is not the TLS handshake.
    job = http.post(f"{url}/api/v2/jobs/", json={"name": "latency"}, timeout=20).json()["id"]
    context = ssl.create_default_context(cafile=stack["CARILLON_CA_CERT"])
    address = url.replace("http", "ws", 1) + "/websocket/"
    with connect(
        address, ssl=context, additional_headers={"Authorization": f"Bearer {token}"}, proxy=None
    ) as socket:
        socket.recv(20)
        socket.send(json.dumps({"groups": {"job_events": [job], "jobs": ["status_changed"]}}))
        socket.recv(20)

        def until(wanted: Callable[[dict], bool]) -> float:
            while not wanted(json.loads(socket.recv(20))):
                pass
            return time.perf_counter()

        posts, frames = [], []
        for number in range(count + 20):
            body = {"group": f"job_events-{job}", "payload": {"n": number, "stdout": "x" * 400}}
            start = time.perf_counter()
            http.post(f"{url}/api/v2/notifications/", json=body, timeout=20).raise_for_status()
            answered = time.perf_counter()
            arrived = until(lambda frame, number=number: frame.get("n") == number)
            if number >= 20:  # the first ones open connections
                posts.append(answered - start)
                # The frame may be there before the answer to the POST: `arrived` is then when it was looked at.
                frames.append(arrived - start)
        show("view: POST to its answer", posts)
        show("view: POST to frame", frames)

        frames = []
        for number in range(count):
            made = http.post(f"{url}/api/v2/jobs/", json={"name": f"latency {number}"}, timeout=20).json()["id"]
            until(lambda frame, made=made: frame.get("unified_job_id") == made)
            start = time.perf_counter()
            http.patch(f"{url}/api/v2/jobs/{made}/", json={"status": "running"}, timeout=20).raise_for_status()
            frames.append(until(lambda frame, made=made: frame.get("unified_job_id") == made) - start)
        show("job: PATCH to frame", frames)


def show(what: str, seconds: list[float]) -> None:
    """One line: percentiles in milliseconds."""
    cuts = statistics.quantiles(seconds, n=100)
    print(
        f"{what:28} n={len(seconds)}  p50 {cuts[49] * 1000:7.2f} ms  p90 {cuts[89] * 1000:7.2f} ms"
        f"  p99 {cuts[98] * 1000:7.2f} ms"
    )


if __name__ == "__main__":
    main()
