"""A broker with limits, and a layer with its own: one clear error, nobody else is disturbed."""

import asyncio
import contextlib
import time

import pytest
from asgiref.sync import async_to_sync

import asgi_amqp
from asgi_amqp import ChannelFull, LayerError
from tests.integration.asgi_amqp.broker import script
from tests.integration.asgi_amqp.proxy import Proxy

MIB = 1 << 20


async def receive(layer, channel, seconds=20):
    return await asyncio.wait_for(layer.receive(channel), seconds)


@contextlib.asynccontextmanager
async def limited(broker, erlang, back):
    """The broker with a setting that new connections meet."""
    await broker.do("ctl", "eval", erlang)
    try:
        yield
    finally:
        await broker.do("ctl", "eval", back)


def setting(name, value, default):
    return tuple(f"application:set_env(rabbit, {name}, {each})." for each in (value, default))


MANY_CHANNELS = """
import time
layer = make_layer(timeout=15.0)
local = await layer.new_channel()
began = time.monotonic()
results = await asyncio.gather(
    *(layer.send(f"normal{n}", {"type": "a"}) for n in range(40)), return_exceptions=True
)
assert time.monotonic() - began < 30
for result in results:
    assert result is None or isinstance(result, asgi_amqp.LayerError), result
assert sum(result is None for result in results) >= 10, results
await layer.send(local, {"type": "b"})
assert await asyncio.wait_for(layer.receive(local), 10) == {"type": "b"}
reading = [asyncio.create_task(asyncio.wait_for(layer.receive(f"normal{n}"), 40)) for n in range(40)]
await asyncio.wait(reading, timeout=2)
await layer.send(local, {"type": "c"})
assert await asyncio.wait_for(layer.receive(local), 10) == {"type": "c"}
for each in reading:
    each.cancel()
await asyncio.gather(*reading, return_exceptions=True)
await layer.close()
print("over", sum(result is None for result in results))
"""


async def test_a_broker_that_allows_twenty_channels(broker):
    """40 normal channels at once, sent to and read; in a process of its own, for this one would stop too."""
    async with limited(broker, *setting("channel_max", 20, 2047)):
        printed = await asyncio.to_thread(script, broker, MANY_CHANNELS, 90)
    assert "over" in printed


@pytest.mark.parametrize("most", [4096, 0])
async def test_frames_as_large_as_the_broker_allows(make_layer, broker, most):
    text = "x" * 300_000
    async with limited(broker, *setting("frame_max", most, 131072)):
        layer = make_layer(durable=["durable"], timeout=10.0)
        channel = await layer.new_channel()
        await layer.group_add("g", channel)
        await layer.group_send("g", {"type": "a", "text": text})
        assert await receive(layer, channel, 10) == {"type": "a", "text": text}
        for where in ("normal", "durable"):
            await layer.send(where, {"type": "a", "text": text})
            assert await receive(layer, where, 10) == {"type": "a", "text": text}
        await layer.close()


async def ways(layer, channel, message):
    """Every way to send a message."""
    return [
        layer.send("durable", message),
        layer.send("normal", message),
        layer.send(channel, message),
        layer.group_send("g", message),
        layer.send_many([("durable", {"type": "small"}), ("durable", message)]),
        asyncio.to_thread(layer.publisher.send, "durable", message),
        asyncio.to_thread(layer.publisher.group_send, "g", message),
        asyncio.to_thread(layer.publisher.group_send, "g", message, wait=False),
    ]


@pytest.mark.parametrize(("option", "size"), [({}, 17 * MIB), ({"max_message_bytes": MIB}, MIB + 1)])
async def test_a_message_beyond_the_limit_is_refused_before_it_is_sent(make_layer, option, size):
    too_large = asgi_amqp.MessageTooLarge
    assert issubclass(too_large, LayerError)
    layer = make_layer(durable=["durable"], **option)
    channel = await layer.new_channel()
    await layer.group_add("g", channel)
    for number, way in enumerate(await ways(layer, channel, {"type": "a", "text": "SECRET" + "x" * size})):
        began = time.monotonic()
        with pytest.raises(too_large, match="max_message_bytes") as caught:
            await way
        assert "SECRET" not in str(caught.value), number
        assert time.monotonic() - began < 5
    fits = {"type": "a", "text": "x" * (MIB // 2)}
    await layer.group_send("g", fits)
    assert await receive(layer, channel) == fits
    await layer.send("durable", {"type": "b"})
    assert await receive(layer, "durable") == {"type": "b"}  # and nothing of send_many() before it
    assert layer.stats.reconnects == 0
    assert not layer.stats.lost


async def test_a_broker_whose_limit_is_lower_than_ours(make_layer, broker):
    """It closes the connection over a message of 2 MiB: its sender hears of it, and all others go on."""
    default = "persistent_term:put(max_message_size, 16777216)."
    async with limited(broker, default.replace("16777216", str(MIB)), default):
        layer = make_layer(durable=["durable"], timeout=10.0)
        channel = await layer.new_channel()
        await layer.group_add("g", channel)
        await layer.send("durable", {"type": "first"})
        began = time.monotonic()
        with pytest.raises(LayerError):
            await layer.send("durable", {"type": "a", "text": "x" * 2 * MIB})
        assert time.monotonic() - began < 15
        await layer.send("durable", {"type": "b"})
        await layer.group_send("g", {"type": "c"})
        assert await receive(layer, channel) == {"type": "c"}
        assert [(await receive(layer, "durable"))["type"] for _ in range(2)] == ["first", "b"]
        assert layer.stats.reconnects <= 2


async def test_capacity_where_queues_are_quorum_queues_by_default(make_layer, broker):
    with contextlib.suppress(RuntimeError):
        await broker.do("ctl", "add_vhost", "quorum", "--default-queue-type", "quorum")
    await broker.do("ctl", "set_permissions", "-p", "quorum", "carillon", ".*", ".*", ".*")
    layer = make_layer(url=broker.url_for("carillon", broker.password, "quorum"), capacity=10)
    local = await layer.new_channel()
    await layer.send(local, {"type": "a"})
    assert await receive(layer, local) == {"type": "a"}
    for _ in range(10):
        await layer.send("normal", {"type": "a"})
    with pytest.raises(ChannelFull):
        await layer.send("normal", {"type": "a"})


async def test_forwarding_to_normal_channels_keeps_to_buffer_bytes(make_layer, broker):
    """19 MB for a normal channel come to a process that can keep 1 MiB, and that cannot publish just now."""
    total = 1900
    async with Proxy(broker) as proxy:
        layer = make_layer(url=proxy.url, buffer_bytes=MIB, timeout=60.0, capacity=total)
        sender = make_layer(capacity=total)
        # A normal channel is in a group by the background's session, which has a connection to publish then.
        fence = await asyncio.to_thread(async_to_sync(layer.new_channel))
        await layer.group_add("g", "normal")
        await asyncio.to_thread(layer.publisher.send, "normal", {"type": "a", "number": -1})
        assert (await receive(layer, "normal"))["number"] == -1
        proxy.hold("publishing")
        for number in range(total):
            await sender.group_send("g", {"type": "a", "number": number, "text": "x" * 10_000})
        await sender.send(fence, {"type": "fence"})
        assert await receive(layer, fence, 60) == {"type": "fence"}
        proxy.let_go()
        got = 0
        with contextlib.suppress(TimeoutError):
            while got + layer.stats.lost.total() < total:
                await receive(layer, "normal", 5)
                got += 1
        assert got + layer.stats.lost.total() == total
        assert got < total / 2  # what waits in sockets and in the proxy comes on top of what it may keep
