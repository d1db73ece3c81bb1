"""What is promised of rights and resumes, measured on a running stack.

    CARILLON_STACK_ENV=.dev/env CARILLON_STACK_PROJECT=carillon python benchmarks/stack_promises.py

- Rights: thousands of sockets, each another user's, hear the events of one job; 20 changes of it in one
  transaction hold them all. From the commit until the last of them has heard the event behind the changes.
- A resume of 40 MB by a client that reads: its megabytes in a second, and the delays of others meanwhile
  beside those of a calm time.
- Six clients that ask for 40 MB and read nothing: by how much daphne grows, at most.

daphne and nginx run beside the stack, as in stack_sockets.py. Appends to .dev-bench/stack_promises.jsonl,
each row with the machine's load.
"""

import argparse
import base64
import json
import os
import socket
import struct
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import observed  # noqa: E402
from benchmarks.inside import Inside  # noqa: E402
from benchmarks.stack_sockets import EMITTER, PEOPLE, Stack, notebook  # noqa: E402

CHANGES, ROUNDS = 20, 5
EVENTS, BYTES = 400, 100_000
IDLE_READERS = 6
OTHERS, PER_SECOND = 300, 20

# Run in a Django process beside uwsgi's. Each line: so many changes of the job and an event in one
# transaction; answers when it was committed.
CHANGER = f"""
import sys, time
from django.db import transaction
from carillon.events import Notification, emit_in_transaction
from tower.models import Job
job = Job.objects.get(pk=int(sys.argv[1]))
users = list(job.team.members.all()[:2])
print("ready", flush=True)
for number, line in enumerate(sys.stdin):
    with transaction.atomic():
        for change in range({CHANGES}):
            job.owner = users[change % 2]
            job.save()
        emit_in_transaction([Notification(f"job_events-{{job.pk}}", {{"n": str(number)}})])
    print(time.monotonic(), flush=True)
"""
# A job of its own with so many events of so many bytes; its number.
MEGABYTES = """
import sys, uuid
from carillon.events import Notification, emit_many
from tower.models import Job
job = Job.objects.get(pk=int(sys.argv[1]))
own = Job.objects.create(name=job.name, owner=job.owner, team=job.team)
print(own.pk, flush=True)
sys.stdin.readline()
for number in range(int(sys.argv[2])):
    emit_many([Notification(f"job_events-{own.pk}", {"n": number, "pad": "x" * int(sys.argv[3])})])
print("done", flush=True)
"""


class Reader:
    """A client of version 2 on a plain socket, which reads only when it is told to."""

    def __init__(self, port, token, message):
        self.raw = socket.create_connection(("127.0.0.2", port), timeout=60)
        key = base64.b64encode(os.urandom(16)).decode()
        self.raw.sendall(
            f"GET /websocket/?token={token} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Protocol: carillon.v2\r\n\r\n".encode()
        )
        text = b""
        while b'"position": "' not in text:
            text += self.raw.recv(4096)
        self.position = text.partition(b'"position": "')[2].partition(b'"')[0].decode()
        data = json.dumps(message | {"pad": "x" * 130}).encode()
        self.raw.sendall(struct.pack("!BBHI", 0x81, 0xFE, len(data), 0) + data)  # masked with zeroes

    def read(self, size):
        """So many bytes of what is sent."""
        buffer = memoryview(bytearray(2**20))
        while size > 0:
            got = self.raw.recv_into(buffer)
            if not got:
                raise SystemExit("the server has closed a reader")
            size -= got

    def close(self):
        self.raw.close()


def rights(stack, sockets, people):
    """From the commit of the changes until everybody has heard what came behind them."""
    crowd = stack.crowd(sockets, 64, people)
    changer = Inside(stack.project, CHANGER, people.said[1])
    took, spent = [], []
    try:
        for _ in range(ROUNDS):
            crowd.idle(2)
            crowd.begin("count", sockets, 20)
            before = observed.cpu(stack.daphne.process.pid)
            (committed,) = changer.ask("")
            seen = crowd.end()
            spent.append(observed.cpu(stack.daphne.process.pid) - before)
            if seen["events"] < sockets or seen["closed"]:
                raise SystemExit(f"not everybody heard it: {seen}")
            took.append(seen["last"] - float(committed))
    finally:
        changer.close()
        crowd.close()
    return {"what": "rights", "sockets": sockets, "changes": CHANGES, "seconds": sorted(took),
            "daphne": sorted(spent)}  # fmt: skip


def delays(stack, crowd, people, seconds):
    """p50 and p99 of events to the crowd over so many seconds, in milliseconds."""
    events = int(PER_SECOND * seconds)
    emitter = Inside(stack.project, EMITTER, f"job_events-{people.said[1]}", events, 1 / PER_SECOND)
    try:
        crowd.begin("count", events * crowd.sockets, 20)
        emitter.go_on()
        seen = crowd.end()
    finally:
        emitter.close()
    if seen["events"] < events * crowd.sockets:
        raise SystemExit(f"events are missing: {seen}")
    return {"p50": seen["p50"], "p99": seen["p99"]}


def resumes(stack, people, seconds):
    """Rows of a client that reads what it missed, and of some that do not."""
    token, job = f"{people.said[0]}-0", None
    writer = Inside(stack.project, MEGABYTES, people.said[1], EVENTS, BYTES)
    (job,) = writer.said
    wanted = {"groups": {"job_events": [int(job)]}}
    first = Reader(stack.front.port, token, wanted)
    time.sleep(1)
    writer.go_on()
    first.read(EVENTS * BYTES)
    since = {**wanted, "since": first.position}

    crowd = stack.crowd(OTHERS, 64, people)
    stop, rates = threading.Event(), []

    def keep_resuming():
        while not stop.is_set():
            begun = time.monotonic()
            reader = Reader(stack.front.port, token, since)
            reader.read(EVENTS * BYTES)
            rates.append(EVENTS * BYTES / (time.monotonic() - begun) / 1e6)
            reader.close()

    calm = delays(stack, crowd, people, seconds)
    thread = threading.Thread(target=keep_resuming)
    thread.start()
    try:
        meanwhile = delays(stack, crowd, people, seconds)
    finally:
        stop.set()
        thread.join()
    crowd.close()
    yield {"what": "resume", "megabytes a second": sorted(rates), "others": OTHERS, "calm": calm,
           "meanwhile": meanwhile}  # fmt: skip

    time.sleep(2)
    before = most = observed.memory(stack.daphne.process.pid)
    readers = [Reader(stack.front.port, token, since) for _ in range(IDLE_READERS)]
    end = time.monotonic() + 8
    while time.monotonic() < end:
        most = max(most, observed.memory(stack.daphne.process.pid))
        time.sleep(0.05)
    for reader in (first, *readers):
        reader.close()
    yield {"what": "unread resumes", "clients": IDLE_READERS, "grown": (most - before) / 2**20}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sockets", type=int, nargs="*", default=[300, 5000])
    parser.add_argument("--seconds", type=float, default=15, help="of events, calm and during the resumes")
    parser.add_argument("--out", type=Path, default=ROOT / ".dev-bench" / "stack_promises.jsonl")
    options = parser.parse_args()
    note = notebook(options.out)
    with ExitStack() as things:
        stack = Stack(things)
        people = Inside(stack.project, PEOPLE, max(*options.sockets, OTHERS))
        things.callback(people.end)
        things.callback(people.go_on)
        for sockets in options.sockets:
            note(rights(stack, sockets, people))
            time.sleep(5)
        for row in resumes(stack, people, options.seconds):
            note(row)


if __name__ == "__main__":
    main()
