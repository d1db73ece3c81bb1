"""Thousands of authenticated clients on a running stack: what they cost, and what a restart of daphne is to
them.

    CARILLON_STACK_ENV=.dev/env CARILLON_STACK_PROJECT=carillon python benchmarks/stack_sockets.py

The clients speak version 2 through nginx with TLS, each a user of its own with a token and a subscription.
Events come a few times a second, numbered, while daphne is restarted: TERM (it drains) and KILL. Every client
comes back by itself, from its position; what it misses or gets twice is counted. Appends to
.dev-bench/stack_sockets.jsonl.
"""

import argparse
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import observed  # noqa: E402
from benchmarks.crowd import Crowd  # noqa: E402

DAPHNE = "carillon.delivery.server"
IDLE = 20  # seconds
SERVICES = ("daphne", "nginx", "rabbitmq", "postgresql", "runworker")
PROCESSES = {
    "daphne": DAPHNE, "nginx": "worker process", "rabbitmq": "beam.smp", "postgresql": "postgres",
    "runworker": "runworker",
}  # fmt: skip

# Run in a Django process beside uwsgi's, in its container.
PEOPLE = """
import secrets, sys
from django.contrib.auth import get_user_model
from carillon.accounts import tokens
from carillon.accounts.models import ApiToken, Team
from carillon.jobs.models import Job
count, User, name = int(sys.argv[1]), get_user_model(), "benchmark-" + secrets.token_hex(16)
team = Team.objects.create(name=name)
users = User.objects.bulk_create(User(username=f"{name}-{number}") for number in range(count))
team.members.through.objects.bulk_create(team.members.through(team=team, user=user) for user in users)
ApiToken.objects.bulk_create(
    ApiToken(user=user, digest=tokens.digest(f"{name}-{number}")) for number, user in enumerate(users)
)
print(name, Job.objects.create(name=name, owner=users[0], team=team).pk, flush=True)
sys.stdin.readline()
Job.objects.filter(team=team).delete()
ApiToken.objects.filter(user__in=users).delete()
User.objects.filter(username__startswith=name).delete()
team.delete()
print("gone", flush=True)
"""
EMITTER = """
import sys, time
from carillon.notifications import emit_channel_notification
group, count, pause = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
due = time.monotonic()
for number in range(count):
    due += pause
    payload = {"n": f"{number:09d}", "at": f"{time.monotonic():015.6f}", "stdout": "x" * 400}
    emit_channel_notification(group, payload)
    time.sleep(max(0, due - time.monotonic()))
"""


