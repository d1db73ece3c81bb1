"""Faults done to real containers. Each shows that it took effect, or the schedule proves nothing (`Void`)."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import re
import socket
import struct
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.clock import Clock
from tests.chaos.composed.schedule import Fault
from tests.chaos.site import Network, Site, docker

PORTS = {"uwsgi": 8050, "daphne": 8051, "nginx": 8043, "postgresql": 5432, "broker": 5672}
"""Where a kind of container listens. runworker does not."""


def uwsgi_request(**values: str) -> bytes:
    """A request in uwsgi's protocol."""
    body = b"".join(
        struct.pack("<H", len(part)) + part for pair in values.items() for part in map(str.encode, pair)
    )
    return struct.pack("<BHB", 0, len(body), 0) + body


ASKED = {
    "uwsgi": uwsgi_request(REQUEST_METHOD="GET", PATH_INFO="/api/v2/ping/", SERVER_NAME="localhost"),
    "daphne": b"GET / HTTP/1.0\r\n\r\n",
    "nginx": b"GET / HTTP/1.0\r\n\r\n",
    "postgresql": b"\x00\x00\x00\x08\x04\xd2\x16\x2f",  # does it speak TLS? It says N
    "broker": b"AMQP\x00\x00\x09\x01",
}
"""What each answers at once."""
NO_ANSWER = 0.5
"""Seconds without one."""
CLONE_NEWNET = 0x40000000


class Void(Exception):
    """A fault did not take effect, and why that is seen."""


@dataclass(frozen=True)
class State:
    """A container as docker sees it."""

    pid: int
    running: bool
    paused: bool
    code: int
    addresses: dict[str, str]
    """By network."""

    def seen_from(self, other: State) -> list[str]:
        """Its addresses in the networks that both are in."""
        return [ip for network, ip in self.addresses.items() if ip and network in other.addresses]


def states(*containers: str) -> list[State]:
    """Of all of these, in one question."""
    return [
        State(
            each["State"]["Pid"],
            each["State"]["Running"],
            each["State"]["Paused"],
            each["State"]["ExitCode"],
            {name: its["IPAddress"] for name, its in each["NetworkSettings"]["Networks"].items()},
        )
        for each in json.loads(docker("inspect", *containers))
    ]


def within(pid: int, ask: Callable[[], bool]) -> bool:
    """`ask()` in the network namespace of a process: a thread of its own goes there, and ends."""
    answers: list[bool] = []
    errors: list[OSError] = []

    def go() -> None:
        try:
            with open(f"/proc/{pid}/ns/net") as namespace:
                if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), "setns")
            answers.append(ask())
        except OSError as error:
            errors.append(error)

    thread = threading.Thread(target=go)
    thread.start()
    thread.join(10)
    if not answers:
        raise Void(f"nobody can look into the network of process {pid}: {errors}")
    return answers[0]


