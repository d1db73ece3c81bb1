"""A reader that waits loses nothing."""

import asyncio

import pytest
from channels.utils import await_many_dispatch

from tests.integration.asgi_amqp.broker import eventually


class Readers:
    """`count` channels of a layer in group `g`, each read for ever in the way of `how`."""

    def __init__(self, layer, count, how):
        self.layer = layer
        self.heard = [0] * count
        self.disordered = 0
        self.how = how

    async def __aenter__(self):
        self.channels = [await self.layer.new_channel() for _ in self.heard]
        for channel in self.channels:
            await self.layer.group_add("g", channel)
        self.tasks = [asyncio.create_task(self.read(*each)) for each in enumerate(self.channels)]
        return self

    def got(self, index, message):
        self.disordered += message["number"] != self.heard[index]
        self.heard[index] += 1

    async def read(self, index, channel):
        if self.how == "plain":
            while True:
                self.got(index, await self.layer.receive(channel))
        elif self.how == "wait_for":
            while True:
                self.got(index, await asyncio.wait_for(self.layer.receive(channel), 600))
        else:  # as a consumer of Channels does

            async def dispatch(message):
                self.got(index, message)

            await await_many_dispatch([lambda: self.layer.receive(channel)], dispatch)

    async def __aexit__(self, *_):
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


@pytest.mark.parametrize(
    ("count", "messages", "how"),
    [(1000, 200, "plain"), (3000, 100, "plain"), (1000, 200, "consumer"), (100, 1000, "plain")],
)
async def test_readers_that_only_wait_lose_nothing_of_a_group(make_layer, count, messages, how):
    """Each message is kept once, however many channels hold it: 1 000 times 200 times 500 bytes are more
    than buffer_bytes.
    """
    layer, sender = make_layer(), make_layer()
    async with Readers(layer, count, how) as readers:
        for number in range(messages):
            await sender.group_send("g", {"type": "a", "number": number, "text": "x" * 500})
        await eventually(lambda: sum(readers.heard) + layer.stats.lost["overflow"] == count * messages, 60)
    assert not layer.stats.lost
    assert readers.heard == [messages] * count
    assert not readers.disordered
    assert layer.gauges()["receive_buffer_bytes"] == 0
