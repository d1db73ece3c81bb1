"""Sending at the edges: one destination that is stuck, a link that is cut, queues that go."""

import asyncio
import contextlib
import threading

import pytest

from asgi_amqp import AMQPChannelLayer, BrokerUnavailable, ChannelFull, ConfigurationError
from tests.integration.asgi_amqp.broker import eventually, free_port
from tests.integration.asgi_amqp.proxy import Proxy
from tests.integration.asgi_amqp.stub import Stub, commands


async def receive(layer, channel, seconds=20):
    return await asyncio.wait_for(layer.receive(channel), seconds)


@contextlib.asynccontextmanager
async def suspended(broker, queue):
    """A quorum queue that takes what is sent to it and confirms nothing."""
    server = f"{{'carillon_{queue}', node()}}"
    await broker.do("ctl", "eval", f"ok = sys:suspend({server}).")
    try:
        yield
    finally:
        await broker.do("ctl", "eval", f"ok = sys:resume({server}).")


async def test_a_queue_that_confirms_nothing_stops_nobody_else(make_layer, broker):
    layer = make_layer(durable={"stuck": {"batch": 1}, "other": {}}, timeout=60.0)
    channel = await layer.new_channel()
    await layer.group_add("g", channel)
    for durable in ("stuck", "other"):
        await layer.send(durable, {"type": "first"})
    async with suspended(broker, f"{layer.prefix}.d.stuck"):
        stuck = [asyncio.create_task(layer.send("stuck", {"type": "a", "number": n})) for n in range(300)]
        await asyncio.wait(stuck, timeout=1)
        assert not any(task.done() for task in stuck)
        for number in range(10):
            await layer.group_send("g", {"type": "a", "number": number})
            assert (await receive(layer, channel, 10))["number"] == number
        await layer.send(channel, {"type": "b"})
        assert await receive(layer, channel, 10) == {"type": "b"}
        await asyncio.wait_for(layer.send("other", {"type": "b"}), 10)
        await asyncio.wait_for(layer.send("normal", {"type": "b"}), 10)
        await asyncio.wait_for(asyncio.to_thread(layer.publisher.group_send, "g", {"type": "c"}, 10.0), 20)
        assert await receive(layer, channel, 10) == {"type": "c"}
    await asyncio.wait_for(asyncio.gather(*stuck), 60)
    got = [(await receive(layer, "stuck")).get("number") for _ in range(301)]
    assert got == [None, *range(300)]


async def test_what_was_lost_leaves_room_in_its_channel(make_layer, broker):
    """The publishing link alone is cut; the channel is empty, and takes what comes next."""
    async with Proxy(broker) as proxy:
        layer = make_layer(url=proxy.url, capacity=5)
        channel = await layer.new_channel()
        await layer.send(channel, {"type": "a"})
        assert await receive(layer, channel) == {"type": "a"}
        proxy.hold("publishing")
        for _ in range(5):
            await layer.send(channel, {"type": "lost"})
        with pytest.raises(ChannelFull):
            await layer.send(channel, {"type": "lost"})
        proxy.cut("publishing")
        proxy.let_go()
        await eventually(lambda: layer.stats.lost["in_flight"] >= 5)
        for number in range(5):
            await layer.send(channel, {"type": "a", "number": number})
        assert [(await receive(layer, channel))["number"] for _ in range(5)] == list(range(5))


async def test_what_was_returned_keeps_its_place(make_layer):
    """A durable queue was deleted: what is sent to it comes back, and leaves again before what came after."""
    async with Stub() as stub:
        layer = make_layer(url=stub.url, durable={"jobs": {"batch": 1}})
        await layer.send("jobs", {"type": "a", "number": -1})
        assert (await receive(layer, "jobs"))["number"] == -1
        stub.queues.pop(f"{layer.prefix}.d.jobs")
        await asyncio.gather(*(layer.send("jobs", {"type": "a", "number": n}) for n in range(300)))
        got = [(await receive(layer, "jobs"))["number"] for _ in range(300)]
        assert [number for at, number in enumerate(got) if number not in got[:at]] == list(range(300))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_hook_that_raises_stops_nothing(make_layer, broker):
    async with Proxy(broker) as proxy:
        layer = make_layer(url=proxy.url, gap_type="gap")
        heard = []

        def hook(loss):
            heard.append(loss.reason)
            raise RuntimeError("of the application")

        layer.on_loss.extend([hook, lambda loss: heard.append("second")])
        channel = await layer.new_channel()
        await layer.group_add("g", channel)
        await layer.group_send("g", {"type": "a"})
        assert await receive(layer, channel) == {"type": "a"}
        proxy.hold("publishing")
        await layer.group_send("g", {"type": "lost"})  # in flight
        proxy.cut()
        proxy.let_go()
        assert (await receive(layer, channel))["reason"] == "reconnect"
        async with asyncio.timeout(20):
            while True:
                await layer.group_send("g", {"type": "b"})
                if (await receive(layer, channel))["type"] == "b":
                    break
        assert {"in_flight", "reconnect", "second"} <= set(heard)


async def test_no_heartbeat_is_none(make_layer):
    layer = make_layer(heartbeat=0)
    channel = await layer.new_channel()
    await layer.group_add("g", channel)
    await asyncio.sleep(3)  # of silence
    await layer.group_send("g", {"type": "a"})
    assert await receive(layer, channel) == {"type": "a"}
    assert layer.stats.reconnects == 0


async def test_loops_come_and_go_while_others_look_at_them(make_layer):
    """Threads that make event loops, one after another, beside some that close, empty and count."""
    layer = make_layer(url=f"amqp://127.0.0.1:{free_port()}/", timeout=0.05)
    over = threading.Event()
    problems = []

    def run(call):
        while not over.is_set():
            try:
                asyncio.run(call())
            except (BrokerUnavailable, asyncio.CancelledError):
                pass
            except BaseException as error:
                problems.append(error)
                return

    async def look():
        for _ in range(50):
            layer.gauges()

    calls = [layer.new_channel] * 6 + [look, look, layer.close]
    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    await asyncio.sleep(5)
    over.set()
    for thread in threads:
        await asyncio.to_thread(thread.join, 20)
    assert not problems
    assert not any(thread.is_alive() for thread in threads)


async def test_no_delivery_limit_is_none(make_layer, broker):
    """RabbitMQ 4 takes 20 where nothing is said, and -1 for none."""
    layer = make_layer(durable={"jobs": {"delivery_limit": None}})
    await layer.send("jobs", {"type": "a"})
    shown = await broker.do("ctl", "list_queues", "--vhost", "carillon", "name", "arguments")
    [line] = [line for line in shown.splitlines() if line.split()[0] == f"{layer.prefix}.d.jobs"]
    assert '"x-delivery-limit",-1' in line.replace(" ", "")


async def test_a_message_that_a_stub_returns_to_nobody_is_counted(make_layer):
    async with Stub() as stub:
        layer = make_layer(url=stub.url)
        await layer.send("specific.gone!1", {"type": "a"})
        await eventually(lambda: layer.stats.lost["no_receiver"] == 1)
        assert stub.count(commands.Basic.Publish) == 1


def test_options_that_make_no_sense_are_refused_in_words():
    for options in (
        {"url": []}, {"url": "http://u:SECRET@h"}, {"prefix": "a b"}, {"durable": {"d": {"unknown": 1}}},
    ):  # fmt: skip
        with pytest.raises(ConfigurationError) as caught:
            AMQPChannelLayer(**options)
        assert "SECRET" not in str(caught.value)
