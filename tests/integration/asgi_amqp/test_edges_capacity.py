"""Capacity and expiry: what is dropped, what is not, and who hears of it."""

import asyncio
import time

import pytest

from asgi_amqp import AMQPChannelLayer, ConfigurationError
from tests.integration.asgi_amqp.broker import eventually
from tests.integration.asgi_amqp.test_edges_reading import Readers


async def receive(layer, channel, seconds=20):
    return await asyncio.wait_for(layer.receive(channel), seconds)


@pytest.mark.parametrize("burst", [True, False])
@pytest.mark.parametrize("how", ["group", "channel"])
@pytest.mark.parametrize("overflow", [None, "drop-newest", "drop-oldest"])
async def test_what_goes_beyond_capacity_while_nobody_reads(make_layer, overflow, how, burst):
    """By default what is new is dropped, as the specification of channel layers has it."""
    options = {} if overflow is None else {"overflow": overflow}
    here, there = make_layer(capacity=3, gap_type="layer.gap", **options), make_layer()
    losses = []
    here.on_loss.append(losses.append)
    channel, fence = await here.new_channel(), await here.new_channel()
    await here.group_add("g", channel)
    for number in range(10):
        if how == "group":
            await there.group_send("g", {"type": "a", "number": number})
        else:
            await there.send(channel, {"type": "a", "number": number})
        if not burst:
            await there.send(fence, {"type": "fence"})
            await receive(here, fence)
    await there.send(fence, {"type": "fence"})
    await receive(here, fence)
    got = [await receive(here, channel) for _ in range(4)]
    gaps = [message for message in got if message["type"] == "layer.gap"]
    assert gaps == [{"type": "layer.gap", "reason": "overflow", "count": 7}]
    kept = [7, 8, 9] if overflow == "drop-oldest" else [0, 1, 2]
    assert [message["number"] for message in got if message not in gaps] == kept
    assert {(loss.reason, loss.channel) for loss in losses} == {("overflow", channel)}
    assert sum(loss.count for loss in losses) == here.stats.lost["overflow"] == 7
    await there.group_send("g", {"type": "b"})  # and there is room again
    assert await receive(here, channel) == {"type": "b"}


def test_an_overflow_that_is_not_known_is_refused():
    with pytest.raises(ConfigurationError, match="drop-newest"):
        AMQPChannelLayer(overflow="drop-some")


@pytest.mark.parametrize("how", ["plain", "wait_for", "consumer"])
@pytest.mark.parametrize("same", [True, False])
async def test_a_reader_that_only_reads_loses_nothing_of_any_burst(make_layer, how, same):
    """1 000 messages at once where 100 is the capacity. `consumer`: as every consumer of Channels is read."""
    layer = make_layer(capacity=100)
    sender = layer if same else make_layer()
    async with Readers(layer, 20, how) as readers:
        for number in range(1000):
            await sender.group_send("g", {"type": "a", "number": number, "text": "x" * 500})
        await eventually(lambda: sum(readers.heard) + layer.stats.lost["overflow"] == 20 * 1000, 60)
    assert not layer.stats.lost
    assert readers.heard == [1000] * 20
    assert not readers.disordered


async def test_a_reader_that_only_reads_is_not_hurt_by_one_that_does_not(make_layer):
    """In the same group, and the same process."""
    layer, sender = make_layer(capacity=100), make_layer()
    async with Readers(layer, 5, "plain") as readers:
        asleep = await layer.new_channel()
        await layer.group_add("g", asleep)
        for number in range(2000):
            await sender.group_send("g", {"type": "a", "number": number, "text": "x" * 500})
        await eventually(lambda: sum(readers.heard) == 5 * 2000, 60)
        assert set(layer.stats.lost) == {"overflow"}
        assert layer.stats.lost["overflow"] <= 1900


async def test_what_was_fetched_ahead_expires_too(make_layer):
    layer = make_layer(expiry=3)
    for kind in ("first", "old", "old"):
        await layer.send("normal", {"type": kind})
    assert await receive(layer, "normal") == {"type": "first"}
    sent = time.monotonic()
    while time.monotonic() - sent < 3.3:
        await asyncio.sleep(0.05)
    await layer.send("normal", {"type": "new"})
    assert await receive(layer, "normal") == {"type": "new"}


async def test_the_age_of_what_was_fetched_ahead_counts_from_its_sending(make_layer):
    layer = make_layer(expiry=4)
    for kind in ("first", "old", "old"):
        await layer.send("normal", {"type": kind})
    await asyncio.sleep(2)  # at the broker,
    assert await receive(layer, "normal") == {"type": "first"}
    await asyncio.sleep(2.5)  # and here
    await layer.send("normal", {"type": "new"})
    assert await receive(layer, "normal") == {"type": "new"}
