"""Autobahn's cases for websocket servers, against a project's own consumer behind the server and nginx.

nginx has the site file of `make dev`, the server is started with production's argv. kosoku, which runs the
cases, asks for the path / of a plain server: a proxy between the two sets the path, and speaks TLS.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from carillon.process import environment, launcher
from tests.infra import wire
from tests.infra.stack import wait
from tests.packages import suites
from tests.unit.nginx import running, tree

ROOT = Path(__file__).parents[3]
PATH = b"/websocket/echo/"
CASES = Path(__file__).parent / "echo" / "cases.py"
PARTS = ["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "9.*", "10.*"]
"""All that are implemented: 12 and 13 want permessage-deflate, which the server does not offer."""
IMPLEMENTED = 301
ROUND_TRIPS = ["9.7.*", "9.8.*"]
"""A thousand round trips each, a minute of them: `make test-long` has them, and 9.1 to 9.6 the sizes."""
LONG = bool(os.environ.get("CARILLON_LONG"))


@contextmanager
def proxy(address: tuple[str, int], tls: ssl.SSLContext | None) -> Iterator[int]:
    """The port of a proxy to `address` that asks for PATH, whatever it is asked for."""
    begun: Future[tuple[int, Callable[[], None]]] = Future()

    async def pipe(reader, writer):
        with suppress(OSError):
            while data := await reader.read(2**16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def connected(reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        name = {} if tls is None else {"server_hostname": "localhost"}
        there, back = await asyncio.open_connection(*address, ssl=tls, **name)
        _, *lines = head.split(b"\r\n")
        lines = [b"Host: localhost" if line.lower().startswith(b"host:") else line for line in lines]
        back.write(b"\r\n".join([b"GET " + PATH + b" HTTP/1.1", *lines]))
        await asyncio.gather(pipe(reader, back), pipe(there, writer))

    async def serve():
        ended, loop = asyncio.Event(), asyncio.get_running_loop()
        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        begun.set_result((server.sockets[0].getsockname()[1], lambda: loop.call_soon_threadsafe(ended.set)))
        await ended.wait()
        server.close()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    port, end = begun.result(10)
    try:
        yield port
    finally:
        end()
        thread.join()


@pytest.fixture(scope="module")
def front(tmp_path_factory):
    """nginx, and behind it the server with the project."""
    folder, port = tmp_path_factory.mktemp("autobahn"), running.free_port()
    argv = launcher.argv("daphne", environment.load())
    argv[argv.index("-p") + 1], argv[argv.index("-b") + 1] = str(port), "127.0.0.1"
    site = {"daphne": [f"127.0.0.1:{port}"], "uwsgi": ["127.0.0.1:1"], "resolver": None}
    log = folder / "server.log"
    with (
        log.open("w") as errors,
        running.nginx(folder / "etc", tree.values("development") | site) as front,
        subprocess.Popen(
            argv, cwd=ROOT, stdout=errors, stderr=errors,
            env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}",
                 "DJANGO_SETTINGS_MODULE": "tests.integration.sockets.echo.settings"},
        ) as server,
    ):  # fmt: skip
        try:
            wait("the server listens", lambda: not wire.connect(("127.0.0.1", port)).close(), 30)
            yield front
        finally:
            server.terminate()


def run(port: int, cases: list[str], without: list[str]) -> list[dict]:
    """What became of these cases."""
    python, url = suites.environment("autobahn"), f"ws://127.0.0.1:{port}"
    done = subprocess.run(
        [python, CASES, url, json.dumps(cases), json.dumps(without)],
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_every_case_passes(front, scheme):
    address, tls = (front.http, None) if scheme == "http" else (front.https, front.tls)
    with proxy(address, tls) as port:
        results = run(port, PARTS, [] if LONG else ROUND_TRIPS)
    assert [each for each in results if not each["passed"]] == []
    assert len(results) == IMPLEMENTED - (0 if LONG else 12)
