"""Event loops, threads and forks: who has which connection, and that nothing is mixed up."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from asgiref.sync import async_to_sync

from asgi_amqp import BrokerUnavailable


async def receive(layer, channel, seconds=20):
    return await asyncio.wait_for(layer.receive(channel), seconds)


def test_async_to_sync_uses_one_connection_for_all_calls(make_layer, broker):
    layer = make_layer(name="counted")
    channel = async_to_sync(layer.new_channel)()
    async_to_sync(layer.group_add)("g", channel)
    for number in range(30):
        async_to_sync(layer.group_send)("g", {"type": "a", "number": number})
    assert [async_to_sync(layer.receive)(channel)["number"] for _ in range(30)] == list(range(30))
    assert not layer._sessions  # all of it through the one background session
    assert len(layer._owners) == 1
    names = broker.ctl("list_connections", "client_properties")
    assert names.count("counted publishes") == names.count("counted consumes") == 1
    layer.publisher.close()


def test_a_channel_of_one_loop_is_used_from_another(make_layer):
    """A channel lives in the loop of thread A; thread B sends and receives, cancelled now and then."""
    layer = make_layer(capacity=1000)
    ready, done = threading.Event(), threading.Event()
    names = []

    def home():
        async def main():
            names.append(await layer.new_channel())
            ready.set()
            await asyncio.to_thread(done.wait)

        asyncio.run(main())

    thread = threading.Thread(target=home)
    thread.start()
    assert ready.wait(30)

    async def elsewhere():
        await layer.group_add("g", names[0])
        for number in range(200):
            await layer.group_send("g", {"type": "a", "number": number})
        got, attempts = [], 0
        deadline = time.monotonic() + 30
        while len(got) < 200 and time.monotonic() < deadline:
            task = asyncio.create_task(layer.receive(names[0]))
            await asyncio.sleep(0.002 * (attempts % 10))
            attempts += 1
            task.cancel()
            try:
                got.append((await task)["number"])
            except asyncio.CancelledError:
                continue
        await layer.group_discard("g", names[0])
        return got

    try:
        got = asyncio.run(elsewhere())
        assert sorted(got) == list(range(200))  # a message handed back may come after its successor
    finally:
        done.set()
        thread.join()


def test_many_loops_at_once(make_layer):
    layer = make_layer()
    count = 6

    def one(number):
        async def main():
            channel = await layer.new_channel()
            await layer.group_add("all", channel)
            await asyncio.to_thread(barrier.wait)
            await layer.group_send("all", {"type": "a", "from": number})
            got = {(await receive(layer, channel))["from"] for _ in range(count)}
            await layer.session().close()
            return got

        return asyncio.run(main())

    barrier = threading.Barrier(count)
    with ThreadPoolExecutor(count) as pool:
        assert list(pool.map(one, range(count))) == [set(range(count))] * count


async def test_a_loop_that_ended_takes_its_channels_along(make_layer):
    layer = make_layer()

    def other():
        async def main():
            return await layer.new_channel()

        return asyncio.run(main())

    channel = await asyncio.to_thread(other)
    layer.session()  # forgets the sessions of loops that are closed
    with pytest.raises(ValueError, match="has ended"):
        await layer.receive(channel)


async def test_the_synchronous_publisher_from_many_threads(make_layer):
    layer = make_layer(durable=["durable"], capacity=10_000)
    channel = await layer.new_channel()
    await layer.group_add("g", channel)
    other = await layer.new_channel()
    layer.session().receiver.box(channel).capacity = 10_000

    def emit(thread):
        for number in range(100):
            layer.publisher.group_send("g", {"type": "a", "thread": thread, "number": number}, 20.0)
        layer.publisher.send_many(
            [("durable", {"type": "d", "number": number}) for number in range(50)], 20.0
        )
        layer.publisher.group_send_many(
            [("g2", {"type": "a", "number": number}) for number in range(50)], 20.0
        )

    await layer.group_add("g2", other)
    await asyncio.gather(*(asyncio.to_thread(emit, thread) for thread in range(5)))
    got = [await receive(layer, channel) for _ in range(500)]
    together = [(await receive(layer, other))["number"] for _ in range(250)]
    assert sorted(together) == sorted(list(range(50)) * 5)
    for thread in range(5):  # order holds for each sender
        assert [m["number"] for m in got if m["thread"] == thread] == list(range(100))
    durable = [await receive(layer, "durable") for _ in range(250)]
    assert sorted(message["number"] for message in durable) == sorted(list(range(50)) * 5)
    layer.publisher.close()


def test_fire_and_forget_is_flushed_at_exit(broker):
    """A script that sends without waiting and ends: all of it arrives."""
    script = """
