"""Our layer beside its peers: one command, one machine, one run, in turns, medians.

    make bench-layer            (python benchmarks/layer.py --rounds 3)

Needs Docker with the image carillon/rabbitmq:dev, and redis-server, valkey-server and nats-server (installed
with apt where they are missing and we are root). The peers get environments of their own, for their pins
conflict with ours. Every row counts what was sent and what came: one that lost something is shown as such and
is no result. Writes docs/reference/asgi_amqp_benchmark.md and .svg.
"""

import argparse
import contextlib
import json
import os
import platform
import resource
import secrets
import shutil
import socket
import statistics
import subprocess
import sys
import textwrap
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.integration.asgi_amqp.broker import Broker, docker  # noqa: E402

OURS, CORE, PUBSUB, RABBIT = "asgi_amqp", "redis core", "redis pubsub", "channels_rabbitmq"
VALKEY, NATS = "valkey pubsub", "nats"
SINGLE = "received and handled, one event a message"
# redis-py 5.2 needs a quarter less CPU time for a message than 8.1, which pip would choose.
PEERS = {
    "redis": ["channels-redis==4.3.*", "redis[hiredis]==5.2.*"],
    "rabbit": ["channels-rabbitmq==4.0.1"],
    "valkey": ["channels-valkey==0.3.*", "valkey[libvalkey]==6.*"],
    "nats": ["channels-nats==0.6.*"],
}

# name: (unit, task, factor by which our layer gets more events so that it runs as long as the others)
WORKLOADS = {
    "send": ("messages/s", {"count": 2000}, 50),
    "group_send": ("messages/s", {"count": 2000, "group": True}, 50),
    "fan-out to 100": ("deliveries/s", {"count": 300, "group": True, "channels": 100}, 12),
    "fan-out to 1000": ("deliveries/s", {"count": 30, "group": True, "channels": 1000}, 12),
    "fan-out to 3000": ("deliveries/s", {"count": 10, "group": True, "channels": 3000}, 12),
    # in turns within the round too: the machine's pace drifts from one ten seconds to the next
    "idle p50": ("ms", {"count": 200, "pause": 0.01, "warm": True, "turns": 3}, 1),
    "idle p99": ("ms", None, 1),  # of the same run
    "sync emits, waiting": ("emits/s", {"count": 300, "group": True, "sync": True}, 5),
    "sync emits, pipelined": ("emits/s", {"count": 300, "group": True, "sync": True, "pipelined": True}, 100),
    "durable, confirmed, handled, each awaited": (
        "events/s",
        {"count": 100_000, "durable": True, "flying": 4000},
        1,
    ),
    "durable, confirmed, handled, 50 together": (
        "events/s",
        {"count": 200_000, "durable": True, "flying": 80, "together": 50},
        1,
    ),
    # of a queue that was filled before: nobody's batches, only how fast they are read
    SINGLE: (
        "messages/s",
        {"count": 40_000, "durable": True, "single": True, "flying": 4000},
        1,
    ),
    "memory, 1000 channels": ("MiB", None, 1),  # of the subscriber of the fan-out to 1000
}
DISTURBED = 0.1  # share of the processors that other programs may use, or a measurement is repeated
# (workload, what it is compared with, the ratio or number to reach, whether smaller is better)
TARGETS = [
    ("send", "best", 10, False), ("group_send", "best", 10, False), ("fan-out to 100", "best", 8, False),
    ("fan-out to 1000", "best", 8, False), ("idle p50", "best", 1.25, True),
    ("sync emits, waiting", "best", 4, False), ("sync emits, pipelined", "best", 40, False),
    ("durable, confirmed, handled, 50 together", None, 100_000, False),
    (SINGLE, None, 60_000, False),
]  # fmt: skip
MOST_CPU = 8  # microseconds of processor time for each of the last
AGAINST = (CORE, PUBSUB, RABBIT)  # "best" is the best of these; the others are shown


