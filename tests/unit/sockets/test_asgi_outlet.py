"""What it costs to wait for a server that tells nobody that it has room."""

from __future__ import annotations

import asyncio

import pytest

from carillon.fanout.cursor import PIECE
from carillon.fanout.forms import Sse
from carillon.sockets import asgi_outlet
from carillon.sockets.asgi_outlet import AsgiOutlet


@pytest.fixture
def pauses(monkeypatch):
    """How long it paused, each time; none takes any time."""
    made = []
    pause = asyncio.sleep

    async def sleep(seconds):
        made.append(seconds)
        await pause(0)

    monkeypatch.setattr(asgi_outlet.asyncio, "sleep", sleep)
    return made


async def test_who_takes_nothing_is_looked_at_ever_less_often(pauses):
    holds = iter([9 * PIECE] * 9 + [8 * PIECE] * 4 + [PIECE] * 2)  # it takes nothing, something, nothing, all
    sent = asyncio.Event()

    async def send(message):
        sent.set()

    outlet = AsgiOutlet(Sse, send, lambda data: {}, buffered=lambda: next(holds))
    outlet.put(b"x")
    async with asyncio.timeout(5):
        await sent.wait()
    outlet.cancel()
    assert pauses == [0.01, 0.02, 0.04, 0.08, 0.16, 0.25, 0.25, 0.25, 0.01, 0.02, 0.04, 0.08]
