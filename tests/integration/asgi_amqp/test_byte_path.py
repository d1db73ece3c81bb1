"""Without the byte path everything goes through aiormq's own calls: slower, and the same."""

import asyncio
from dataclasses import replace

import pytest

from asgi_amqp import ChannelFull
from asgi_amqp.transport import Transport
from asgi_amqp.worker import Worker
from tests.integration.asgi_amqp.broker import eventually


@pytest.fixture
def plain_layer(make_layer):
    """A function that makes layers whose links know no byte path."""

    def make(**options):
        layer = make_layer(**options)
        object.__setattr__(layer.config, "options", replace(layer.config.options, byte_path=False))
        return layer

    return make


async def receive(layer, channel):
    return await asyncio.wait_for(layer.receive(channel), 20)


async def test_every_kind_of_channel_works_without_the_byte_path(plain_layer):
    layer = plain_layer(durable=["durable"], capacity=1000)
    local = await layer.new_channel()
    await layer.group_add("g", local)
    for channel in (local, "normal", "durable"):
        await asyncio.gather(*(layer.send(channel, {"type": "a", "number": n}) for n in range(100)))
        assert [(await receive(layer, channel))["number"] for _ in range(100)] == list(range(100))
    for number in range(300):
        await layer.group_send("g", {"type": "a", "number": number, "text": "x" * 1000})
    assert [(await receive(layer, local))["number"] for _ in range(300)] == list(range(300))
    await asyncio.to_thread(layer.publisher.group_send, "g", {"type": "sync"})
    assert await receive(layer, local) == {"type": "sync"}
    link = layer.session().receiver.supervisor.current
    assert link.plain
    assert not link._transport.taps
    assert not layer.stats.lost


async def test_a_full_channel_and_a_queue_that_is_gone_without_the_byte_path(plain_layer, broker):
    layer = plain_layer(durable=["durable"], capacity=2)
    for _ in range(2):
        await layer.send("small", {"type": "a"})
    with pytest.raises(ChannelFull):
        await layer.send("small", {"type": "a"})
    await layer.send("durable", {"type": "a", "number": 1})
    await broker.do("ctl", "delete_queue", "--vhost", "carillon", f"{layer.prefix}.d.durable")
    await layer.send("durable", {"type": "a", "number": 2})
    assert (await receive(layer, "durable"))["number"] == 2


async def test_a_worker_without_the_byte_path(plain_layer):
    layer = plain_layer(durable=["jobs"])
    got = []

    async def handle(message):
        got.append(message["number"])
        if message["number"] == 3 and got.count(3) < 2:
            raise RuntimeError("once")

    worker = Worker(layer, handle, "jobs", handle_signals=False, retry=(0.01, 0.02))
    running = asyncio.create_task(worker.run())
    await layer.send_many([("jobs", {"type": "a", "number": number}) for number in range(20)])
    await eventually(lambda: len(got) == 21)
    worker.stop()
    await asyncio.wait_for(running, 30)
    assert sorted(got) == sorted([*range(20), 3])


async def test_bytes_that_are_not_as_expected_are_left_to_aiormq():
    reader = asyncio.StreamReader()
    transport = Transport(reader, asyncio.get_running_loop())
    transport.data_received(b"AMQP\x00\x00\x09\x01 and what follows")
    transport.data_received(b" is left alone")
    reader.feed_eof()
    assert transport.plain
    assert await reader.read() == b"AMQP\x00\x00\x09\x01 and what follows is left alone"
