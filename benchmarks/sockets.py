"""Events to sockets, beside what people use today: one machine, one run, in turns, medians.

    make bench-sockets                  everything, three rounds
    python benchmarks/sockets.py --rounds 1 --kinds carillon "redis pubsub" --ways direct --workloads 200x1
    python benchmarks/sockets.py --report       the pages in docs/reference, of what has been measured so far

Each kind gets one serving process and the same clients (crowd.c). Ours takes the whole way: durable queue,
relay, event stream, tail, local fan-out. The others take theirs: `group_send` to consumers, or Socket.IO's
Redis adapter. `direct` is to the serving process, `tls` through Carillon's own nginx. Results are appended to
.dev-bench/sockets.jsonl as they come, so a run can be made in pieces.

Needs Docker with the images of `make dev`, redis-server, cc with libssl-dev, and node with npm for Socket.IO.
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import observed, sockets_report  # noqa: E402
from benchmarks.crowd import Crowd, program  # noqa: E402
from benchmarks.front import PATH, Front, free_port  # noqa: E402
from benchmarks.kinds import CORE, KINDS, OURS, PINS, PUBSUB, RABBIT, SOCKETIO  # noqa: E402
from benchmarks.layer import SERVERS, Server  # noqa: E402
from tests.integration.asgi_amqp import broker as brokers  # noqa: E402

WAYS = ("direct", "tls")
# name: sockets, groups, sends in flight, events to find out with how many more are worth `SECONDS`
RATES = {
    "200x1": (200, 1, 100, 100),
    "2000x1": (2000, 1, 100, 20),
    "2000x2000": (2000, 2000, 100, 2000),
    "200x1 single": (200, 1, 1, 50),
}
STEADY = (200, 10, 200)  # sockets of one group, events a second, events: every kind carries it with ease
WORKLOADS = (*RATES, "steady", "idle")
SECONDS = 5.0
MOST = 400_000  # events of one run
PATIENCE = 15  # seconds of silence that end a run: what has not come is lost
IDLE = 20  # seconds


def environment(kind):
    """The python of a kind's own environment, made once under .dev-bench."""
    if kind not in PINS:
        return sys.executable
    folder = ROOT / ".dev-bench" / f"sockets-{PINS[kind][0].partition('=')[0]}"
    python = folder / "bin" / "python"
    if not python.exists():
        print(f"making the environment of {', '.join(PINS[kind])}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *PINS[kind]], check=True)
    return str(python)


class Serving:
    """The serving process of one kind, and for ours the relay; nginx before it where the way is `tls`."""

    def __init__(self, kind, way, url):
        self.kind, self.url = kind, url
        self._upstream = free_port()
        self.tls = way == "tls"
        self.port = free_port() if self.tls else self._upstream
        self.epoch = f"b{os.getpid()}x{self._upstream}"
        self._stack = ExitStack()
        self.env = {
            **os.environ, "BENCH_KIND": kind, "BENCH_URL": url, "BENCH_EPOCH": self.epoch, "BENCH_PATH": PATH,
            "NODE_ENV": "production", "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}:{ROOT / 'benchmarks'}",
        }  # fmt: skip
        self.relay = self.front = None

    def __enter__(self):
        try:
            if self.kind == OURS:
                self.relay = self.publisher({"relay": 1, "url": self.url, "epoch": self.epoch})
            self.server = self._process(self._command(), ROOT / "benchmarks")
            deadline = time.monotonic() + 60
            while True:
                try:
                    socket.create_connection(("127.0.0.1", self._upstream), 1).close()
                    break
                except OSError:
                    if self.server.poll() is not None or time.monotonic() > deadline:
                        raise SystemExit(f"{self.kind}: the server does not listen") from None
                    time.sleep(0.1)
            if self.tls:
                self.front = self._stack.enter_context(Front(self._upstream, self.port))
            return self
        except BaseException:
            self._stack.close()
            raise

    def __exit__(self, *_):
        self._stack.close()

    def _command(self):
        if self.kind == SOCKETIO:
            folder = ROOT / "benchmarks" / "socketio"
            if not (folder / "node_modules").exists():
                subprocess.run(["npm", "install", "--silent", "--no-audit"], cwd=folder, check=True)
            return ["node", "socketio/server.js", str(self._upstream)]
        return [environment(self.kind), "socket_server.py", "-b", "127.0.0.1", "-p", str(self._upstream),
                "-v", "0", "--websocket_timeout", "-1", "--ping-interval", "20", "--ping-timeout", "30",
                "socket_server:application"]  # fmt: skip

    def _process(self, command, folder=None, **options):
        process = subprocess.Popen(command, env=self.env, cwd=folder, **options)
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        return process

    def publisher(self, task):
        script = str(ROOT / "benchmarks" / "socket_publisher.py")
        return self._process(
            [environment(self.kind), script, json.dumps(task)], stdout=subprocess.PIPE, text=True
        )

    def publish(self, **task):
        """A publisher that has said when it began."""
        task = {"kind": self.kind, "url": self.url, "flying": 1, "pause": 0, **task}
        return self.publisher(task)

    def crowd(self, sockets, groups=1):
        speak = "socketio" if self.kind == SOCKETIO else "plain"
        path = f"{PATH}?EIO=4&transport=websocket" if self.kind == SOCKETIO else PATH
        crowd = Crowd(
            "127.0.0.1", self.port, tls=self.tls, path=path, speak=speak, sockets=sockets, groups=groups
        )
        self._stack.callback(crowd.close)
        return crowd

    def cpu(self):
        return {
            "server": observed.cpu(self.server.pid),
            **({"relay": observed.cpu(self.relay.pid)} if self.relay else {}),
            **({"nginx": self.front.cpu()} if self.front else {}),
        }


def run(serving, crowd, groups, flying, events):
    """So many events to everybody: what the crowd saw, with `seconds`, and CPU seconds by process."""
    expected = events * crowd.sockets // groups
    crowd.begin("count", expected, PATIENCE)
    before = serving.cpu()
    publisher = serving.publish(groups=groups, flying=flying, count=events)
    began = json.loads(publisher.stdout.readline())["began"]
    seen = crowd.end()
    after = serving.cpu()
    publisher.kill()
    publisher.wait()
    seen["seconds"] = max(seen["last"] - began, 1e-3)
    seen["lost"] = max(0, expected - seen["events"])
    return seen, {name: after[name] - before[name] for name in after} | {"clients": seen["cpu"]}


def rate(serving, sockets, groups, flying, events):
    """Runs with more and more events until one takes about `SECONDS`: that one counts."""
    crowd = serving.crowd(sockets, groups)
    for _ in range(6):  # a kind that batches gets faster as it gets more
        seen, cpu = run(serving, crowd, groups, flying, events)
        if seen["seconds"] > SECONDS / 2 or events == MOST or seen["closed"]:
            break
        events = min(MOST, int(events * min(20, SECONDS / seen["seconds"])))
    return {
        "rate": seen["events"] / seen["seconds"], "lost": seen["lost"], "behind": seen["behind"],
        "closed": seen["closed"], "handshakes": crowd.handshakes, "events": events,
        "seconds": seen["seconds"],
        "cpu": {name: spent / max(1, seen["events"]) * 1e6 for name, spent in cpu.items()},
        "busy": {name: spent / seen["seconds"] for name, spent in cpu.items()},
    }  # fmt: skip


def steady(serving):
    """Latencies of a load that nobody queues at: from before the publish to every socket's frame."""
    sockets, per_second, events = STEADY
    crowd = serving.crowd(sockets)
    crowd.begin("count", events * sockets, PATIENCE)
    serving.publish(groups=1, count=events, pause=1 / per_second)
    seen = crowd.end()
    return {key: seen[key] for key in ("p50", "p90", "p99", "p100", "behind")} | {
        "lost": events * sockets - seen["events"]
    }


def idle(serving, sockets, broker):
    """What sockets that hear nothing cost: memory, CPU, and what subscribing asked of the broker."""
    one = serving.crowd(1)  # whatever is made once is made
    time.sleep(1)
    before, work = observed.memory(serving.server.pid), broker.work()
    front = serving.front.memory() if serving.front else 0
    crowd = serving.crowd(sockets)
    work = {key: value - work[key] for key, value in broker.work().items()}
    memory = (observed.memory(serving.server.pid) - before) / sockets
    spent, at_broker = serving.cpu(), broker.work()["cpu"]
    crowd.idle(IDLE)
    spent = {key: (value - spent[key]) / IDLE / sockets * 1e6 for key, value in serving.cpu().items()}
    at_broker = (broker.work()["cpu"] - at_broker) / IDLE
    row = {
        "sockets": sockets, "memory": memory / 1024, "cpu": spent, "handshakes": crowd.handshakes,
        "broker operations": work["operations"] / sockets, "broker cpu": work["cpu"] / sockets * 1e6,
        "broker idle": at_broker,
    }  # fmt: skip
    if serving.front:
        row["nginx memory"] = (serving.front.memory() - front) / sockets / 1024
    one.close()
    return row


class Rabbit:
    """What RabbitMQ has done so far: CPU seconds, and AMQP frames that came in over all connections."""

    def __init__(self, broker):
        self.broker = broker
        self.pid = observed.inside(broker.name, "beam.smp")[0]

    def work(self):
        cpu = observed.cpu(self.pid)  # before the question, which costs some
        counts = self.broker.ctl("list_connections", "recv_cnt")
        frames = sum(int(word) for word in counts.split() if word.isdigit())
        return {"cpu": cpu, "operations": frames}


class RedisWork:
    """What Redis has done so far: CPU seconds and commands."""

    def __init__(self, redis):
        self.redis = redis

    def work(self):
        port = self.redis.url.rpartition(":")[2]
        shown = subprocess.run(
            ["redis-cli", "-p", port, "info", "stats"], check=True, capture_output=True, text=True
        )
        commands = dict(line.split(":", 1) for line in shown.stdout.splitlines() if ":" in line)
        return {
            "cpu": observed.cpu(self.redis.process.pid),
            "operations": int(commands["total_commands_processed"]),
        }


def measure(name, kind, way, url, broker, sockets):
    with Serving(kind, way, url) as serving:
        if name == "steady":
            return steady(serving)
        if name == "idle":
            return idle(serving, sockets, broker)
        return rate(serving, *RATES[name])


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kinds", nargs="*", default=KINDS, choices=KINDS)
    parser.add_argument("--ways", nargs="*", default=WAYS, choices=WAYS)
    parser.add_argument("--workloads", nargs="*", default=WORKLOADS, choices=WORKLOADS)
    parser.add_argument("--idle", type=int, default=5000, help="sockets of the workload `idle`")
    parser.add_argument("--out", type=Path, default=ROOT / ".dev-bench" / "sockets.jsonl")
    parser.add_argument("--report", action="store_true", help="measure nothing, write the pages")
    options = parser.parse_args()
    if options.report:
        print(sockets_report.write(options.out.parent, ROOT / "docs" / "reference"))
        return
    kinds = list(options.kinds)
    if SOCKETIO in kinds and not shutil.which("npm"):
        print("npm is not installed: without Socket.IO", file=sys.stderr)
        kinds.remove(SOCKETIO)
    program()
    for kind in kinds:  # now, and not while somebody waits for a frame
        environment(kind)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    brokers.NAME = "carillon-bench-sockets-"  # not for the tests to clear away
    with ExitStack() as stack:
        sources = {}
        if {OURS, RABBIT} & set(kinds):
            # A plain password: one of the peers does not decode those of a URL.
            rabbit = stack.enter_context(brokers.Broker(password="plain"))  # noqa: S106
            # Not through Docker's proxy, which Redis has not before it either.
            url = rabbit.url.replace(f"127.0.0.1:{rabbit.port}", f"{observed.address(rabbit.name)}:5672")
            sources |= dict.fromkeys((OURS, RABBIT), (url, Rabbit(rabbit)))
        if {CORE, PUBSUB, SOCKETIO} & set(kinds):
            redis = stack.enter_context(Server([], *SERVERS[0]))
            sources |= dict.fromkeys((CORE, PUBSUB, SOCKETIO), (redis.url, RedisWork(redis)))
        for turn in range(options.rounds):
            for name in options.workloads:
                for way in options.ways:
                    for kind in kinds:
                        url, broker = sources[kind]
                        row = {"workload": name, "way": way, "kind": kind, "round": turn,
                               "load": os.getloadavg()[0]}  # fmt: skip
                        row |= measure(name, kind, way, url, broker, options.idle)
                        print(sockets_report.line(row), flush=True)
                        with options.out.open("a") as out:
                            out.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