class Inside:
    """A script in the container of uwsgi; `said` is its first line. It goes on when told."""

    def __init__(self, project, script, *arguments):
        self.process = subprocess.Popen(
            ["docker", "exec", "--interactive", "--env", "DJANGO_SETTINGS_MODULE=carillon.settings",
             f"{project}-uwsgi-1", "python", "-c", f"import django; django.setup()\n{script}",
             *map(str, arguments)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.said = self.process.stdout.readline().split()
        if not self.said:
            raise SystemExit("a script in uwsgi's container failed: its error is above")

    def go_on(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self):
        """Until it has finished by itself."""
        self.process.communicate()

    def close(self):
        self.process.kill()
        self.end()


class Stack:
    """The running stack, its processes and what they have used."""

    def __init__(self):
        project, file = os.environ.get("CARILLON_STACK_PROJECT"), os.environ.get("CARILLON_STACK_ENV")
        if not (project and file):
            raise SystemExit("CARILLON_STACK_ENV and CARILLON_STACK_PROJECT name the stack of `make dev`")
        words = (
            word for line in Path(file).read_text().splitlines() for word in shlex.split(line, comments=True)
        )
        self.values = dict(word.split("=", 1) for word in words if "=" in word)
        self.project = project

    def container(self, service):
        return f"{self.project}-{service}-1"

    def pids(self, service):
        return observed.inside(self.container(service), PROCESSES[service])

    def cpu(self):
        return {service: sum(map(observed.cpu, self.pids(service))) for service in SERVICES}

    def memory(self, service):
        return sum(map(observed.memory, self.pids(service)))

    def frames(self):
        """AMQP frames that have come to the broker."""
        shown = subprocess.run(
            ["docker", "exec", self.container("rabbitmq"), "rabbitmqctl", "--quiet", "list_connections",
             "recv_cnt"],
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        return sum(int(word) for word in shown.split() if word.isdigit())

    def signal(self, name):
        """Ends daphne as a stop or a crash would; the container comes back by its restart policy."""
        for pid in self.pids("daphne"):
            os.kill(pid, name)

    def listening(self, deadline):
        """When daphne takes connections (again)."""
        while time.monotonic() < deadline:
            try:
                address = observed.address(self.container("daphne"))
                socket.create_connection((address, 8051), 1).close()
                return time.monotonic()
            except (OSError, IndexError, subprocess.CalledProcessError):
                time.sleep(0.05)
        raise SystemExit("daphne does not come back")

    def crowd(self, sockets, at_once, people):
        """Each socket is another user's."""
        name, job = people.said
        return Crowd(
            observed.address(self.container("nginx")), 8043, tls=True, path="/websocket/", speak="carillon",
            sockets=sockets, at_once=at_once, headers=f"Authorization: Bearer {name}-%d\r\n",
            subscribe=json.dumps({"jobs": ["status_changed"], "job_events": [int(job)]}),
        )  # fmt: skip


def cost(stack, sockets, at_once, people):
    """A row of what so many sockets cost, and the crowd itself."""
    stack.crowd(1, 1, people).close()
    before, front, frames, spent = (
        stack.memory("daphne"), stack.memory("nginx"), stack.frames(), stack.cpu(),
    )  # fmt: skip
    crowd = stack.crowd(sockets, at_once, people)
    time.sleep(2)
    after = stack.cpu()
    row = {
        "what": "cost", "sockets": sockets, "handshakes": crowd.handshakes,
        "cpu per handshake": {name: (after[name] - spent[name]) / sockets * 1e6 for name in spent},
        "memory": (stack.memory("daphne") - before) / sockets / 1024,
        "nginx memory": (stack.memory("nginx") - front) / sockets / 1024,
        "broker frames": (stack.frames() - frames) / sockets,
    }  # fmt: skip
    crowd.idle(5)
    spent = stack.cpu()
    crowd.idle(IDLE)
    after = stack.cpu()
    row["idle cpu"] = {name: (after[name] - spent[name]) / IDLE / sockets * 1e6 for name in spent}
    row["broker idle"] = (after["rabbitmq"] - spent["rabbitmq"]) / IDLE
    return row, crowd


def restart(stack, crowd, people, name, per_second, seconds):
    """Events go on while daphne ends by signal `name` and comes back."""
    events = int(per_second * seconds)
    emitter = Inside(stack.project, EMITTER, f"job_events-{people.said[1]}", events, 1 / per_second)
    try:
        crowd.idle(0)
        emitter.go_on()
        time.sleep(1)
        crowd.begin("resume", events * crowd.sockets, 20)
        ended = time.monotonic()
        stack.signal(getattr(signal, f"SIG{name}"))
        time.sleep(6 if name == "TERM" else 0.2)  # the old one, draining, takes connections no more
        up = stack.listening(ended + 120)
        seen = crowd.end()
    finally:
        emitter.close()
    return {
        "what": f"restart {name}", "sockets": crowd.sockets, "events": events, "back": seen["back"] - ended,
        "up": up - ended, "back after up": seen["back"] - up,
        "missed": events * crowd.sockets - seen["events"] + seen["behind"], "behind": seen["behind"],
        "skipped": seen["skipped"], "unrecovered": seen["unrecovered"], "codes": seen["codes"],
        "closed": seen["closed"], "live": seen["live"],
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sockets", type=int, nargs="*", default=[1000, 5000])
    parser.add_argument("--at-once", type=int, default=64, help="handshakes under way")
    parser.add_argument(
        "--signals", nargs="*", default=["TERM", "KILL"], help="at the largest number of sockets"
    )
    parser.add_argument("--seconds", type=float, default=40, help="of events around a restart")
    parser.add_argument("--out", type=Path, default=ROOT / ".dev-bench" / "stack_sockets.jsonl")
    options = parser.parse_args()
    stack = Stack()
    options.out.parent.mkdir(exist_ok=True)

    def note(row):
        row["load"] = os.getloadavg()[0]
        print(json.dumps(row), flush=True)
        with options.out.open("a") as out:
            out.write(json.dumps(row) + "\n")

    people = Inside(stack.project, PEOPLE, max(options.sockets))
    try:
        for sockets in options.sockets:
            row, crowd = cost(stack, sockets, options.at_once, people)
            try:
                note(row)
                if sockets == max(options.sockets):
                    for name in options.signals:
                        note(restart(stack, crowd, people, name, per_second=3, seconds=options.seconds))
            finally:
                crowd.close()
            time.sleep(5)  # a thousand goodbyes are not part of what comes next
    finally:
        people.go_on()
        people.end()


if __name__ == "__main__":
    main()