class Server:
    """A server of this run's own, without persistence, run by `inside`. `package` is Debian's."""

    def __init__(self, inside, package, scheme, arguments):
        self.inside = inside
        self.package = package
        self.scheme = scheme
        self.arguments = arguments

    def __enter__(self):
        program = shutil.which(self.package)
        if program is None:
            if os.geteuid():
                raise SystemExit(
                    f"bench-layer: {self.package} is not installed: apt-get install {self.package}"
                )
            print(f"installing {self.package}", file=sys.stderr)
            env = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
            subprocess.run(
                ["apt-get", "install", "-y", "-qq", "--no-install-recommends", self.package],
                env=env,
                check=True,
            )
            program = shutil.which(self.package)
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        self.process = subprocess.Popen(
            [*self.inside, program, "--port", str(port), *self.arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.url = f"{self.scheme}://127.0.0.1:{port}"
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(10)


IN_MEMORY = ("--bind", "127.0.0.1", "--save", "", "--appendonly", "no")
SERVERS = (
    ("redis-server", "redis", IN_MEMORY),
    ("valkey-server", "valkey", IN_MEMORY),
    ("nats-server", "nats", ("--addr", "127.0.0.1")),
)


def environment(name):
    """The python of a peer's environment, made under .dev-bench when it is not there as it should be. None
    where the peer cannot be installed.
    """
    folder = ROOT / ".dev-bench" / name
    python, made = folder / "bin" / "python", folder / "made-of"
    if not made.exists() or made.read_text().split() != PEERS[name]:
        print(f"making the environment of {', '.join(PEERS[name])}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        done = subprocess.run([str(python), "-m", "pip", "install", "-q", *PEERS[name]], check=False)
        if done.returncode:
            print(f"{name}: cannot be installed here, and is left out", file=sys.stderr)
            return None
        made.write_text("\n".join(PEERS[name]))
    return str(python)


def inside(broker):
    """The command that runs another in the broker's network namespace, so that nobody's bytes take a longer
    way than another's: all ends and both brokers talk over one loopback. Empty where we may not do that.
    """
    pid = docker("inspect", "--format", "{{.State.Pid}}", broker.name)
    command = ["nsenter", f"--net=/proc/{pid}/ns/net"]
    try:
        subprocess.run([*command, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    return command


class End:
    """One process of a measurement."""

    inside = ()

    def __init__(self, python, task):
        self.process = subprocess.Popen(
            [*self.inside, python, str(ROOT / "benchmarks" / "peer.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=dict(os.environ, PYTHONPATH=str(ROOT / "src")),
        )  # fmt: skip
        self.process.stdin.write(json.dumps(task))
        self.process.stdin.close()

    def hear(self, key):
        for line in self.process.stdout:
            said = json.loads(line)
            if key in said:
                return said[key]
        raise RuntimeError(self.process.stderr.read()[-1500:])

    def end(self):
        self.process.kill()
        self.process.wait()


class Others:
    """What other programs than ours use of the processors, as a share. Ours are the processes in
    the brokers' network namespace and those that have ended since.
    """

    def __enter__(self):
        self.before = self._read()
        return self

    def __exit__(self, *_):
        busy, own, now = (after - before for after, before in zip(self._read(), self.before, strict=True))
        self.share = max(0.0, busy - own) / (now * os.cpu_count()) if End.inside else 0.0

    @staticmethod
    def _read():
        ticks = os.sysconf("SC_CLK_TCK")
        # user, nice, system, idle, iowait, irq, softirq, steal
        figures = [int(each) for each in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        own = ended.ru_utime + ended.ru_stime
        space = os.readlink(End.inside[1].removeprefix("--net=")) if End.inside else ""
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if os.readlink(process / "ns" / "net") == space:
                    fields = (process / "stat").read_text().rpartition(")")[2].split()
                    own += (int(fields[11]) + int(fields[12])) / ticks
        return (sum(figures) - figures[3] - figures[4]) / ticks, own, time.monotonic()


def measure_undisturbed(*what):
    """The least disturbed of up to three measurements; the first, if hardly anything else ran. What any of
    them lost stays lost.
    """
    best, lost = None, 0
    for _ in range(3):
        with Others() as others:
            numbers = measure(*what)
        numbers["others"] = others.share
        lost = max(lost, numbers["lost"], key=abs)
        if best is None or others.share < best["others"]:
            best = numbers
        if others.share < DISTURBED:
            break
    return dict(best, lost=lost)


def measure(python, layer, url, task):
    """One workload of one layer once: a dict of its numbers. `lost` is what was sent and did not come, each
    member of a group counted; below zero what came more than once.
    """
    # Before a measurement begins, one message warms the connection.
    first = 1 if task.get("warm") or task.get("sync") else 0
    expected = (task["count"] + first) * task.get("channels", 1)
    task = {
        "layer": layer,
        "url": url,
        "channels": 1,
        "group": False,
        "flying": 100,
        **task,
        "expected": expected,
        "prefix": f"bench-{secrets.token_hex(4)}",
    }
    ends = []

    def start(role, **more):
        ends.append(End(python, dict(task, role=role, **more)))
        return ends[-1]

    try:
        if task.get("single"):
            sent = start("publish", channel="durable").hear("result")
            got = start("subscribe").hear("result")
            began = got["first"]
        else:
            subscriber = start("subscribe")
            channel = subscriber.hear("ready")
            sent, got = start("publish", channel=channel).hear("result"), subscriber.hear("result")
            began = sent["began"]
    finally:
        for end in ends:
            end.end()
    numbers = {"lost": sent["sent"] * task["channels"] - got["got"], "memory": got["memory"] / 1024}
    if task.get("sync"):
        numbers["rate"] = task["count"] / (sent["accepted"] - began)
    else:
        numbers["rate"] = got["got"] / max(1e-9, got["last"] - began)
        cpu = got["cpu"] if task.get("single") else sent["cpu"] + got["cpu"]
        numbers["cpu"] = cpu / max(1, got["got"]) * 1e6
    if got["latencies"]:
        ordered = sorted(got["latencies"])
        numbers["p50"] = ordered[len(ordered) // 2] * 1000
        numbers["p99"] = ordered[int(len(ordered) * 0.99)] * 1000
    return numbers


def run(layers, rounds, minutes, scale):
    """{workload: {layer: [numbers of each round]}}, and how many rounds there were: none begins that would
    not end in time. The layers take turns within a round.
    """
    results = {name: {layer: [] for layer in layers} for name in WORKLOADS}
    began = time.monotonic()
    for turn in range(rounds):
        if turn and (time.monotonic() - began) * (turn + 1) / turn > minutes * 60:
            return results, turn
        for name, (_, task, factor) in WORKLOADS.items():
            if task is None:
                continue
            for layer, (python, url) in list(layers.items()) * task.get("turns", 1):
                if layer != OURS and (task.get("durable") or task.get("pipelined")):
                    continue
                if layer == RABBIT and task.get("sync"):
                    continue  # it refuses to run in more than one event loop
                together = task.get("together", 1)
                count = task["count"] * scale * (factor if layer == OURS else 1) // together * together
                what = dict(task, count=max(together, int(count)))
                try:
                    numbers = measure_undisturbed(python, layer, url, what)
                except (RuntimeError, KeyError) as error:
                    print(f"{name}: {layer}: {str(error).strip().splitlines()[-1:]}", file=sys.stderr)
                    continue
                print(f"round {turn + 1}: {name}: {layer}: "
                      + ", ".join(f"{key} {value:,.2f}" for key, value in numbers.items()),
                      file=sys.stderr)  # fmt: skip
                results[name][layer].append(numbers)
    return results, rounds


SOURCES = {"idle p50": ("idle p50", "p50"), "idle p99": ("idle p50", "p99"),
           "memory, 1000 channels": ("fan-out to 1000", "memory")}  # fmt: skip


def losses(results, name, layer):
    """What the rounds of a row lost together (or doubled, below zero): 0 for a row that counts."""
    source, _ = SOURCES.get(name, (name, "rate"))
    return sum(numbers["lost"] for numbers in results[source][layer] if numbers["lost"] > 0) or min(
        (numbers["lost"] for numbers in results[source][layer]), default=0
    )


def table(results, layers):
    """{workload: {layer: the median of its rounds}}, without the rows that lost something."""
    medians = {}
    for name in WORKLOADS:
        source, key = SOURCES.get(name, (name, "rate"))
        medians[name] = {
            layer: statistics.median(numbers[key] for numbers in results[source][layer])
            for layer in layers
            if results[source][layer]
            and key in results[source][layer][0]
            and not losses(results, name, layer)
        }
    return medians


def judge(medians, results):
    """(workload, ratio or number, target, reached) for every target of the project. A row of ours that lost
    something has reached nothing; one that was not measured is left out.
    """
    lines = []
    for name, against, target, smaller in TARGETS:
        mine = medians[name].get(OURS)
        if mine is None:
            if losses(results, name, OURS):
                lines.append((name, None, target, False))
            continue
        if against is None:
            value = mine
        else:
            # Where a peer cannot pipeline, its waiting emits are what it has.
            rows = medians[name] if len(medians[name]) > 1 else medians["sync emits, waiting"]
            others = [rows[layer] for layer in AGAINST if layer in rows]
            if not others:
                continue
            value = mine / (min(others) if smaller else max(others))
        lines.append((name, value, target, value <= target if smaller else value >= target))
    if medians[SINGLE].get(OURS) is not None:
        spent = statistics.median(numbers["cpu"] for numbers in results[SINGLE][OURS])
        lines.append((f"{SINGLE}, microseconds each", spent, MOST_CPU, spent <= MOST_CPU))
    return lines


def cell(results, medians, name, layer):
    """A number, or what was lost where it stands for none."""
    lost = losses(results, name, layer)
    if lost:
        return f"lost {lost:,}" if lost > 0 else f"doubled {-lost:,}"
    return number(medians[name].get(layer))


def number(value):
    return "" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def disturbance(results):
    shares = [each["others"] for rows in results.values() for rounds in rows.values() for each in rounds]
    return (
        f"A measurement during which other programs used more than {DISTURBED:.0%} of the processors was "
        f"repeated, up to twice; they used {statistics.median(shares):.0%} in the median and "
        f"{max(shares):.0%} at worst."
    )


def markdown(medians, results, layers, rounds, load):
    processors = os.cpu_count()
    where = (
        "all on one loopback" if End.inside else "RabbitMQ behind Docker's bridge, the others on the loopback"
    )
    basis = "one round" if rounds == 1 else f"{rounds} rounds in turns, medians"
    lines = [
        "# Measured: asgi_amqp beside its peers",
        "",
        f"Written by `make bench-layer`: {basis}; "
        f"{processors} cores, "
        f"Python {platform.python_version()}, events of about 480 bytes, 100 sends in flight. Publisher and "
        f"subscriber are in processes of their own, the brokers on the same machine, {where}. Load: {load}. "
        f"{disturbance(results)} Every row counts what was sent and what came: one that lost something says "
        "how much, and is no result. Absolute numbers are those of this machine at that hour: compare the "
        "columns.",
        "",
        "![Events a second, logarithmic](asgi_amqp_benchmark.svg)",
        "",
        "| | unit | " + " | ".join(layers) + " |",
        "|---|---|" + "---|" * len(layers),
    ]
    for name, (unit, _, _) in WORKLOADS.items():
        lines.append(
            f"| {name} | {unit} | "
            + " | ".join(cell(results, medians, name, layer) for layer in layers)
            + " |"
        )
    lines += ["", "| what | reached | target | |", "|---|---|---|---|"]
    for name, value, target, reached in judge(medians, results):
        lines.append(
            f"| {name} | {number(value)} | {number(target)} | {'reached' if reached else '**not reached**'} |"
        )
    lines += ["", "CPU time of publisher and subscriber together, microseconds per message "
              "delivered (of the last row, of the subscriber alone):", "",
              "| | " + " | ".join(layers) + " |", "|---|" + "---|" * len(layers)]  # fmt: skip
    for name in (
        *("send", "group_send", "fan-out to 100", "fan-out to 1000", "fan-out to 3000"),
        SINGLE,
    ):
        row = [results[name][layer] if not losses(results, name, layer) else [] for layer in layers]
        cells = [number(statistics.median(n["cpu"] for n in each)) if each else "" for each in row]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(line if line[:1] == "|" else textwrap.fill(line, 100) for line in lines) + "\n"


def plot(medians, layers):
    """A bar chart, logarithmic, as SVG text: no library needed."""
    from math import log10

    names = [name for name in WORKLOADS if WORKLOADS[name][0].endswith("/s")]
    colours = dict(
        zip(layers, ("#0b6e4f", "#c44536", "#e09f3e", "#5e6472", "#3d5a80", "#9c6ade"), strict=False)
    )
    top = max([100, *(value for name in names for value in medians[name].values())])
    width, row, left = 1270, 22, 345
    parts, y = ['<text x="8" y="23">events a second, logarithmic</text>'], 40
    for layer, colour in colours.items():
        x = left + list(colours).index(layer) * 150
        parts.append(f'<rect x="{x}" y="12" width="12" height="12" fill="{colour}"/>'
                     f'<text x="{x + 18}" y="23">{layer}</text>')  # fmt: skip
    for name in names:
        parts.append(f'<text x="8" y="{y + 15}" font-weight="bold">{name}</text>')
        for layer in layers:
            value = medians[name].get(layer)
            if value:
                size = max(2, (width - left - 110) * (log10(value) - 1) / (log10(top) - 1))
                parts.append(f'<rect x="{left}" y="{y}" width="{size:.0f}" height="{row - 6}" '
                             f'fill="{colours[layer]}"/>'
                             f'<text x="{left + size + 6:.0f}" y="{y + 13}">{value:,.0f}</text>')  # fmt: skip
                y += row
        y += 12
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y}" font-family="sans-serif" '
            f'font-size="13"><title>Events a second, logarithmic</title><rect width="{width}" height="{y}" '
            f'fill="white"/>{"".join(parts)}</svg>\n')  # fmt: skip


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=60, help="begin no round that would last longer")
    parser.add_argument("--scale", type=float, default=1, help="of the counts: 0.02 to see that it runs")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "reference")
    options = parser.parse_args()
    Broker.remove_leftovers()
    began = os.getloadavg()[0]
    with Broker("bench", password="plain") as broker:  # noqa: S106
        End.inside = inside(broker)
        where = "127.0.0.1" if End.inside else docker(
            "inspect", "--format", "{{.NetworkSettings.IPAddress}}", broker.name
        )  # fmt: skip  # never through Docker's proxy
        direct = broker.url.replace(f"127.0.0.1:{broker.port}", f"{where}:5672")
        with contextlib.ExitStack() as stack:
            urls = [stack.enter_context(Server(End.inside, *each)).url for each in SERVERS]
            results, layers, rounds = measure_all(urls, direct, options)
    medians = table(results, layers)
    load = f"{began:.1f} before, {os.getloadavg()[0]:.1f} after"
    text = markdown(medians, results, layers, rounds, load)
    (options.output / "asgi_amqp_benchmark.md").write_text(text)
    (options.output / "asgi_amqp_benchmark.svg").write_text(plot(medians, layers))
    print(text)


def measure_all(urls, amqp, options):
    redis, valkey, nats = urls
    layers = {OURS: (sys.executable, amqp)}
    for layer, name, url in (
        *((CORE, "redis", redis), (PUBSUB, "redis", redis), (RABBIT, "rabbit", amqp)),
        *((VALKEY, "valkey", valkey), (NATS, "nats", nats)),
    ):
        python = environment(name)
        if python is not None:
            layers[layer] = (python, url)
    time.sleep(3)
    results, rounds = run(layers, options.rounds, options.minutes, options.scale)
    return results, layers, rounds


if __name__ == "__main__":
    main()
