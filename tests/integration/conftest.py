"""A running stack, as the shell file named by CARILLON_STACK_ENV describes it."""

from __future__ import annotations

import json
import os
import shlex
import ssl
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.tls import for_threads

WAIT = 20  # seconds until a frame that should come counts as lost


@dataclass
class Stack:
    url: str
    http_url: str
    ca: str
    username: str
    password: str
    token: str

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname

    @property
    def port(self) -> int:
        return urlsplit(self.url).port

    def api(self, method: str, path: str, json: Any = None, token: str | None = None) -> requests.Response:
        return requests.request(
            method,
            f"{self.url}/api/v2{path}",
            json=json,
            headers={"Authorization": f"Bearer {token or self.token}"},
            verify=self.ca,
            timeout=WAIT,
        )

    def post(self, path: str, json: Any = None, **options: Any) -> Any:
        answer = self.api("POST", path, json, **options)
        assert answer.status_code in (201, 202), answer.text
        return answer.json()

    def new_job(self, **fields: Any) -> dict[str, Any]:
        return self.post("/jobs/", {"name": f"test {uuid.uuid4()}", **fields})

    @contextmanager
    def socket(
        self, path: str | None = None, *, plain: bool = False, version: int = 1, **headers: str
    ) -> Iterator[Socket]:
        """A connected client; by default with the admin's token in the URL, over TLS."""
        base = (self.http_url if plain else self.url).replace("http", "ws", 1)
        context = None if plain else for_threads(ssl.create_default_context(cafile=self.ca))
        path = f"/websocket/?token={self.token}" if path is None else path
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        with connect(
            base + path,
            ssl=context,
            additional_headers=headers,
            subprotocols=["carillon.v2"] if version == 2 else None,
            max_queue=None,
            proxy=None,
        ) as raw:
            yield Socket(raw)


class Socket:
    """A client that is not Tower's: the plain protocol."""

    def __init__(self, raw: ClientConnection) -> None:
        self.raw = raw

    def closed(self) -> int:
        """The close code, once the server has closed; whatever comes before is passed over."""
        with suppress(ConnectionClosed):
            while True:
                self.frame()
        return self.raw.close_code

    def frame(self, timeout: float = WAIT) -> dict[str, Any]:
        return json.loads(self.raw.recv(timeout))

    def subscribe(self, groups: dict[str, list], **more: Any) -> dict[str, Any]:
        self.raw.send(json.dumps({"groups": groups, **more}))
        return self.frame()


def read_shell_file(path: str) -> dict[str, str]:
    values = {}
    for line in Path(path).read_text().splitlines():
        words = shlex.split(line, comments=True)
        for word in words:
            name, equals, value = word.partition("=")
            if equals:
                values[name] = value
    return values


@pytest.fixture(scope="session")
def stack() -> Stack:
    path = os.environ.get("CARILLON_STACK_ENV")
    if not path:
        pytest.skip("CARILLON_STACK_ENV names no running stack")
    values = read_shell_file(path)
    return Stack(
        url=values["CARILLON_URL"].rstrip("/"),
        http_url=values["CARILLON_HTTP_URL"].rstrip("/"),
        ca=values["CARILLON_CA_CERT"],
        username=values["CARILLON_USERNAME"],
        password=values["CARILLON_PASSWORD"],
        token=values["CARILLON_TOKEN"],
    )


class Container:
    """One service of the stack's project, by the Docker engine."""

    def __init__(self, project: str, service: str) -> None:
        self.project = project
        self.service = service

    def _docker(self, *arguments: str) -> str:
        done = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=60, check=True)
        return done.stdout.strip()

    @property
    def id(self) -> str:
        found = self._docker(
            "ps", "--all", "--quiet",
            "--filter", f"label=com.docker.compose.project={self.project}",
            "--filter", f"label=com.docker.compose.service={self.service}",
        )  # fmt: skip
        return found.split()[0]

    def kill(self) -> None:
        self._docker("kill", "--signal", "KILL", self.id)

    def stop(self, timeout: int) -> None:
        self._docker("stop", "--time", str(timeout), self.id)

    def start(self) -> None:
        self._docker("start", self.id)

    def wait_until_healthy(self) -> None:
        deadline = time.monotonic() + 90
        while self.state()["Health"]["Status"] != "healthy":
            assert time.monotonic() < deadline, f"{self.service} does not become healthy"
            time.sleep(0.2)

    def state(self) -> dict[str, Any]:
        return json.loads(self._docker("inspect", "--format", "{{json .State}}", self.id))


@pytest.fixture
def container() -> Iterator[Callable[[str], Container]]:
    """`container("runworker")`: a service to kill or stop; it runs again after the test."""
    project = os.environ.get("CARILLON_STACK_PROJECT")
    if not project:
        pytest.skip("CARILLON_STACK_PROJECT names no compose project")
    used = []

    def of(service: str) -> Container:
        used.append(Container(project, service))
        return used[-1]

    yield of
    for one in used:
        one.start()
        one.wait_until_healthy()
