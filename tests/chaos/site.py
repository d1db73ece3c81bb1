"""The stack under fire: its containers, a publisher that gives up nothing, clients of both versions, and a
network between them that can be cut."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import shlex
import ssl
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import connect as sync_connect

from tests.chaos.ledger import Page

GROUP = "jobs-summary"
FILLER = "inventories-status_changed"


def docker(*arguments: str, stderr: bool = False) -> str:
    """What docker wrote, with `stderr` to both of its outputs; an error is a failure with its words."""
    answer = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=90, check=False)
    assert answer.returncode == 0, f"docker {' '.join(arguments)}: {answer.stderr}"
    return answer.stdout + (answer.stderr if stderr else "")


class Metrics:
    """`metrics("name", label="value")`: the sum of what fits."""

    def __init__(self, text: str) -> None:
        self._samples = [
            sample for family in text_string_to_metric_families(text) for sample in family.samples
        ]

    def __call__(self, name: str, **labels: str) -> float:
        return sum(
            sample.value
            for sample in self._samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )


_scrapers: dict[str, str] = {}
"""Tokens that read metrics, by stack."""


@dataclass(frozen=True)
class Site:
    """One running stack."""

    values: dict
    project: str
    stand_ins: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def from_environment(cls) -> Site | None:
        file, project = os.environ.get("CARILLON_STACK_ENV"), os.environ.get("CARILLON_STACK_PROJECT")
        if not (file and project):
            return None
        values = {}
        for line in Path(file).read_text().splitlines():
            name, separator, value = line.partition("=")
            if separator:
                values[name] = "".join(shlex.split(value))
        return cls(values, project)

    @property
    def address(self) -> tuple[str, int]:
        url = urlsplit(self.values["CARILLON_URL"])
        return url.hostname, url.port or 443

    @property
    def tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.values["CARILLON_CA_CERT"])

    @property
    def token(self) -> str:
        return self.values["CARILLON_TOKEN"]

    def containers(self, service: str) -> list[str]:
        """The stack's own of a service, or those that stand in for them."""
        return self.stand_ins.get(service) or self.own(service)

    def own(self, service: str) -> list[str]:
        return docker(
            "ps", "-aq",
            "--filter", f"label=com.docker.compose.project={self.project}",
            "--filter", f"label=com.docker.compose.service={service}",
        ).split()  # fmt: skip

    # Containers beside the stack's own

    @contextlib.contextmanager
    def beside(
        self,
        service: str,
        name: str,
        command: Sequence[str] = (),
        *,
        entrypoint: str | None = None,
        environment: Mapping[str, str] | None = None,
        volumes: Sequence[str] = (),
        options: Sequence[str] = (),
        alias: str = "",
    ) -> Iterator[str]:
        """One more container like the service's: its image, networks, mounts and environment; its name.
        `alias`: what it is also called in its networks."""
        full = f"{self.project}-{name}"
        own = json.loads(docker("inspect", self.own(service)[0]))[0]
        variables = dict(pair.partition("=")[::2] for pair in own["Config"]["Env"])
        mounts = [
            f"{mount.get('Name') or mount['Source']}:{mount['Destination']}{'' if mount['RW'] else ':ro'}"
            for mount in own["Mounts"]
            # What a broker or a database stores is its own.
            if not (mount["Type"] == "volume" and service in ("rabbitmq", "postgresql"))
        ]
        tmpfs = [f"{path}:{how}" if how else path for path, how in (own["HostConfig"]["Tmpfs"] or {}).items()]
        subprocess.run(["docker", "rm", "--force", "--volumes", full], capture_output=True, timeout=90)
        called = f",alias={alias}" if alias else ""
        docker(
            "run", "--detach", "--name", full,
            *(f"--network=name={network}{called}" for network in own["NetworkSettings"]["Networks"]),
            *(f"--env={name}={value}" for name, value in {**variables, **(environment or {})}.items()),
            *(f"--volume={mount}" for mount in (*mounts, *volumes)),
            *(f"--tmpfs={mount}" for mount in tmpfs),
            *((f"--entrypoint={entrypoint}",) if entrypoint else ()),
            *options, own["Config"]["Image"], *command,
        )  # fmt: skip
        try:
            yield full
        except BaseException:
            print(f"--- {full}\n{docker('logs', '--tail', '40', full)}")
            raise
        finally:
            subprocess.run(["docker", "rm", "--force", "--volumes", full], capture_output=True, timeout=90)

    @contextlib.contextmanager
    def instead(
        self, services: Sequence[str], commands: Mapping[str, dict] | None = None, **options: Any
    ) -> Iterator[None]:
        """Containers of ours in place of the stack's `services`, under their names in its networks, with
        `options` of beside(), and `commands` for some of them. The stack's own come back afterwards."""
        stopped = [container for service in services for container in self.own(service)]
        docker("stop", "--time", "20", *stopped)
        try:
            with contextlib.ExitStack() as stack:
                for service in services:
                    own = {"command": ("run", service), **options, **(commands or {}).get(service, {})}
                    name = stack.enter_context(
                        self.beside(service, f"instead-{service}", alias=service, **own)
                    )
                    self.stand_ins[service] = [name]
                    stack.callback(self.stand_ins.pop, service)
                yield
        finally:
            docker("start", *stopped)
            self.await_serving()

    def await_serving(self, seconds: float = 150) -> None:
        """Until the API publishes and the websocket opens."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                self.publish([{"group": "control-limit_reached_1", "payload": {"group_name": "test"}}])
                with sync_connect(
                    f"wss://{self.address[0]}:{self.address[1]}/websocket/", ssl=self.tls, proxy=None,
                    additional_headers={"Authorization": f"Bearer {self.token}"}, open_timeout=5,
                ) as socket:  # fmt: skip
                    assert json.loads(socket.recv(15))["accept"] is True
                return
            except (OSError, AssertionError, InvalidHandshake, ConnectionClosed, TimeoutError, EOFError):
                assert time.monotonic() < deadline, "the stack does not serve"
                time.sleep(0.5)

    def get(self, path: str) -> Any:
        request = urllib.request.Request(
            f"{self.values['CARILLON_URL']}/api/v2{path}", headers={"Authorization": f"Bearer {self.token}"}
        )
        with urllib.request.urlopen(request, context=self.tls, timeout=15) as answer:
            return json.load(answer)

    def metrics(self) -> Metrics:
        """What the stack's processes have counted, as from a moment ago."""
        request = urllib.request.Request(
            f"{self.values['CARILLON_URL']}/api/v2/metrics/",
            headers={"Authorization": f"Bearer {self._scraper()}", "Accept": "text/plain"},
        )
        with urllib.request.urlopen(request, context=self.tls, timeout=15) as answer:
            return Metrics(answer.read().decode())

    def _scraper(self) -> str:
        if self.project not in _scrapers:
            words = "carillon manage create_token --username admin --scope metrics --days 1"
            _scrapers[self.project] = self.run_in("uwsgi", *words.split()).strip()
        return _scrapers[self.project]

    def await_connections(self, count: int, group: str = GROUP, seconds: float = 60) -> None:
        """Until exactly so many sockets are listed as subscribed to the group."""
        deadline = time.monotonic() + seconds
        while (found := self.get(f"/connections/?group={group}")["count"]) != count:
            assert time.monotonic() < deadline, f"{found} are listed, {count} are there"
            time.sleep(0.2)

    def ip(self, container: str) -> str:
        networks = json.loads(docker("inspect", container))[0]["NetworkSettings"]["Networks"]
        return next(iter(networks.values()))["IPAddress"]

    def publish_filler(self, megabytes: int) -> None:
        """So much into a group that hardly anybody hears."""
        for _ in range(megabytes):
            self.publish([{"group": FILLER, "payload": {"pad": "x" * 250_000}} for _ in range(4)])

    def logs(self, service: str, since: int) -> str:
        """What a service has written since then (seconds since 1970)."""
        return "".join(
            docker("logs", "--since", str(since), container, stderr=True)
            for container in self.containers(service)
        )

    def kill(self, service: str) -> None:
        """SIGKILL, to everything in the container at once."""
        for container in self.containers(service):
            docker("kill", "--signal", "KILL", container)

    def start(self, service: str) -> None:
        for container in self.containers(service):
            docker("start", container)

    def restart(self, service: str) -> None:
        """TERM, and again from the start."""
        for container in self.containers(service):
            docker("restart", "--time", "12", container)

    def cut_the_log(self, container: str, size: int) -> int:
        """What a broker that lost power may have lost: `size` bytes at the end of the newest segment of its
        event streams, which it does not sync. The container stands still. How many bytes are gone."""
        assert json.loads(docker("inspect", container))[0]["State"]["Running"] is False
        image = json.loads(docker("inspect", container))[0]["Image"]
        script = """
            segment=$(ls -t /var/lib/rabbitmq/mnesia/*/stream/*carillon_events_*/*.segment | head -1)
            before=$(stat -c %s "$segment")
            truncate -s "-$1" "$segment"
            echo $((before - $(stat -c %s "$segment")))
        """
        arguments = ("--user=0", "--network=none", "--entrypoint=bash", "--volumes-from", container, image)
        return int(docker("run", "--rm", *arguments, "-c", script, "cut", str(size)))

    def run_in(self, service: str, *command: str) -> str:
        return docker("exec", self.containers(service)[0], *command)

    def resident(self, service: str) -> int:
        """KiB of memory that a service's processes have now; 0 while none runs."""
        with contextlib.suppress(AssertionError):
            return sum(
                int(line.split()[1])
                for container in self.containers(service)
                for line in docker("top", container, "-eo", "pid,rss").splitlines()[1:]
            )
        return 0

    def publish(self, events: list[dict], **headers: str) -> None:
        """One request; returns when all are accepted. Raises OSError."""
        request = urllib.request.Request(
            f"{self.values['CARILLON_URL']}/api/v2/notifications/",
            json.dumps(events).encode(),
            {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json", **headers},
        )
        with urllib.request.urlopen(request, context=self.tls, timeout=15) as answer:
            assert answer.status == 202


@dataclass
class Publisher:
    """Numbers events and publishes them in order, each until it is confirmed: the same event under the same
    id."""

    site: Site
    batch: int = 5
    pause: float = 0.04
    size: int = 100
    confirmed: int = 0
    retries: int = 0
    longest: float = 0.0
    _stop: bool = False
    task: asyncio.Task | None = None

    def start(self) -> None:
        self.task = asyncio.create_task(self._run())

    async def stop(self) -> int:
        """Confirmed events in all."""
        self._stop = True
        await asyncio.wait_for(self.task, 150)
        return self.confirmed

    async def _run(self) -> None:
        while not self._stop:
            numbers = range(self.confirmed, self.confirmed + self.batch)
            events = [
                {"group": GROUP, "payload": {"n": n, "pad": "x" * self.size}, "id": str(uuid.uuid4())}
                for n in numbers
            ]
            begun = time.monotonic()
            while True:
                try:
                    await asyncio.to_thread(self.site.publish, events)
                    break
                except (OSError, ValueError, AssertionError):
                    self.retries += 1
                    assert time.monotonic() - begun < 120, "nothing can be published any more"
                    await asyncio.sleep(0.2)
            self.longest = max(self.longest, time.monotonic() - begun)
            self.confirmed += self.batch
            await asyncio.sleep(self.pause)


class Network:
    """A proxy between the clients and nginx. `cut()` breaks every connection; then, for a time, new ones are
    refused, or nothing gets through and nobody is told. `rate`: bytes a second that each client is sent."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        self.rate: float | None = None
        self.port = 0
        self._open: set[asyncio.Task] = set()
        self._through = asyncio.Event()
        self._through.set()
        self._refuse = False
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is None:
            return
        self._server.close()
        for task in list(self._open):
            task.cancel()

    async def cut(self, seconds: float, *, blackhole: bool = False) -> None:
        if blackhole:
            self._through.clear()
            await asyncio.sleep(seconds)
            self._break()
            self._through.set()
        else:
            self._refuse = True
            self._break()
            await asyncio.sleep(seconds)
            self._refuse = False

    def _break(self) -> None:
        for task in list(self._open):
            task.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refuse:
            writer.transport.abort()
            return
        task = asyncio.current_task()
        self._open.add(task)
        far = None
        try:
            far_reader, far = await asyncio.open_connection(*self.target)
            await asyncio.gather(self._pump(reader, far), self._pump(far_reader, writer, slow=True))
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._open.discard(task)
            for end in (writer, far):
                if end is not None:
                    end.transport.abort()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, slow: bool = False
    ) -> None:
        while data := await reader.read(65536 if self.rate is None or not slow else 256):
            await self._through.wait()
            writer.write(data)
            await writer.drain()
            sent = time.monotonic()
            while slow and self.rate is not None and (time.monotonic() - sent) * self.rate < len(data):
                await asyncio.sleep(0.1)
        raise ConnectionResetError

    async def away(self) -> None:
        """Nobody gets through until back()."""
        self._refuse = True
        self._break()

    async def back(self) -> None:
        self._refuse = False


@dataclass
class Watcher:
    """A client of version 2 that is only as clever as the protocol asks: it remembers one position."""

    site: Site
    name: str
    port: int
    groups: dict = field(default_factory=lambda: {"jobs": ["summary"]})
    pings: bool = True
    page: Page = None
    since: str | None = None
    first_position: str | None = None
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    codes: list = field(default_factory=list)
    reasons: list = field(default_factory=list)
    asked: bool = False
    resumes: int = 0
    """That had everything."""
    _task: asyncio.Task | None = None

    def start(self, first: int) -> None:
        self.page = Page(self.name, first)
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        wait = 0.1
        while True:
            try:
                async with connect(
                    f"wss://{self.site.address[0]}:{self.port}/websocket/",
                    ssl=self.site.tls,
                    subprotocols=["carillon.v2"],
                    additional_headers={"Authorization": f"Bearer {self.site.token}"},
                    open_timeout=5,
                    ping_interval=3 if self.pings else None,
                    ping_timeout=3,
                    max_size=None,
                    close_timeout=1,
                ) as socket:
                    self.page.connects += 1
                    async for text in socket:
                        self._hear(json.loads(text))
                        if self.since is not None and not self.asked:
                            self.asked = True
                            await socket.send(json.dumps({"groups": self.groups, "since": self.since}))
                        if self.ready.is_set():
                            wait = 0.1
                    self.codes.append(socket.close_code)
            except ConnectionClosed as closed:
                self.codes.append(closed.rcvd.code if closed.rcvd else None)
            except (OSError, InvalidHandshake, TimeoutError, EOFError):
                pass
            self.asked = False
            await asyncio.sleep(random.uniform(0, wait))
            wait = min(2.0, wait * 2)

    def _hear(self, frame: dict) -> None:
        if "event" in frame:
            if frame["group"] == GROUP:
                self.page.saw(frame["event"]["n"])
            self.since = frame["position"]
        elif frame.get("recovered") is False:
            self.reasons.append(frame["reason"])
            self.page.told_of_a_gap()
            self.since = frame["position"]
            self.ready.set()
        elif "recovered" in frame:
            self.resumes += 1
            self.since = frame["position"]
            self.ready.set()
        elif frame.get("accept") is True:
            if self.since is None:
                self.since = self.first_position = frame["position"]
        elif "position" in frame:
            self.since = frame["position"]


@dataclass
class Old:
    """A client of version 1: nothing is lost while it is connected, and when it is not it knows that it was
    not."""

    site: Site
    name: str
    port: int
    page: Page = None
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    codes: list = field(default_factory=list)
    _task: asyncio.Task | None = None

    def start(self, first: int) -> None:
        self.page = Page(self.name, first)
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            try:
                async with connect(
                    f"wss://{self.site.address[0]}:{self.port}/websocket/?token={self.site.token}",
                    ssl=self.site.tls, open_timeout=5, ping_interval=3, ping_timeout=3, close_timeout=1,
                ) as socket:  # fmt: skip
                    self.page.connects += 1
                    await socket.send(json.dumps({"groups": {"jobs": ["summary"]}}))
                    async for text in socket:
                        frame = json.loads(text)
                        if "n" in frame:
                            self.page.saw(frame["n"])
                        elif "groups_current" in frame:
                            self.ready.set()
                    self.codes.append(socket.close_code)
            except ConnectionClosed as closed:
                self.codes.append(closed.rcvd.code if closed.rcvd else None)
            except (OSError, InvalidHandshake, TimeoutError, EOFError):
                pass
            self.page.told_of_a_gap()  # the connection ended: that is how version 1 is told
            await asyncio.sleep(random.uniform(0.1, 0.5))
