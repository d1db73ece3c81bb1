"""Close codes as daphne and Autobahn really send them, which no ASGI test sees."""

from __future__ import annotations

import subprocess
import sys

import pytest

# In a process of its own: daphne's protocol brings Twisted along, and the change is to its class.
SCRIPT = """
import sys
import daphne.server
from daphne.ws_protocol import WebSocketProtocol
from carillon.websocket import daphne_fixes

if sys.argv[2] == "mended":
    daphne_fixes.install()
sent = []
protocol = WebSocketProtocol()
protocol.state = WebSocketProtocol.STATE_OPEN
protocol.closeHandshakeTimeout = 0
protocol.sendFrame = lambda opcode, payload: sent.append((opcode, int.from_bytes(payload[:2], "big")))
protocol.serverClose(int(sys.argv[1]))
print(sent == [(8, int(sys.argv[1]))], protocol.failByDrop if sys.argv[2] == "mended" else None)
"""


def run(code: int, how: str) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHONPATH": "src", "DJANGO_SETTINGS_MODULE": "tests.settings"}
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, str(code), how],
        capture_output=True, text=True, timeout=60, env=environment,
    )  # fmt: skip


@pytest.mark.parametrize("code", [1008, 1012, 1013, 4401, 4403, 4408])
def test_every_code_of_ours_is_sent(code):
    done = run(code, "mended")
    assert done.stdout.split() == ["True", "False"], done.stderr


def test_why_it_is_needed():
    """When this fails, daphne or Autobahn has learnt it and `daphne_fixes` can go."""
    assert "invalid close code 1012" in run(1012, "as it is").stderr


STOP = """
import asyncio
import daphne.server
from carillon.websocket import daphne_fixes

class Server(daphne.server.Server):
    def __init__(self):
        self.connections = {}

async def main():
    said = []

    async def application():
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(0.01)
            said.append("goodbye")

    server = Server()
    running = [asyncio.ensure_future(application()) for _ in range(2)]
    server.connections = {1: {}, **{task: {"application_instance": task} for task in running}}
    await asyncio.sleep(0)
    await server.kill_all_applications().asFuture(asyncio.get_running_loop())
    print(said)

daphne_fixes.install()
asyncio.run(main())
"""


def test_a_stop_reaches_every_application_though_one_connection_has_none():
    environment = {"PYTHONPATH": "src", "DJANGO_SETTINGS_MODULE": "tests.settings"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", STOP],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
    )
    assert done.stdout.strip() == "['goodbye', 'goodbye']", done.stderr
