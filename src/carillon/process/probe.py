"""`carillon probe <process>`: does a process serve? The health check of containers and hosts.

It asks the process for what it is there to give, in the protocol that its clients speak, on the same machine.
Whether the database or the broker is up is not asked: a restart of uwsgi would not mend them.
"""

from __future__ import annotations

import base64
import os
import socket
import struct
import time
from pathlib import Path

from carillon.process.environment import Environment
from carillon.process.launcher import DAPHNE_PORT, PROCESS_VARIABLE, SINCE_VARIABLE, UWSGI_PORT, declared

TIMEOUT_SECONDS = 4.0
SETTLED_SECONDS = 5.0  # supervisord's startsecs
_ESTABLISHED = "01"  # the state column of /proc/net/tcp


class NotServing(Exception):
    """The text says what was asked and what came back."""


def probe(process: str, environment: Environment) -> str:
    """One line that says what was seen. Raises `NotServing` when the process does not do its work."""
    try:
        if process == "uwsgi":
            return _uwsgi(environment)
        if process == "daphne":
            return _daphne(environment)
        if process == "runworker":
            return _runworker(environment)
        return _declared(process, environment)
    except OSError as error:
        raise NotServing(f"{process}: {error}") from None


def _uwsgi(environment: Environment) -> str:
    host = _public_host(environment)
    answer = _ask(environment, UWSGI_PORT, uwsgi_request("/api/v2/ping/", host))
    line = answer.partition(b"\r\n")[0].decode("latin-1")
    if " 200 " not in f"{line} ":
        raise NotServing(f"uwsgi: /api/v2/ping/ answered {line or 'nothing'!r}")
    return f"uwsgi: {line}"


def _daphne(environment: Environment) -> str:
    # Without credentials: the handshake is accepted, then the application says that it refuses, and closes.
    key = base64.b64encode(os.urandom(16)).decode()
    request = (
        f"GET /websocket/ HTTP/1.1\r\nHost: {_public_host(environment)}\r\nConnection: Upgrade\r\n"
        f"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n"
    )
    answer = _ask(environment, DAPHNE_PORT, request.encode())
    line = answer.partition(b"\r\n")[0].decode("latin-1")
    if not line.startswith("HTTP/1.1 101"):
        raise NotServing(f"daphne: a websocket handshake got {line or 'nothing'!r}")
    return f"daphne: {line}"


def _runworker(environment: Environment) -> str:
    """It has no port: it works while its connection to the broker stands. Heartbeats from the event loop keep
    that alive, so a process whose loop hangs loses it within seconds.
    """
    ports = {int(url.rpartition("/")[0].rpartition(":")[2]) for url in environment.amqp_urls}
    processes = [path for path in Path("/proc").glob("[0-9]*") if _is_runworker(path)]
    if not processes:
        raise NotServing("runworker: no such process")
    for process in processes:
        if not _sockets(process) & established(_proc_net(process), ports):
            raise NotServing(f"runworker: process {process.name} has no connection to the broker")
    return f"runworker: {len(processes)} connected to the broker"


def _declared(process: str, environment: Environment) -> str:
    """A process that the project has declared: as many as there are to be run, and none that has just begun.
    No more can be said of it.
    """
    # By when each began: its forks have its environment.
    begun = {
        variables[SINCE_VARIABLE]
        for variables in map(_environ, Path("/proc").glob("[0-9]*"))
        if variables.get(PROCESS_VARIABLE) == process
    }
    # In development each is alone in its container.
    wanted = 1 if environment.development else declared().processes[process].number
    if len(begun) < wanted:
        raise NotServing(f"{process}: {len(begun) or 'no'} such process of {wanted}: its log says why")
    youngest = time.monotonic() - max(map(float, begun))
    if youngest < SETTLED_SECONDS:
        raise NotServing(
            f"{process}: runs for {youngest:.0f} s, which says nothing before {SETTLED_SECONDS:g}"
        )
    return f"{process}: {wanted} run"


def _environ(process: Path) -> dict[str, str]:
    try:
        text = (process / "environ").read_bytes().decode("latin-1")
    except OSError:  # it ended meanwhile, or is somebody else's
        return {}
    return dict(line.partition("=")[::2] for line in text.split("\0"))


def uwsgi_request(path: str, host: str) -> bytes:
    """A GET in the uwsgi protocol: a 4-byte header (modifier, size, modifier) and length-prefixed pairs."""
    variables = {
        "REQUEST_METHOD": "GET",
        "REQUEST_URI": path,
        "PATH_INFO": path,
        "QUERY_STRING": "",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_NAME": host,
        "SERVER_PORT": "80",
        "REMOTE_ADDR": "127.0.0.1",
        "HTTP_HOST": host,
    }
    body = b"".join(
        struct.pack("<H", len(part)) + part
        for pair in variables.items()
        for part in (pair[0].encode(), pair[1].encode())
    )
    return struct.pack("<BHB", 0, len(body), 0) + body


def established(tables: list[str], ports: set[int]) -> set[str]:
    """The inodes of established connections to a remote port in `ports`; `tables` as in /proc/net/tcp."""
    inodes = set()
    for table in tables:
        for line in table.splitlines()[1:]:
            columns = line.split()
            if columns[3] == _ESTABLISHED and int(columns[2].rpartition(":")[2], 16) in ports:
                inodes.add(columns[9])
    return inodes


def _public_host(environment: Environment) -> str:
    """A host name that the application accepts."""
    host = next((name for name in environment.allowed_hosts if not name.startswith("*")), "localhost")
    return host.removeprefix(".")


def _ask(environment: Environment, port: int, request: bytes) -> bytes:
    """Send `request` and return the first bytes of the answer, up to the end of the first line."""
    # Servers that bind every address are asked on loopback.
    address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(environment.bind, environment.bind)  # noqa: S104
    with socket.create_connection((address, port), TIMEOUT_SECONDS) as connection:
        connection.sendall(request)
        answer = b""
        while b"\r\n" not in answer and len(answer) < 4096:
            part = connection.recv(4096)
            if not part:
                break
            answer += part
    return answer


def _is_runworker(process: Path) -> bool:
    try:
        arguments = (process / "cmdline").read_bytes().split(b"\0")
    except OSError:  # it ended meanwhile
        return False
    # With more words it is Channels' own, and the project's.
    return arguments[1:] == [b"-m", b"django", b"runworker", b""]


def _sockets(process: Path) -> set[str]:
    inodes = set()
    for descriptor in (process / "fd").iterdir():
        try:
            target = os.readlink(descriptor)
        except OSError:  # closed meanwhile
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    return inodes


def _proc_net(process: Path) -> list[str]:
    tables = (process / "net" / "tcp", process / "net" / "tcp6")
    return [table.read_text() for table in tables if table.exists()]
