"""Events to sockets, beside what people use today: one command, one machine, one run, in turns, medians.

    make bench-sockets          (python benchmarks/sockets.py --rounds 3)

Each kind gets one serving process and the same client, which counts bytes in one process of its own: frames
have a known size. Ours takes the whole way: durable queue, relay, event stream, tail, local fan-out. The
others take theirs: `group_send` to consumers, or Socket.IO's Redis adapter. Needs Docker (RabbitMQ),
redis-server, and node for Socket.IO.
"""

import argparse
import json
import os
import selectors
import shutil
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.layer import Redis  # noqa: E402
from benchmarks.socket_publisher import SIZE  # noqa: E402
from tests.integration.asgi_amqp import broker as brokers  # noqa: E402

OURS, CORE, PUBSUB, RABBIT, SOCKETIO = (
    "carillon",
    "redis core",
    "redis pubsub",
    "channels_rabbitmq",
    "socket.io",
)
PINS = {
    CORE: ["channels-redis==4.3.*", "redis==5.*", "hiredis", "daphne==4.2.*"],
    PUBSUB: ["channels-redis==4.3.*", "redis==5.*", "hiredis", "daphne==4.2.*"],
    RABBIT: ["channels-rabbitmq==4.0.1", "daphne==4.2.*"],
    SOCKETIO: ["redis", "msgpack"],
}
# name: sockets, groups, sends in flight, events to find out with how many more are worth `SECONDS`
WORKLOADS = {
    "200 sockets, 1 group": (200, 1, 100, 100),
    "2000 sockets, 1 group": (2000, 1, 100, 20),
    "2000 sockets, 2000 groups": (2000, 2000, 100, 2000),
    "200 sockets, 1 group, one send at a time": (200, 1, 1, 50),
}
SECONDS = 6.0
MOST = 200_000  # events of one run


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def environment(kind):
    """The python of a kind's own environment, made once under .dev-bench."""
    if kind == OURS:
        return sys.executable
    folder = ROOT / ".dev-bench" / f"sockets-{'-'.join(PINS[kind][0].split('=')[0].split())}"
    python = folder / "bin" / "python"
    if not python.exists():
        print(f"making the environment of {', '.join(PINS[kind])}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *PINS[kind]], check=True)
    return str(python)


class Serving:
    """The serving process of one kind, and for ours the relay."""

    def __init__(self, kind, url):
        self.kind, self.url, self.port = kind, url, free_port()
        self.epoch = f"b{os.getpid()}x{self.port}"
        env = dict(os.environ, BENCH_KIND=kind, BENCH_URL=url, BENCH_EPOCH=self.epoch,
                   PYTHONPATH=f"{ROOT / 'src'}:{ROOT}:{ROOT / 'benchmarks'}")  # fmt: skip
        self.processes = []
        if kind == OURS:
            self.processes.append(
                self.python(
                    "socket_publisher.py", json.dumps({"relay": 1, "url": url, "epoch": self.epoch}), env=env
                )
            )
        if kind == SOCKETIO:
            folder = ROOT / "benchmarks" / "socketio"
            if not (folder / "node_modules").exists():
                subprocess.run(["npm", "install", "--silent", "--no-audit"], cwd=folder, check=True)
            server = subprocess.Popen(["node", "server.js", str(self.port)], cwd=folder, env=env)
        else:
            server = subprocess.Popen(
                [environment(kind), "socket_server.py", "-b", "127.0.0.1", "-p", str(self.port), "-v", "0",
                 "--websocket_timeout", "-1", "--ping-timeout", "3600", "socket_server:application"],
                env=env, cwd=ROOT / "benchmarks",
            )  # fmt: skip
        self.server = server
        self.processes.append(server)
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                if server.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"{kind}: the server does not listen") from None
                time.sleep(0.1)

    def python(self, script, *arguments, env=None, **options):
        env = env or dict(os.environ, PYTHONPATH=f"{ROOT / 'src'}:{ROOT}:{ROOT / 'benchmarks'}")
        return subprocess.Popen(
            [environment(self.kind), str(ROOT / "benchmarks" / script), *arguments], env=env, **options
        )

    def memory(self):
        for line in Path(f"/proc/{self.server.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) * 1024

    def cpu(self):
        fields = Path(f"/proc/{self.server.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self):
        for process in self.processes:
            process.kill()
            process.wait()


def masked(text):
    data = text.encode()
    return b"\x81" + bytes((0x80 | len(data),)) + b"\0\0\0\0" + data


class Client:
    """So many sockets, each in its groups; counts the bytes that come."""

    def __init__(self, serving, sockets, groups):
        self.sockets = []
        self.selector = selectors.DefaultSelector()
        io = serving.kind == SOCKETIO
        path = "/socket.io/?EIO=4&transport=websocket" if io else "/"
        request = (
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        ).encode()
        # Header of the frame, and what the kind wraps around the payload.
        self.frame = SIZE + 4 + (len('42["event",]') if io else 0)
        for number in range(sockets):
            end = socket.create_connection(("127.0.0.1", serving.port), 30)
            end.sendall(request)
            self.until(end, b"pingTimeout" if io else b"\r\n\r\n")
            if io:
                end.sendall(masked("40"))
                self.until(end, b'"sid"')
                end.sendall(masked(f'420["groups",["g-{number % groups}"]]'))
            else:
                end.sendall(masked(f"g-{number % groups}"))
            self.until(end, b"ok")
            end.setblocking(False)
            self.selector.register(end, selectors.EVENT_READ)
            self.sockets.append(end)

    @staticmethod
    def until(end, what):
        seen = b""
        while what not in seen:
            data = end.recv(4096)
            if not data:
                raise SystemExit(f"the server closed a socket after {seen[-200:]!r}")
            seen += data

    def count(self, expected, patience=15.0):
        """(deliveries, when the last came); gives up after `patience` seconds of silence."""
        buffer = bytearray(1 << 20)
        wanted, got, last = expected * self.frame, 0, time.monotonic()
        while got < wanted:
            ready = self.selector.select(patience)
            if not ready:
                break
            for key, _ in ready:
                try:
                    came = key.fileobj.recv_into(buffer)
                except BlockingIOError:
                    continue
                except ConnectionResetError:
                    came = 0
                if not came:  # the server gave this one up: what it misses is lost
                    self.selector.unregister(key.fileobj)
                got += came
            last = time.monotonic()
        return got // self.frame, last

    def latencies(self, count):
        """Seconds from the publisher's stamp to the first socket's frame."""
        found, seen = [], b""
        while len(found) < count:
            if not self.selector.select(15):
                break
            for end in self.sockets:
                try:
                    data = end.recv(1 << 16)
                except BlockingIOError:
                    continue
                now = time.monotonic()
                if end is self.sockets[0]:
                    seen += data
                    while (place := seen.find(b'"at": "')) >= 0 or (place := seen.find(b'"at":"') - 1) >= 0:
                        start = place + 7
                        if len(seen) < start + 15:
                            break
                        found.append(now - float(seen[start : start + 15]))
                        seen = seen[start + 15 :]
        return found

    def close(self):
        for end in self.sockets:
            end.close()


def publish(serving, **task):
    task = {"kind": serving.kind, "url": serving.url, "flying": 1, "pause": 0, **task}
    return serving.python("socket_publisher.py", json.dumps(task), stdout=subprocess.PIPE, text=True)


def run(serving, client, groups, flying, events):
    """So many events to everybody: (seconds, deliveries, CPU seconds of the serving process)."""
    publisher = publish(serving, groups=groups, flying=flying, count=events)
    try:
        cpu = serving.cpu()
        began = json.loads(publisher.stdout.readline())["began"]
        got, last = client.count(events * len(client.sockets) // groups)
        return last - began, got, serving.cpu() - cpu
    finally:
        publisher.kill()
        publisher.wait()


def workload(kind, url, sockets, groups, flying, events):
    """Runs with more and more events until one takes about `SECONDS`: that one counts."""
    serving = Serving(kind, url)
    client = None
    try:
        began = time.monotonic()
        client = Client(serving, sockets, groups)
        handshakes = sockets / (time.monotonic() - began)
        seconds, got, cpu = run(serving, client, groups, flying, events)
        for _ in range(4):  # a kind that batches gets faster as it gets more
            if seconds > SECONDS / 2 or events == MOST:
                break
            events = min(MOST, int(events * SECONDS / max(seconds, 0.01)))
            seconds, got, cpu = run(serving, client, groups, flying, events)
        expected = events * sockets // groups
        return {
            "rate": got / seconds, "lost": max(0.0, 1 - got / expected), "handshakes": handshakes,
            "events": events, "seconds": seconds, "cpu per delivery": cpu / max(1, got) * 1e6,
        }  # fmt: skip
    finally:
        for each in (client, serving):
            if each is not None:
                each.close()


def quiet(kind, url, sockets, latencies):
    """Memory and CPU of sockets that hear nothing, then latency at ten events a second to twenty sockets: a
    load that every kind carries with ease, so that nothing queues."""
    serving = Serving(kind, url)
    client = publisher = None
    try:
        one = Client(serving, 1, 1)  # whatever is made once is made
        before = serving.memory()
        client = Client(serving, sockets, 1)
        memory = (serving.memory() - before) / sockets
        time.sleep(2)
        cpu = serving.cpu()
        time.sleep(20)
        cpu = (serving.cpu() - cpu) / 20 / sockets
        client.close()
        client = Client(serving, 20, 1)
        publisher = publish(serving, groups=1, count=latencies + 5, pause=0.1)
        found = sorted(client.latencies(latencies))
        one.close()
        return {
            "memory": memory / 1024, "cpu": cpu * 1e6,
            "p50": found[len(found) // 2] * 1000 if found else None,
            "p99": found[int(len(found) * 0.99)] * 1000 if found else None,
        }  # fmt: skip
    finally:
        for each in (client, serving):
            if each is not None:
                each.close()
        if publisher is not None:
            publisher.kill()


def median(rows, key):
    values = [row[key] for row in rows if row.get(key) is not None]
    return statistics.median(values) if values else None


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kinds", nargs="*", default=[OURS, CORE, PUBSUB, RABBIT, SOCKETIO])
    parser.add_argument("--workloads", nargs="*", default=[*WORKLOADS, "quiet"])
    parser.add_argument("--idle", type=int, default=2000, help="sockets of the quiet workload")
    parser.add_argument("--out", type=Path, default=ROOT / ".dev-bench" / "sockets.json")
    options = parser.parse_args()
    if SOCKETIO in options.kinds and not shutil.which("npm"):
        print("npm is not installed: without Socket.IO", file=sys.stderr)
        options.kinds.remove(SOCKETIO)
    rows = []
    brokers.NAME = "carillon-bench-sockets-"  # not for the tests to clear away
    # A plain password: one of the peers does not decode those of a URL.
    with brokers.Broker(password="plain") as broker, Redis() as redis:  # noqa: S106
        for turn in range(options.rounds):
            for kind in options.kinds:
                url = broker.url if kind in (OURS, RABBIT) else redis.url
                for name in options.workloads:
                    if name == "quiet":
                        row = quiet(kind, url, options.idle, 200)
                    else:
                        row = workload(kind, url, *WORKLOADS[name])
                    row |= {"kind": kind, "workload": name, "round": turn}
                    print(
                        {
                            key: round(value, 4) if isinstance(value, float) else value
                            for key, value in row.items()
                        },
                        flush=True,
                    )
                    rows.append(row)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(rows, indent=1))
    print(table(rows, options))


def table(rows, options):
    """Markdown: a line per measurement, a column per kind."""
    lines = [f"| | {' | '.join(options.kinds)} |", "|---|" + "---|" * len(options.kinds)]

    def line(title, name, key, form):
        cells = []
        for kind in options.kinds:
            mine = [row for row in rows if row["kind"] == kind and row["workload"] == name]
            value = median(mine, key)
            cells.append("" if value is None else form.format(value))
        if any(cells):
            lines.append(f"| {title} | {' | '.join(cells)} |")

    for name in WORKLOADS:
        line(f"{name}, deliveries/s", name, "rate", "{:,.0f}")
        line(f"{name}, lost", name, "lost", "{:.1%}")
        line(f"{name}, server CPU per delivery, microseconds", name, "cpu per delivery", "{:.2f}")
    line(
        "handshakes and subscriptions/s, one after the other, no login",
        "2000 sockets, 1 group",
        "handshakes",
        "{:,.0f}",
    )
    line("latency p50, 10 events/s to 20 sockets, ms", "quiet", "p50", "{:.2f}")
    line("latency p99, ms", "quiet", "p99", "{:.2f}")
    line("memory per idle socket, KiB", "quiet", "memory", "{:.1f}")
    line("CPU per idle socket, microseconds/s", "quiet", "cpu", "{:.1f}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