def reaches(ip: str) -> bool:
    """Whether the host answers that nothing listens on a port: any host that hears does, whatever it runs."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.settimeout(NO_ANSWER)
        try:
            probe.connect((ip, 9))
            probe.send(b"?")
            probe.recv(1)
        except ConnectionRefusedError:
            return True
        except OSError:  # nothing comes, or nothing may leave
            return False
    return True


def connects(ip: str, port: int) -> bool:
    """Whether a TCP connection is taken."""
    try:
        socket.create_connection((ip, port), NO_ANSWER).close()
    except OSError:
        return False
    return True


def answers(ip: str, kind: str) -> bool:
    """Whether what listens there says anything to what it is asked."""
    try:
        with socket.create_connection((ip, PORTS[kind]), NO_ANSWER) as connection:
            connection.settimeout(NO_ANSWER)
            connection.sendall(ASKED[kind])
            return bool(connection.recv(1))
    except OSError:
        return False


def kind_of(name: str) -> str:
    return name if name in PORTS or name == "runworker" else "broker"


class Cables:
    """The links that are cut, by iptables in both containers' network namespaces. A container that comes back
    has new ones, perhaps under another address: lay() puts the cuts there again."""

    def __init__(self) -> None:
        self.cuts: list[tuple[frozenset[str], str]] = []
        self._lock = threading.Lock()

    def cut(self, pairs: Iterable[frozenset[str]], how: str) -> None:
        self.cuts += [(pair, how) for pair in pairs]
        self.lay(*{name for pair in pairs for name in pair})

    def mend(self, pairs: Iterable[frozenset[str]], how: str) -> None:
        for pair in pairs:
            self.cuts.remove((pair, how))
        self.lay(*{name for pair in pairs for name in pair})

    def touched(self, container: str) -> set[str]:
        """Those whose links to this one are cut, and itself; nobody, where none is."""
        return {name for pair, _ in self.cuts if container in pair for name in pair}

    def lay(self, *containers: str) -> None:
        """Each of these has exactly the cuts that it should have."""
        with self._lock:
            cuts = list(self.cuts)  # another fault may begin meanwhile; it lays its own
            everybody = sorted({*containers, *(name for pair, _ in cuts for name in pair)})
            there = dict(zip(everybody, states(*everybody), strict=True)) if everybody else {}
            for name in containers:
                if there[name].running:
                    rules = [
                        rule
                        for pair, how in cuts
                        if name in pair
                        for other in pair - {name}
                        for ip in there[other].seen_from(there[name])
                        for rule in self._rules(ip, how)
                    ]
                    self._apply(there[name].pid, rules)

    @staticmethod
    def _rules(ip: str, how: str) -> list[str]:
        ends = (f"INPUT -s {ip}", f"OUTPUT -d {ip}")
        refused = [f"-A {end} -p tcp -j REJECT --reject-with tcp-reset" for end in ends]
        return [*(refused if how == "refused" else []), *(f"-A {end} -j DROP" for end in ends)]

    @staticmethod
    def _apply(pid: int, rules: list[str]) -> None:
        table = "\n".join(
            ["*filter", ":INPUT ACCEPT [0:0]", ":FORWARD ACCEPT [0:0]", ":OUTPUT ACCEPT [0:0]", *rules]
        )
        done = subprocess.run(
            ["nsenter", "--target", str(pid), "--net", "iptables-restore"],
            input=f"{table}\nCOMMIT\n", capture_output=True, text=True, timeout=20, check=False,
        )  # fmt: skip
        if done.returncode != 0 and Path(f"/proc/{pid}").exists():
            raise Void(f"the links of process {pid} cannot be cut: {done.stderr.strip()}")


class Faults:
    """Does them to the containers of a site. `names`: what a schedule calls a container, and which it is."""

    def __init__(self, site: Site, clock: Clock, line: Network, names: dict[str, str]) -> None:
        self.site, self.clocks, self.clients, self.names = site, clock, line, names
        self.cables = Cables()
        self.seen: list[str] = []
        """How each was seen to take effect."""

    async def befall(self, fault: Fault, begun: float) -> None:
        """From its beginning to its end. Raises Void."""
        await asyncio.sleep(max(0.0, begun + fault.at - time.monotonic()))
        async with getattr(self, fault.kind)(fault) as seen:
            self.seen.append(f"{time.monotonic() - begun:5.1f} s: {fault.words()}: {seen}")
            await asyncio.sleep(fault.seconds)

    async def running(self, *containers: str) -> list[State]:
        """Their states, once they all run: one that was killed may be on its way."""
        deadline = time.monotonic() + 15
        while True:
            found = await asyncio.to_thread(states, *containers)
            if all(state.running for state in found):
                return found
            if time.monotonic() > deadline:
                raise Void(f"one of {', '.join(containers)} does not run")
            await asyncio.sleep(0.2)

    async def start(self, container: str) -> None:
        """Again, and where links of it are cut they still are."""
        await asyncio.to_thread(docker, "start", container)
        if touched := self.cables.touched(container):
            await asyncio.to_thread(self.cables.lay, *touched)

    @contextlib.asynccontextmanager
    async def partition(self, fault: Fault) -> AsyncIterator[str]:
        one, *others = (self.names[name] for name in fault.on)
        await self.running(one, *others)
        pairs = [frozenset((one, other)) for other in others]
        reached = [await self._reaches(one, other) for other in others]
        await asyncio.to_thread(self.cables.cut, pairs, fault.how)
        try:
            # Those that were cut off by another fault already prove nothing and disprove nothing.
            for name, other, before in zip(fault.on[1:], others, reached, strict=True):
                if await self._reaches(one, other):
                    raise Void(f"{fault.on[0]} still reaches {name}")
                if before:
                    mine, theirs = await self.running(one, other)
                    port, addresses = PORTS[kind_of(name)], theirs.seen_from(mine)
                    if await asyncio.to_thread(
                        within, mine.pid, lambda all=addresses, p=port: any(connects(at, p) for at in all)
                    ):
                        raise Void(f"{fault.on[0]} still connects to {name}")
            if not any(reached):
                raise Void(f"{fault.on[0]} reached none of {', '.join(fault.on[1:])} before")
            yield f"{sum(reached)} of {len(others)} answered before, none now"
        finally:
            await asyncio.to_thread(self.cables.mend, pairs, fault.how)

    async def _reaches(self, one: str, other: str) -> bool:
        mine, theirs = await self.running(one, other)
        addresses = theirs.seen_from(mine)
        return await asyncio.to_thread(within, mine.pid, lambda: any(map(reaches, addresses)))

    @contextlib.asynccontextmanager
    async def pause(self, fault: Fault) -> AsyncIterator[str]:
        (name,) = fault.on
        container = self.names[name]
        (state,) = await self.running(container)
        await asyncio.to_thread(docker, "pause", container)
        try:
            (paused,) = await asyncio.to_thread(states, container)
            if not paused.paused:
                raise Void(f"{name} is not paused")
            used = processor_time(state.pid)
            if kind_of(name) != "runworker":
                if await asyncio.to_thread(within, state.pid, lambda: answers("127.0.0.1", kind_of(name))):
                    raise Void(f"{name} is paused and answers")
            else:
                await asyncio.sleep(NO_ANSWER)
            if (now := processor_time(state.pid)) != used:
                raise Void(f"{name} is paused and works: {used}, then {now}")
            yield f"no answer and no work in {NO_ANSWER} s"
        finally:
            await asyncio.to_thread(docker, "unpause", container)

    @contextlib.asynccontextmanager
    async def kill(self, fault: Fault) -> AsyncIterator[str]:
        (name,) = fault.on
        container = self.names[name]
        await self._killed(name, container)
        try:
            yield "it ended with 137"
        finally:
            await self.start(container)

    async def _killed(self, name: str, container: str) -> None:
        await self.running(container)
        await asyncio.to_thread(docker, "kill", "--signal", "KILL", container)
        async with asyncio.timeout(10):
            while (state := (await asyncio.to_thread(states, container))[0]).running:
                await asyncio.sleep(0.05)
        if state.code != 137:
            raise Void(f"{name} ended with {state.code} and not with 137")

    @contextlib.asynccontextmanager
    async def power(self, fault: Fault) -> AsyncIterator[str]:
        containers = [self.names[name] for name in fault.on]
        await self.running(*containers)
        await asyncio.gather(*map(self._killed, fault.on, containers))
        try:
            size = int(fault.how)
            gone = await asyncio.gather(
                *(asyncio.to_thread(self.site.cut_the_log, each, size) for each in containers)
            )
            if not all(gone):
                raise Void(f"of {', '.join(fault.on)} {gone} bytes are gone")
            yield f"{' and '.join(map(str, gone))} bytes are gone"
        finally:
            await asyncio.gather(*map(self.start, containers))

    @contextlib.asynccontextmanager
    async def clock(self, fault: Fault) -> AsyncIterator[str]:
        (name,), offset = fault.on, fault.how
        await self.running(self.names[name])
        self.clocks.set(name, offset)
        try:
            said = await asyncio.to_thread(docker, "exec", self.names[name], "date", "+%s")
            ahead = int(said) - time.time()
            if abs(ahead - int(offset)) > 15:
                raise Void(f"the clock of {name} is {ahead:+.0f} s ahead, not {offset}")
            yield f"`date` there is {ahead:+.0f} s ahead"
        finally:
            self.clocks.set(name, "+0")

    @contextlib.asynccontextmanager
    async def disk(self, fault: Fault) -> AsyncIterator[str]:
        (name,) = fault.on
        container = self.names[name]
        (state,) = await self.running(container)
        before = await asyncio.to_thread(synced_write, container)
        limit = throttle(state.pid, int(fault.how))
        try:
            after = await asyncio.to_thread(synced_write, container)
            if after < 0.5 / int(fault.how) or after < 2 * before:
                raise Void(f"a synced write of {name} takes {before:.4f} s, then {after:.4f} s")
            yield f"a synced write takes {after:.3f} s, before {before:.4f} s"
        finally:
            limit()

    @contextlib.asynccontextmanager
    async def line(self, fault: Fault) -> AsyncIterator[str]:
        cut = asyncio.create_task(self.clients.cut(fault.seconds + 0.5, blackhole=fault.how == "silent"))
        try:
            await asyncio.sleep(0)  # it begins
            try:
                _, writer = await asyncio.wait_for(
                    asyncio.open_connection("127.0.0.1", self.clients.port, ssl=self.site.tls,
                                            server_hostname=self.site.address[0]), NO_ANSWER,
                )  # fmt: skip
                writer.transport.abort()
            except (OSError, TimeoutError):
                yield "no handshake gets through"
            else:
                raise Void("the line of the clients is cut, and a handshake gets through")
        finally:
            await cut


def controlled(pid: int, controller: str) -> Path:
    """The folder of a process's control group: of this controller, or of all where there is one tree."""
    lines = [line.split(":", 2) for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()]
    for _, controllers, path in lines:
        if controller in controllers.split(","):
            return Path(f"/sys/fs/cgroup/{controller}{path}")
    return Path(f"/sys/fs/cgroup{next(path for _, controllers, path in lines if not controllers)}")


