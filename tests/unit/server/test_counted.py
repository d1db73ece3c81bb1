"""How websockets ended, as the server counts it."""

from __future__ import annotations

import json

import pytest
from websockets.exceptions import ConnectionClosed

from tests.unit.server.test_server import Running


@pytest.fixture
def server():
    running = Running("--ping-interval", "1", "--ping-timeout", "1")
    yield running
    running.stop()


async def counted(server, wanted: dict[str, int]) -> None:
    """What the server has counted becomes what is wanted: an end is noticed a moment later."""
    async with server.connect() as asking:
        for _ in range(2000):
            await asking.send(json.dumps({"do": "closed"}))
            found = json.loads(await asking.recv())
            if found == wanted:
                return
    assert found == wanted


async def test_each_end_is_counted_once_by_who_ended_it(server):
    for code in (1008, 4401, 4999):
        async with server.connect() as socket:
            await socket.send(json.dumps({"do": "close", "code": code}))
            with pytest.raises(ConnectionClosed):
                await socket.recv()
    await counted(server, {"1008": 1, "4401": 1, "other": 1})
    async with server.connect():
        pass
    cut = await server.connect()
    cut.transport.abort()
    # Three that left by themselves: one of them asked above.
    await counted(server, {"1008": 1, "4401": 1, "other": 1, "client": 3})
