"""Thousands of authenticated clients on a running stack: what they cost, and what a restart of daphne is to
them.

    CARILLON_STACK_ENV=.dev/env CARILLON_STACK_PROJECT=carillon python benchmarks/stack_sockets.py

The clients speak version 2 through nginx with TLS, each a user of its own with a token and a subscription.
Events come a few times a second, numbered, while daphne is restarted: TERM (it drains) and KILL. Every client
comes back by itself, from its position; what it misses or gets twice is counted. Appends to
.dev-bench/stack_sockets.jsonl.

daphne runs beside the stack and not in its container, and as supervisord runs it in production: it is started
by `carillon run` on a listening socket that outlives it. Broker, database, runworker and emitter are the
stack's; nginx is a second one with the same configuration.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import observed  # noqa: E402
from benchmarks.crowd import Crowd  # noqa: E402
from benchmarks.front import Front, free_port  # noqa: E402
from benchmarks.inside import Inside  # noqa: E402

IDLE = 20  # seconds
PROCESSES = {"rabbitmq": "beam.smp", "runworker": "runworker"}

# Run in a Django process beside uwsgi's, in its container.
PEOPLE = """
import secrets, sys
from django.contrib.auth import get_user_model
from carillon.accounts import tokens
from carillon.accounts.models import ApiToken, Team
from tower.models import Job
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
from carillon.events import emit_channel_notification
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


class Daphne:
    """One daphne as supervisord runs it: a listening socket that stays, and a process that comes and goes."""

    def __init__(self, environment):
        self.listener = socket.socket()
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen(4096)
        self.port = self.listener.getsockname()[1]
        self.environment = environment
        self.start()

    def start(self):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "carillon", "run", "daphne"], stdin=self.listener, env=self.environment
        )

    def restart(self, name):
        """End it by a signal and start the next as soon as it is gone; when that was."""
        self.process.send_signal(name)
        self.process.wait(60)
        ended = time.monotonic()
        self.start()
        return ended

    def close(self):
        self.process.kill()
        self.process.wait()
        self.listener.close()


class Stack:
    """The running stack, the daphne and the nginx beside it, and what they have used."""

    def __init__(self, stack):
        project, file = os.environ.get("CARILLON_STACK_PROJECT"), os.environ.get("CARILLON_STACK_ENV")
        if not (project and file):
            raise SystemExit("CARILLON_STACK_ENV and CARILLON_STACK_PROJECT name the stack of `make dev`")
        self.project = project
        secrets = Path(file).resolve().parent / "secrets"
        environment = {
            **os.environ, "PYTHONPATH": str(ROOT / "src"), "CARILLON_DEVELOPMENT": "1",
            "CARILLON_AMQP_HOSTS": observed.address(self.container("rabbitmq")),
            "CARILLON_DATABASE_HOST": observed.address(self.container("postgresql")),
            **{f"CARILLON_{name.upper()}_FILE": str(secrets / name)
               for name in ("secret_key", "amqp_password", "database_password")},
        }  # fmt: skip
        self.daphne = Daphne(environment)
        stack.callback(self.daphne.close)
        self.front = stack.enter_context(Front(self.daphne.port, free_port()))

    def container(self, service):
        return f"{self.project}-{service}-1"

    def cpu(self):
        spent = {
            service: sum(map(observed.cpu, observed.inside(self.container(service), word)))
            for service, word in PROCESSES.items()
        }
        return {"daphne": observed.cpu(self.daphne.process.pid), "nginx": self.front.cpu(), **spent}

    def frames(self):
        """AMQP frames that have come to the broker."""
        shown = subprocess.run(
            ["docker", "exec", self.container("rabbitmq"), "rabbitmqctl", "--quiet", "list_connections",
             "recv_cnt"],
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        return sum(int(word) for word in shown.split() if word.isdigit())

    def crowd(self, sockets, at_once, people):
        """Each socket is another user's."""
        name, job = people.said
        return Crowd(
            "127.0.0.1", self.front.port, tls=True, path="/websocket/", speak="carillon",
            sockets=sockets, at_once=at_once, headers=f"Authorization: Bearer {name}-%d\r\n",
            subscribe=json.dumps({"jobs": ["status_changed"], "job_events": [int(job)]}),
        )  # fmt: skip


def cost(stack, sockets, at_once, people):
    """A row of what so many sockets cost, and the crowd itself."""
    stack.crowd(1, 1, people).close()
    before, front, frames, spent = (
        observed.memory(stack.daphne.process.pid), stack.front.memory(), stack.frames(), stack.cpu(),
    )  # fmt: skip
    crowd = stack.crowd(sockets, at_once, people)
    time.sleep(2)
    after = stack.cpu()
    row = {
        "what": "cost", "sockets": sockets, "handshakes": crowd.handshakes,
        "cpu per handshake": {name: (after[name] - spent[name]) / sockets * 1e6 for name in spent},
        "memory": (observed.memory(stack.daphne.process.pid) - before) / sockets / 1024,
        "nginx memory": (stack.front.memory() - front) / sockets / 1024,
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
        begun = time.monotonic()
        ended = stack.daphne.restart(getattr(signal, f"SIG{name}"))
        seen = crowd.end()
    finally:
        emitter.close()
    return {
        "what": f"restart {name}", "sockets": crowd.sockets, "events": events,
        "back after signal": seen["back"] - begun, "back after its end": seen["back"] - ended,
        "missed": events * crowd.sockets - seen["events"] + seen["behind"], "behind": seen["behind"],
        "skipped": seen["skipped"], "unrecovered": seen["unrecovered"], "codes": seen["codes"],
        "closed": seen["closed"], "live": seen["live"], "p50": seen["p50"], "p99": seen["p99"],
    }  # fmt: skip


def notebook(path):
    """A function that says a row, and adds it to a file."""
    path.parent.mkdir(exist_ok=True)

    def note(row):
        row["load"] = os.getloadavg()[0]
        print(json.dumps(row), flush=True)
        with path.open("a") as out:
            out.write(json.dumps(row) + "\n")

    return note


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
    note = notebook(options.out)
    with ExitStack() as things:
        stack = Stack(things)
        people = Inside(stack.project, PEOPLE, max(options.sockets))
        things.callback(people.end)
        things.callback(people.go_on)
        for sockets in options.sockets:
            row, crowd = cost(stack, sockets, options.at_once, people)
            try:
                note(row)
                if sockets == max(options.sockets):
                    for name in options.signals:
                        note(restart(stack, crowd, people, name, 3, options.seconds))
            finally:
                crowd.close()
            time.sleep(5)  # a thousand goodbyes are not part of what comes next


if __name__ == "__main__":
    main()
