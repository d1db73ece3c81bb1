"""Groups at the edges: who comes back, who comes twice, what members share."""

import asyncio
import time

import pytest

from asgi_amqp import BrokerUnavailable, LayerError
from tests.integration.asgi_amqp.broker import eventually
from tests.integration.asgi_amqp.proxy import Proxy
from tests.integration.asgi_amqp.stub import Stub, commands


async def receive(layer, channel, seconds=20):
    return await asyncio.wait_for(layer.receive(channel), seconds)


async def hears(layer, group, channel, seconds=20):
    """What is sent to the group now reaches the channel, whatever else waits there."""
    await layer.group_send(group, {"type": "now", "group": group})
    async with asyncio.timeout(seconds):
        while await layer.receive(channel) != {"type": "now", "group": group}:
            pass


async def test_who_comes_back_when_the_binding_goes_is_not_deaf(make_layer):
    """A binding without members goes seconds after the last has left: they come back just then."""
    layer = make_layer(capacity=10_000)
    channel = await layer.new_channel()
    groups = [f"g{number}" for number in range(300)]
    for group in groups:
        await layer.group_add(group, channel)
    began = time.monotonic()
    for group in groups:
        await layer.group_discard(group, channel)
    left = time.monotonic() - began

    async def back(number):
        """In every turn of the loop that follows on five seconds, one."""
        await asyncio.sleep(began + 5 + left - time.monotonic() - 0.1 + 0.001 * number)
        await layer.group_add(groups[number], channel)

    await asyncio.gather(*(back(number) for number in range(300)))
    for group in groups:
        await hears(layer, group, channel)


async def test_who_comes_back_while_a_binding_is_being_taken_away(make_layer):
    """By a broker that takes its time, in every order of what is asked and answered."""
    async with Stub() as stub:
        layer = make_layer(url=stub.url)
        channel = await layer.new_channel()
        groups = [f"g{number}" for number in range(8)]
        for group in groups:
            await layer.group_add(group, channel)
            await layer.group_discard(group, channel)
        await eventually(lambda: stub.count(commands.Queue.Unbind), 20)
        stub.late = 0.05
        await asyncio.gather(*(layer.group_add(group, channel) for group in groups))
        for group in groups:
            await hears(layer, group, channel)


async def test_a_second_group_add_that_fails_leaves_the_first(make_layer, broker):
    async with Proxy(broker) as proxy:
        layer = make_layer(url=proxy.url, timeout=1.0)
        channel = await layer.new_channel()
        await layer.group_add("g", channel)
        proxy.closed = True
        proxy.cut()
        await eventually(lambda: not layer.gauges()["connected_consuming"])
        with pytest.raises(BrokerUnavailable):
            await layer.group_add("g", channel)
        proxy.closed = False
        await eventually(lambda: layer.gauges()["connected_consuming"], 60)
        sender = make_layer()
        await sender.group_send("g", {"type": "a"})
        assert await receive(layer, channel) == {"type": "a"}


@pytest.mark.parametrize("nested", [[1, [2]], {"a": {"b": [1]}}, [{"a": 1}]])
async def test_members_do_not_share_what_is_nested(make_layer, nested):
    layer = make_layer()
    channels = [await layer.new_channel() for _ in range(3)]
    for channel in channels:
        await layer.group_add("g", channel)
    message = {"type": "a", "nested": nested}
    before = repr(message)
    await layer.group_send("g", message)

    def spoil(value):
        for each in list(value.values() if isinstance(value, dict) else value):
            if isinstance(each, (list, dict)):
                spoil(each)
        value.clear()

    for channel in channels:
        got = await receive(layer, channel)
        assert repr(got) == before
        spoil(got["nested"])


async def test_a_group_add_for_a_process_that_is_gone_ends_at_once(make_layer):
    here, gone = make_layer(timeout=20.0), make_layer()
    await here.new_channel()
    channel = await gone.new_channel()
    await gone.close()
    began = time.monotonic()
    with pytest.raises(LayerError):
        await here.group_add("g", channel)
    assert time.monotonic() - began < 5


async def test_membership_holds_over_cuts_in_the_middle_of_joining(make_layer, broker):
    """Whatever was asked for when the link went: who is in a group hears, who is not does not."""
    async with Proxy(broker) as proxy:
        layer = make_layer(url=proxy.url, capacity=10_000)
        sender = make_layer()
        channels = [await layer.new_channel() for _ in range(10)]
        for cut in range(5):
            joining = [asyncio.create_task(layer.group_add(f"g{cut}", channel)) for channel in channels] + [
                asyncio.create_task(layer.group_add(f"h{cut}.{n}", channels[0])) for n in range(20)
            ]
            leaving = asyncio.create_task(layer.group_discard(f"g{cut}", channels[9]))
            await asyncio.sleep(0.0005 * cut)
            proxy.cut("consuming")
            await asyncio.gather(*joining, leaving)
            await layer.group_discard(f"g{cut}", channels[9])
            await sender.group_send(f"g{cut}", {"type": "a", "cut": cut})
            for channel in channels[:9]:
                while (await receive(layer, channel)).get("cut") != cut:
                    pass
            for number in range(20):
                await hears(layer, f"h{cut}.{number}", channels[0])
        await sender.send(channels[9], {"type": "fence"})
        assert await receive(layer, channels[9]) == {"type": "fence"}
