"""Whoever cancels a call is gone, and nobody else notices."""

import asyncio

import pytest

from asgi_amqp.worker import Worker
from tests.integration.asgi_amqp.broker import script

CANCELLED_IN_A_ROW = """
layer = make_layer(gap_type="gap")
hears, joins = await layer.new_channel(), await layer.new_channel()
await layer.group_add("g", hears)
for number in range(40):
    joining = asyncio.create_task(layer.group_add(f"g{number}", joins))
    for _ in range(number % 8):
        await asyncio.sleep(0)
    joining.cancel()
    await asyncio.gather(joining, return_exceptions=True)
await layer.group_add("last", joins)
for group, channel in (("g", hears), ("last", joins)):
    await layer.group_send(group, {"type": "a"})
    assert await asyncio.wait_for(layer.receive(channel), 10) == {"type": "a"}
assert not layer.stats.lost, layer.stats.lost
assert layer.stats.reconnects == 0
"""


async def test_a_cancelled_group_add_is_noticed_by_nobody_else(make_layer):
    layer = make_layer(gap_type="gap")
    hears, joins = await layer.new_channel(), await layer.new_channel()
    await layer.group_add("g", hears)
    cancelled = 0
    for turns in range(12):  # before the broker is asked, and while it answers
        joining = asyncio.create_task(layer.group_add(f"g{turns}", joins))
        for _ in range(turns):
            await asyncio.sleep(0)
        joining.cancel()
        [result] = await asyncio.gather(joining, return_exceptions=True)
        cancelled += isinstance(result, asyncio.CancelledError)
        await layer.group_send("g", {"type": "a"})
        assert await asyncio.wait_for(layer.receive(hears), 20) == {"type": "a"}
        await layer.group_add(f"g{turns}", joins)  # and it can be said again
        await layer.group_send(f"g{turns}", {"type": "b"})
        assert await asyncio.wait_for(layer.receive(joins), 20) == {"type": "b"}
    assert cancelled > 3
    assert layer.stats.reconnects == 0
    assert not layer.stats.lost


def test_forty_cancelled_in_a_row_do_not_stop_the_process(broker):
    """In a process of its own: this one would stop with it."""
    script(broker, CANCELLED_IN_A_ROW)


@pytest.mark.parametrize("call", ["flush", "worker", "worker stopped", "receive", "send"])
async def test_other_calls_that_are_cancelled_are_noticed_by_nobody_else(make_layer, call):
    layer = make_layer(gap_type="gap", durable=["jobs*"])
    hears = await layer.new_channel()
    await layer.send("jobs", {"type": "a"})

    async def nothing(message):
        pass

    cancelled = 0
    for turns in range(24):
        channel = f"jobs{turns}"  # which nothing has been declared for
        worker = Worker(layer, nothing, channel, handle_signals=False)
        if call == "worker stopped":
            worker.stop()
        calling = asyncio.create_task(
            {
                "flush": layer.flush,
                "worker": worker.run,
                "worker stopped": worker.run,
                "receive": lambda channel=channel: layer.receive(channel),
                "send": lambda channel=channel: layer.send(channel, {"type": "a"}),
            }[call]()
        )
        await asyncio.wait({calling}, timeout=turns * (0.0005 if call == "flush" else 0.01))
        calling.cancel()
        [result] = await asyncio.gather(calling, return_exceptions=True)
        cancelled += isinstance(result, asyncio.CancelledError)
        if call == "flush":
            await layer.flush()  # what was cancelled may still be on its way, and empties what comes
        await layer.group_add("g", hears)  # flush() takes it out
        await layer.group_send("g", {"type": "a"})
        assert await asyncio.wait_for(layer.receive(hears), 20) == {"type": "a"}
    assert cancelled
    assert layer.stats.reconnects == 0
    assert not layer.stats.lost