def processor_time(pid: int) -> int:
    """What all processes of the container have used."""
    group = controlled(pid, "cpuacct")
    if (usage := group / "cpuacct.usage").exists():
        return int(usage.read_text())
    return int((group / "cpu.stat").read_text().split()[1])  # usage_usec comes first


def synced_write(container: str) -> float:
    """Seconds that 4 KiB take until they are on the disk of what the container stores."""
    volume = "/var/lib/rabbitmq" if "broker" in container else "/var/lib/postgresql/data"
    command = f"dd if=/dev/zero of={volume}/slow bs=4k count=4 oflag=dsync; rm {volume}/slow"
    said = docker("exec", container, "sh", "-c", f"({command}) 2>&1")
    return float(re.search(r"copied, ([\d.e-]+) s", said)[1]) / 4


def throttle(pid: int, writes: int) -> Callable[[], None]:
    """The container may write so often a second; what takes the limit away again."""
    device = os.stat(docker("info", "--format", "{{.DockerRootDir}}").strip()).st_dev
    disk = f"{os.major(device)}:{os.minor(device)}"
    group = controlled(pid, "blkio")
    if (file := group / "blkio.throttle.write_iops_device").exists():
        on, off = f"{disk} {writes}", f"{disk} 0"
    else:
        file = group / "io.max"
        on, off = f"{disk} wiops={writes}", f"{disk} wiops=max"
    try:
        file.write_text(on)
    except OSError as error:
        raise Void(f"this machine cannot slow a disk down: {error}") from None

    def undo() -> None:
        with contextlib.suppress(FileNotFoundError):  # with the container
            file.write_text(off)

    return undo
