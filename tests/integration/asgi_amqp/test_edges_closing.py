"""close(): everyone who waits hears of it. Event loops that end take nobody along."""

import asyncio
import time

import pytest
from asgiref.sync import async_to_sync

from asgi_amqp import BrokerUnavailable, LayerError
from asgi_amqp.worker import Worker
from tests.integration.asgi_amqp.broker import eventually, free_port


async def hears(waiting, error, seconds=10):
    """The task ends with this error, in time."""
    done, _ = await asyncio.wait({waiting}, timeout=seconds)
    assert done, f"{waiting.get_coro().__name__}() still waits"
    with pytest.raises(error):
        await waiting


async def begun(*coroutines):
    """Tasks that have come as far as they can."""
    tasks = [asyncio.create_task(each) for each in coroutines]
    await asyncio.wait(tasks, timeout=0.3)
    assert not any(task.done() for task in tasks)
    return tasks


@pytest.mark.parametrize("kind", ["local", "normal", "durable"])
async def test_receives_that_wait_hear_that_the_layer_is_closed(make_layer, kind):
    layer = make_layer(durable=["durable"])
    channel = await layer.new_channel() if kind == "local" else kind
    waiting = await begun(*(layer.receive(channel) for _ in range(3)))
    await layer.close()
    for each in waiting:
        await hears(each, LayerError)


async def test_a_worker_hears_that_the_layer_is_closed(make_layer):
    layer = make_layer(durable=["durable"])

    async def handle(message):
        pass

    [running] = await begun(Worker(layer, handle, "durable", handle_signals=False).run())
    await layer.close()
    await hears(running, LayerError)


async def test_a_worker_that_is_just_beginning_hears_it_too(make_layer):
    """Whatever it was doing when the layer was closed."""

    async def handle(message):
        pass

    for number in range(30):
        layer = make_layer(durable=[f"durable{number}"])
        running = asyncio.create_task(Worker(layer, handle, f"durable{number}", handle_signals=False).run())
        await asyncio.wait({running}, timeout=0.005 * number)
        await asyncio.wait_for(layer.close(), 20)
        await hears(running, LayerError, 20)


async def test_a_channel_of_a_closed_layer_is_no_channel(make_layer):
    layer = make_layer()
    channel = await layer.new_channel()
    await layer.close()
    with pytest.raises((ValueError, LayerError)):
        await asyncio.wait_for(layer.receive(channel), 10)
    other = await layer.new_channel()  # the layer itself can be used again
    await layer.send(other, {"type": "a"})
    assert await asyncio.wait_for(layer.receive(other), 20) == {"type": "a"}


@pytest.mark.parametrize("held", ["not reached", "not answered"])
async def test_everything_that_waits_to_be_sent_hears_that_the_layer_is_closed(make_layer, broker, held):
    """Before there is a connection, and on one whose broker has fallen silent."""
    options = {"url": f"amqp://127.0.0.1:{free_port()}/"} if held == "not reached" else {}
    layer = make_layer(durable=["durable"], timeout=600.0, buffer_bytes=10_000, **options)
    text = "x" * 6000
    message = {"type": "a", "text": text}
    if held == "not answered":
        await layer.send("durable", {"type": "a"})
        await layer.send("normal", {"type": "a"})
        await layer.new_channel()
        await broker.do("pause")
    try:
        waiting = await begun(
            layer.send("durable", message),
            layer.send("normal", message),  # one of these waits for room
            layer.send("durable", message),
            layer.send_many([("durable", message)]),
            layer.send("normal", message),
            layer.group_add("g", "normal"),
            asyncio.to_thread(layer.publisher.send, "durable", {"type": "a"}, 60.0),
            *([layer.new_channel()] if held == "not reached" else []),
        )
        began = time.monotonic()
        await asyncio.wait_for(layer.close(), 30)
        for each in waiting:
            await hears(each, BrokerUnavailable)
        assert time.monotonic() - began < 20
    finally:
        if held == "not answered":
            await broker.do("unpause")


async def test_what_was_accepted_leaves_before_it_is_closed(make_layer):
    layer, reader = make_layer(durable=["durable"]), make_layer(durable=["durable"], capacity=1000)
    channel = await reader.new_channel()
    await reader.group_add("g", channel)
    sending = [asyncio.create_task(layer.send("durable", {"type": "a", "number": n})) for n in range(100)]
    await asyncio.gather(*(layer.group_send("g", {"type": "a", "number": n}) for n in range(500)))
    await layer.close()
    assert await asyncio.wait_for(asyncio.gather(*sending), 10) == [None] * 100
    for where, count in ((channel, 500), ("durable", 100)):
        got = [(await asyncio.wait_for(reader.receive(where), 20))["number"] for _ in range(count)]
        assert got == list(range(count))


def in_a_loop_of_its_own(how, coroutine):
    """Run it in an event loop that has ended when this returns: well, or as somebody leaves one lying."""
    if how == "run":
        return asyncio.run(coroutine)
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(coroutine)
    finally:
        if how == "closed":
            loop.close()
        else:  # stopped, and never closed
            LEFT.append(loop)


LEFT = []


@pytest.mark.parametrize("how", ["run", "closed", "stopped"])
@pytest.mark.parametrize("what", ["flush", "close"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_a_loop_that_has_ended_is_let_go(make_layer, broker, how, what):
    layer = make_layer(name=f"left-{how}-{what}")

    async def use(last=False):
        channel = await layer.new_channel()
        await layer.group_add("g", channel)
        normal = f"normal-{last}"  # of the other one a loop that is left lying is still a reader
        await layer.send(normal, {"type": "a"})
        await layer.group_send("g", {"type": "a"})
        assert await asyncio.wait_for(layer.receive(channel), 20) == {"type": "a"}
        assert await asyncio.wait_for(layer.receive(normal), 20) == {"type": "a"}
        if last:
            await asyncio.wait_for(getattr(layer, what)(), 20)
            if what == "flush":
                await asyncio.wait_for(layer.close(), 20)

    try:
        in_a_loop_of_its_own(how, use())
        asyncio.run(use(last=True))
        async_to_sync(getattr(layer, what))()
    finally:
        layer.publisher.close()
        while LEFT:
            LEFT.pop().close()


async def test_closing_twice_and_at_once_is_closing(make_layer):
    layer = make_layer()
    await layer.new_channel()
    await asyncio.wait_for(asyncio.gather(*(layer.close() for _ in range(3))), 20)
    await layer.close()
    await eventually(lambda: not layer.gauges().get("connected_consuming"))
