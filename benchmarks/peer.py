"""One end of a measurement, run in the environment of the layer it measures; its task comes as JSON on stdin.

Prints one JSON object per line: {"ready": …} once it can be reached, {"result": …} at the end. Times are
of CLOCK_MONOTONIC, which all processes of a machine share.
"""

import asyncio
import contextlib
import json
import resource
import sys
import time

EVENT = {
    "type": "job.event", "group_name": "job_events", "counter": 4711, "job": 42, "event": "runner_on_ok",
    "stdout": "\u001b[0;32mok: [host-17.example.org] => (item=some package)\u001b[0m" * 3, "start_line": 812,
    "end_line": 813, "uuid": "8b0f3c52-6c0b-4f0c-9d3c-1c2f7b0a1e55", "parent_uuid": None, "failed": False,
    "changed": True, "created": "2026-01-01T12:00:00.000000Z", "play": "site",
    "role": "common", "task": "install",
}  # fmt: skip  # about 480 bytes


def make_layer(task):
    options = {"capacity": 1_000_000}
    kind, url = task["layer"], task["url"]
    # redis-py 8 gives up every read after five seconds, the very time for which channels_redis waits for a
    # message: a receive() that waits longer would end with TimeoutError.
    hosts = [{"address": url, "socket_timeout": None}]
    if kind == "redis core":
        from channels_redis.core import RedisChannelLayer

        return RedisChannelLayer(hosts=hosts, **options)
    if kind == "redis pubsub":
        from channels_redis.pubsub import RedisPubSubChannelLayer

        return RedisPubSubChannelLayer(hosts=hosts)
    if kind == "valkey pubsub":
        from channels_valkey.pubsub import ValkeyPubSubChannelLayer

        return ValkeyPubSubChannelLayer(hosts=[{"address": url, "socket_timeout": None}])
    if kind == "nats":
        from channels_nats import NatsChannelLayer

        return NatsChannelLayer(servers=[url], **options)
    if kind == "channels_rabbitmq":
        from channels_rabbitmq.core import RabbitmqChannelLayer

        return RabbitmqChannelLayer(
            url, local_capacity=60_000, remote_capacity=1_000_000, groups_exchange="peer"
        )
    from asgi_amqp import AMQPChannelLayer

    durable = {"durable": {"batch": 1} if task.get("single") else {}}
    return AMQPChannelLayer(url, prefix=task["prefix"], durable=durable, timeout=60, **options)


def say(**fields):
    print(json.dumps(fields), flush=True)


async def subscribe(task):
    """Receive `expected` messages on `channels` channels; how many came, when, and the latencies."""
    layer = make_layer(task)
    if task.get("durable"):
        return await work(layer, task)
    names = [await layer.new_channel() for _ in range(task["channels"])]
    if task["group"]:
        for name in names:
            await layer.group_add("bench", name)
    if task["layer"] == "channels_rabbitmq":
        await layer.carehare_connection  # neither new_channel() nor receive() connects
    got = 0
    last = 0.0
    latencies = []

    async def read(name):
        nonlocal got, last
        while True:
            message = await layer.receive(name)
            got += 1
            last = time.monotonic()
            sent = message.get("sent")
            if sent is not None:
                latencies.append(last - sent)

    readers = [asyncio.create_task(read(name)) for name in names]
    await asyncio.sleep(0.3)
    spent = time.process_time()
    say(ready=names[0])
    expected = task["expected"]
    quiet, before = time.monotonic(), -1
    while got < expected and time.monotonic() - quiet < (10 if got else 60):  # the publisher starts slowly
        if got != before:
            quiet, before = time.monotonic(), got
        failed, _ = await asyncio.wait(readers, timeout=0.05, return_when=asyncio.FIRST_EXCEPTION)
        for reader in failed:
            reader.result()
    await asyncio.sleep(0.3)  # what would come twice comes now
    for reader in readers:
        reader.cancel()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cpu = time.process_time() - spent
    say(result={"got": got, "last": last, "latencies": latencies, "memory": memory, "cpu": cpu})


async def work(layer, task):
    from asgi_amqp.worker import Worker

    got, first, last = 0, 0.0, 0.0
    whole = asyncio.Event()

    async def handle(message):
        nonlocal got, first, last
        got += 1
        last = time.monotonic()
        if got == 1:
            first = last
        if got == task["expected"]:
            whole.set()

    concurrency = 512 if task.get("single") else 16
    worker = Worker(layer, handle, "durable", concurrency=concurrency, handle_signals=False)
    running = asyncio.create_task(worker.run())
    if not task.get("single"):
        await asyncio.sleep(0.5)
    spent = time.process_time()
    say(ready="durable")
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(whole.wait(), 60)
    cpu = time.process_time() - spent
    await asyncio.sleep(0.3)  # what would come twice comes now
    worker.stop()
    await asyncio.wait([running], timeout=10)
    say(result={"got": got, "first": first, "last": last, "latencies": [], "memory": 0, "cpu": cpu})


async def publish(task):
    """Send `count` messages with `flying` under way, or one every `pause` seconds."""
    layer = make_layer(task)
    sent = 0
    if task["group"]:

        def send(message):
            return layer.group_send("bench", message)
    else:

        def send(message):
            return layer.send(task["channel"], message)

    if task.get("warm"):
        await send(dict(EVENT, sent=None))
        sent += 1
    await asyncio.sleep(0.3)
    left = task["count"]
    spent = time.process_time()
    began = time.monotonic()
    if task.get("pause"):
        for _ in range(left):
            await send(dict(EVENT, sent=time.monotonic()))
            sent += 1
            await asyncio.sleep(task["pause"])
    else:

        async def one():
            nonlocal left, sent
            while left > 0:
                left -= size
                if size == 1:
                    await send(EVENT)
                else:
                    await layer.send_many([(task["channel"], EVENT)] * size)
                sent += size

        size = task.get("together", 1)
        await asyncio.gather(*(one() for _ in range(task["flying"])))
    accepted = time.monotonic()
    if task["layer"] == "asgi_amqp":
        await layer.close()  # what was accepted has left then
    say(result={"sent": sent, "began": began, "accepted": accepted, "cpu": time.process_time() - spent})
    if hasattr(layer, "close") and task["layer"] != "asgi_amqp":
        await layer.close()


def publish_sync(task):
    """Emit from synchronous code, as a view does: `async_to_sync`, or our publisher."""
    from asgiref.sync import async_to_sync

    layer = make_layer(task)
    if task["layer"] == "asgi_amqp":
        if task.get("pipelined"):

            def emit():
                layer.publisher.group_send("bench", EVENT, 60, wait=False)
        else:

            def emit():
                layer.publisher.group_send("bench", EVENT, 60)
    else:
        group_send = async_to_sync(layer.group_send)

        def emit():
            group_send("bench", EVENT)

    emit()
    sent = 1
    began = time.monotonic()
    for _ in range(task["count"]):
        emit()
        sent += 1
    if task.get("pipelined"):
        assert layer.publisher.flush(60)
    say(result={"sent": sent, "began": began, "accepted": time.monotonic(), "cpu": time.process_time()})


def main():
    task = json.load(sys.stdin)
    if task["role"] == "subscribe":
        asyncio.run(subscribe(task))
    elif task.get("sync"):  # its subscriber is like any other
        publish_sync(task)
    else:
        asyncio.run(publish(task))


main()
