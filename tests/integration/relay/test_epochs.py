"""An epoch has one owner and an end: the active relay opens the next, the old stream says so, nobody stays
deaf, although the old stream is still there and says nothing of its own."""

from __future__ import annotations

import asyncio
import subprocess

import aio_pika
import pytest

from carillon.events.event import END, unpack
from tests.integration.relay.queue_of_events import URL, event, the_layer

pytestmark = pytest.mark.stack


@pytest.fixture
def sql(container):
    """`sql("SELECT …")`: what the stack's database answers, as text."""
    if not URL:
        pytest.skip("CARILLON_TEST_AMQP_URL names no broker")
    inside = container("postgresql").id

    def run(statement: str) -> str:
        command = ["docker", "exec", inside, "psql", "-d", "carillon", "-qtAc", statement]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.strip()

    return run


async def last_of(stream: str) -> bytes:
    """The newest message of a stream."""
    connection = await aio_pika.connect(URL)
    async with connection:
        channel = await connection.channel()
        await channel.set_qos(100)
        queue = await channel.get_queue(stream)
        found: asyncio.Queue[bytes] = asyncio.Queue()

        async def note(message: aio_pika.abc.AbstractIncomingMessage) -> None:
            found.put_nowait(message.body)
            await message.ack()

        await queue.consume(note, arguments={"x-stream-offset": "last"})
        body = await asyncio.wait_for(found.get(), 10)
        while True:  # a chunk has one message or more
            try:
                body = await asyncio.wait_for(found.get(), 0.5)
            except TimeoutError:
                return body


async def told(socket) -> str:
    """The reason for which this client must fetch its state anew."""
    while (frame := await asyncio.to_thread(socket.frame)).get("recovered") is not False:
        pass
    return frame["reason"]


async def test_an_epoch_that_is_taken_away_has_an_end_and_everybody_follows(stack, sql):
    with stack.socket(version=2) as socket:
        old = socket.frame()["position"].partition(":")[0]
        socket.subscribe({"jobs": ["summary"]})
        async with the_layer() as layer:
            await layer.send("notifications", event('{"n": 0}'))
            assert (await asyncio.to_thread(socket.frame))["event"] == {"n": 0}
            sql("DELETE FROM carillon_head")
            assert await told(socket) == "epoch"
            await layer.send("notifications", event('{"n": 1}'))
            frame = await asyncio.to_thread(socket.frame)
            while "event" not in frame:
                frame = await asyncio.to_thread(socket.frame)
    new = frame["position"].partition(":")[0]
    assert frame["event"] == {"n": 1}
    assert old != new == sql("SELECT epoch FROM carillon_head")
    assert unpack(await last_of(f"carillon.events.{old}")).word == END + new.encode()
