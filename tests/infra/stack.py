"""The running stack that the tests look at: its addresses, its containers, its logs."""

import json
import os
import shlex
import ssl
import subprocess
import time
import urllib.parse
import urllib.request
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import testinfra
from websockets.sync.client import connect

from dev import account
from tests.tls import for_threads

SERVICES = ("nginx", "uwsgi", "daphne", "runworker", "rabbitmq", "postgresql")


def docker(*arguments: str, timeout: float = 60) -> str:
    """What docker wrote to both its outputs; an error of docker is a failure with its words."""
    answer = subprocess.run(
        ["docker", *arguments], capture_output=True, text=True, timeout=timeout, check=False
    )
    assert answer.returncode == 0, f"docker {' '.join(arguments)}: {answer.stderr}"
    return answer.stdout + answer.stderr


def wait(what: str, condition, seconds: float, pause: float = 0.1):
    """The first true value of `condition()`; after `seconds` a failure that says what was waited for."""
    deadline = time.monotonic() + seconds
    error = None
    while True:
        try:
            if value := condition():
                return value
        except (OSError, AssertionError, EOFError) as raised:
            error = raised
        assert time.monotonic() < deadline, f"not within {seconds} s: {what} ({error!r})"
        time.sleep(pause)


@dataclass(frozen=True)
class Stack:
    """`values`: the environment file; `project`: Compose's; `state`: where secrets and certificates lie.

    `family` and `key` make a group of the application that runs: tests emit to it and hear it.
    """

    values: dict
    project: str
    state: Path
    family: str = "schedules"
    key: str | int = "changed"

    @classmethod
    def from_environment(cls):
        file, project = os.environ.get("CARILLON_STACK_ENV"), os.environ.get("CARILLON_STACK_PROJECT")
        if not (file and project):
            return None
        state = Path(os.environ.get("CARILLON_STACK_STATE") or Path(file).parent)
        return cls(account.read(Path(file)), project, state)

    @classmethod
    def of(cls, state: Path, project: str):
        """One that a test has started itself."""
        return cls(account.read(state / "env"), project, state)

    def __hash__(self):
        return hash(self.project)

    @property
    def group(self) -> str:
        return f"{self.family}-{self.key}"

    @property
    def subscription(self) -> dict:
        return {self.family: [self.key]}

    # Addresses ---------------------------------------------------------------------------------------------

    def address(self, scheme: str = "https") -> tuple[str, int]:
        url = urllib.parse.urlsplit(self.values["CARILLON_URL" if scheme == "https" else "CARILLON_HTTP_URL"])
        return url.hostname, url.port or {"https": 443, "http": 80}[scheme]

    def tls(self, *protocols: str) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.values["CARILLON_CA_CERT"])
        if protocols:
            context.set_alpn_protocols(list(protocols))
        return context

    def api(self, path: str, body=None, token: str | None = None, method: str | None = None):
        """GET, or POST of `body`, or `method`, as the admin; the JSON answer (None: it was empty). Errors are
        urllib's."""
        request = urllib.request.Request(
            self.values["CARILLON_URL"] + path,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Authorization": f"Bearer {token or self.values['CARILLON_TOKEN']}",
                "Content-Type": "application/json",
            },
            method=method,
        )
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=self.tls())
        )
        with opener.open(request, timeout=15) as answer:
            return json.loads(answer.read() or "null")

    def websocket(self, token: str | None = None, scheme: str = "https", **options):
        """An open websocket, the token in its URL."""
        host, port = self.address(scheme)
        token = token or self.values["CARILLON_TOKEN"]
        url = f"{scheme.replace('http', 'ws')}://{host}:{port}/websocket/?token={token}"
        tls = for_threads(self.tls()) if scheme == "https" else None
        return connect(url, ssl=tls, proxy=None, open_timeout=10, close_timeout=2, **options)

    def deliver(self) -> bool:
        """One event all the way: the API to uwsgi, the broker, runworker, daphne, nginx, a websocket."""
        mark = f"infra-{time.monotonic_ns()}"
        with self.websocket() as socket:
            assert json.loads(socket.recv(10))["accept"] is True
            socket.send(json.dumps({"groups": self.subscription}))
            assert json.loads(socket.recv(10))["groups_current"] == [self.group]
            self.api("/api/v2/notifications/", {"group": self.group, "payload": {"mark": mark}})
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline:
                if json.loads(socket.recv(10)).get("mark") == mark:
                    return True
        return False

    # Containers --------------------------------------------------------------------------------------------

    @cache  # noqa: B019 - one stack in a test session
    def container(self, service: str) -> str:
        """The container's id: it stays the same when the container restarts."""
        label = f"label=com.docker.compose.service={service}"
        ids = docker(
            "ps", "--quiet", "--filter", f"label=com.docker.compose.project={self.project}", "--filter", label
        )
        assert len(ids.split()) == 1, f"{service}: {len(ids.split())} containers"
        return ids.strip()

    def host(self, service: str):
        """testinfra's view into the container."""
        return testinfra.get_host(f"docker://{self.container(service)}")

    def inspect(self, service: str) -> dict:
        return json.loads(docker("inspect", self.container(service)))[0]

    def healthy(self, service: str) -> bool:
        return self.inspect(service)["State"].get("Health", {}).get("Status") == "healthy"

    def logs(self, service: str, *options: str) -> str:
        return docker("logs", *options, self.container(service))

    def processes(self, service: str) -> list[tuple[int, int, str]]:
        """(process id on this machine, user id, command line) of each process in the container."""
        lines = docker("top", self.container(service), "-eo", "pid,uid,args").splitlines()[1:]
        rows = [line.split(None, 2) for line in lines]
        return [(int(pid), int(uid), command) for pid, uid, command in rows]

    def access_log(self, agent: str) -> list[dict]:
        """nginx's lines for requests of that User-Agent, as dictionaries."""
        found = []
        for line in self.logs("nginx").splitlines():
            if f'agent="{agent}"' in line:
                found.append(dict(part.partition("=")[::2] for part in shlex.split(line)))
        return found
