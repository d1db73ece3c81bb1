"""What one event loop sends to one place arrives in the order of the calls, from the first call on."""

import asyncio

import pytest

TOTAL = 200


async def numbers(layer, channel, count=TOTAL):
    return [(await asyncio.wait_for(layer.receive(channel), 20))["number"] for _ in range(count)]


@pytest.fixture
async def hearing(make_layer):
    """A layer with a channel in group `g`."""
    layer = make_layer(capacity=10 * TOTAL)
    channel = await layer.new_channel()
    await layer.group_add("g", channel)
    return layer, channel


@pytest.mark.parametrize("more", [0, 20])
async def test_senders_that_wait_for_the_first_connection_keep_their_order(make_layer, hearing, more):
    """`more`: beside them some call just when the connection opens, in every turn of the loop."""
    for _ in range(5):
        layer = make_layer()
        count = 0
        tasks = []

        def call(layer=layer, tasks=tasks):
            nonlocal count
            tasks.append(asyncio.create_task(layer.group_send("g", {"type": "a", "number": count})))
            count += 1

        while count < TOTAL - more:
            call()
        while more and count < TOTAL:
            await asyncio.sleep(0)
            if tasks[0].done() or layer.gauges().get("connected_publishing"):
                call()
        await asyncio.gather(*tasks)
        assert await numbers(*hearing) == list(range(TOTAL))
        await layer.close()


@pytest.mark.parametrize("channel", ["local", "normal", "durable"])
async def test_so_it_is_with_every_kind_of_channel(make_layer, hearing, channel):
    for _ in range(3):
        layer = make_layer(capacity=TOTAL, durable=["durable"])
        to = hearing[1] if channel == "local" else channel
        await asyncio.gather(*(layer.send(to, {"type": "a", "number": n}) for n in range(TOTAL)))
        assert await numbers(hearing[0] if channel == "local" else layer, to) == list(range(TOTAL))
        await layer.close()


@pytest.mark.parametrize("kind", ["group", "durable"])
async def test_senders_that_wait_for_room_keep_their_order(make_layer, hearing, kind):
    """And whoever comes when there is room again goes behind those who waited for it."""
    layer = make_layer(buffer_bytes=20_000, durable=["durable"])
    target, to = (layer.group_send, "g") if kind == "group" else (layer.send, "durable")
    await target(to, {"type": "a", "number": 0})
    number = 1

    async def send():
        nonlocal number
        mine, number = number, number + 1
        await target(to, {"type": "a", "number": mine, "text": "x" * 3000})

    async def in_a_row():
        for _ in range(20):
            await send()

    async def when_there_is_room():
        for _ in range(20):
            while layer.gauges()["send_buffer_bytes"] > 20_000:
                await asyncio.sleep(0)
            await send()
            await asyncio.sleep(0)

    await asyncio.gather(*(in_a_row() for _ in range(10)), *(when_there_is_room() for _ in range(3)))
    reader, channel = hearing if kind == "group" else (layer, to)
    assert await numbers(reader, channel, number) == list(range(number))