import os
from asgi_amqp import AMQPChannelLayer
layer = AMQPChannelLayer(os.environ["URL"], prefix="atexit", durable=["d"])
for number in range(500):
    layer.publisher.send("d", {"type": "a", "number": number}, wait=False)
"""
    subprocess.run(
        [sys.executable, "-c", script], env=dict(os.environ, URL=broker.url, PYTHONPATH="src"), check=True
    )
    from asgi_amqp import AMQPChannelLayer

    layer = AMQPChannelLayer(broker.url, prefix="atexit", durable=["d"])

    async def main():
        try:
            return [(await receive(layer, "d"))["number"] for _ in range(500)]
        finally:
            await layer.close()

    assert asyncio.run(main()) == list(range(500))


def test_a_forked_child_has_a_connection_of_its_own(make_layer):
    """Parent and children send in turn, as uwsgi does without lazy-apps."""
    layer = make_layer(durable=["d"])
    layer.publisher.send("d", {"type": "a", "who": "parent before"}, 20.0)
    children = []
    for number in range(3):
        child = os.fork()
        if not child:
            status = 1
            try:
                signal.alarm(40)
                layer.publisher.send("d", {"type": "a", "who": f"child {number}"}, 20.0)
                async_to_sync(layer.send)("d", {"type": "a", "who": f"child {number} async"})
                layer.publisher.close()
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    layer.publisher.send("d", {"type": "a", "who": "parent after"}, 20.0)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    layer.publisher.send("d", {"type": "a", "who": "parent last"}, 20.0)
    got = [async_to_sync(layer.receive)("d")["who"] for _ in range(9)]
    assert sorted(got) == sorted(
        ["parent before", "parent after", "parent last"]
        + [f"child {number}{kind}" for number in range(3) for kind in ("", " async")]
    )
    layer.publisher.close()


def test_the_publisher_gives_up_at_its_deadline(make_layer):
    layer = make_layer(url="amqp://a:SECRET@127.0.0.1:1/", durable=["d"])
    pool = ThreadPoolExecutor(1)
    for call in (
        lambda: layer.publisher.send("d", {"type": "a"}, 0.5),
        lambda: layer.publisher.group_send("g", {"type": "a"}, 0.5),
    ):
        with pytest.raises(BrokerUnavailable, match=r"127\.0\.0\.1:1") as caught:
            pool.submit(call).result(30)
        assert "SECRET" not in str(caught.value)
    layer.publisher.close()


@pytest.mark.parametrize("kind", ["group", "durable"])
def test_a_full_buffer_is_an_error_not_a_growing_process(make_layer, kind):
    layer = make_layer(url="amqp://127.0.0.1:1/", buffer_bytes=10_000, durable=["d"])
    send, where = (layer.publisher.group_send, "g") if kind == "group" else (layer.publisher.send, "d")

    def fill():
        for _ in range(100):
            send(where, {"type": "a", "text": "x" * 1000}, 0.2, wait=False)

    with pytest.raises(BrokerUnavailable, match="buffer_bytes"):
        fill()
    background = layer.publisher.background
    assert background.waiting_bytes + background._sender.outbox.buffered < 15_000
    layer.publisher.close(1.0)


@pytest.mark.parametrize("kind", ["group", "durable"])
async def test_a_full_buffer_holds_coroutines_too(make_layer, broker, kind):
    layer = make_layer(buffer_bytes=10_000, timeout=1.0, durable=["d"])
    await layer.group_send("g", {"type": "a"})

    async def fill():
        for _ in range(100_000):
            if kind == "group":
                await layer.group_send("g", {"type": "a", "text": "x" * 1000})
            else:
                await asyncio.gather(*(layer.send("d", {"type": "a", "text": "x" * 1000}) for _ in range(30)))

    await broker.do("pause")
    try:
        with pytest.raises(BrokerUnavailable, match=r"buffer_bytes|no connection|not confirmed"):
            await fill()
        assert layer.gauges()["send_buffer_bytes"] < 15_000
    finally:
        await broker.do("unpause")
