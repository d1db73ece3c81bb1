"""The publishing end of a socket measurement; its task comes as JSON in argv. `relay` runs what runworker
runs."""

import asyncio
import json
import os
import sys
import tempfile
import time

import watched

PAYLOAD = {
    "group_name": "job_events", "counter": 4711, "job": 42, "event": "runner_on_ok",
    "stdout": "\u001b[0;32mok: [host-17.example.org] => (item=some package)\u001b[0m", "start_line": 812,
    "end_line": 813, "uuid": "8b0f3c52-6c0b-4f0c-9d3c-1c2f7b0a1e55", "failed": False, "changed": True,
    "created": "2026-01-01T12:00:00.000000Z", "play": "site", "role": "common", "task": "install", "pad": "",
}  # fmt: skip
SIZE = 480


def payload(number, kind):
    """About what a job event is, and always `SIZE` bytes of JSON on the wire. Node writes JSON without
    spaces, whoever made it. The clients look for number and time near the beginning."""
    separators = (",", ":") if kind == "socket.io" else None
    made = {"n": f"{number:09d}", "at": f"{time.monotonic():015.6f}", **PAYLOAD}
    room = SIZE - len(json.dumps(made, separators=separators))
    assert room >= 0
    made["pad"] = "x" * room
    return made


def relay(url, epoch):
    """As runworker is, on a database in a file."""
    import django
    from django.conf import settings
    from django.core.management import call_command

    durable = {"notifications": {"single": True}}
    layer = {"url": url, "prefix": "bench", "durable": durable}
    with tempfile.TemporaryDirectory() as folder:
        database = {"ENGINE": "django.db.backends.sqlite3", "NAME": f"{folder}/database"}
        apps = ("django.contrib.contenttypes", "django.contrib.auth", "django.contrib.sessions", "carillon")
        settings.configure(
            INSTALLED_APPS=apps,
            DATABASES={"default": database},
            CHANNEL_LAYERS={"default": {"BACKEND": "asgi_amqp.AMQPChannelLayer", "CONFIG": layer}},
            CARILLON={"STREAM": {"max_bytes": 2**30}},
            USE_TZ=True,
        )
        django.setup()
        call_command("migrate", verbosity=0)
        from carillon.events.models import Head
        from carillon.relay.relay import Relay

        watched.begin("runworker")
        Head.objects.create(epoch=epoch)
        asyncio.run(Relay().run())


async def publish(task):
    kind, url, groups, pause = task["kind"], task["url"], task["groups"], task["pause"]
    if kind == "carillon":
        from asgi_amqp import AMQPChannelLayer
        from carillon import tracing

        watched.begin("uwsgi")
        layer = AMQPChannelLayer(url, prefix="bench", durable={"notifications": {"single": True}}, timeout=60)

        async def send(group, made):
            text = json.dumps(made)
            message = {"id": os.urandom(16), "group": group, "text": text, "stamp": int(time.time() * 1000)}
            with tracing.hop("emit", [message]):
                await layer.send("notifications", message)

    elif kind == "socket.io":
        import redis.asyncio as redis

        server = redis.from_url(url)
        import msgpack

        async def send(group, made):
            # What @socket.io/redis-emitter publishes.
            packet = [
                "emitter",
                {"type": 2, "data": ["event", made], "nsp": "/"},
                {"rooms": [group], "flags": {}},
            ]
            await server.publish(f"socket.io#/#{group}#", msgpack.packb(packet))

    else:
        sys.path.insert(0, os.path.dirname(__file__))
        os.environ.update(BENCH_KIND=kind, BENCH_URL=url)
        import socket_server  # noqa: F401  (configures the layer)
        from channels.layers import get_channel_layer

        layer = get_channel_layer()

        async def send(group, made):
            await layer.group_send(group, {"type": "event", "payload": made})

    await send("warm", payload(0, kind))
    slots = asyncio.Semaphore(1 if pause else task["flying"])

    async def one(number):
        try:
            await send(f"g-{number % groups}", payload(number, kind))
        finally:
            slots.release()

    tasks = set()
    print(json.dumps({"began": time.monotonic()}), flush=True)
    for number in range(task["count"]):
        await slots.acquire()
        work = asyncio.ensure_future(one(number))
        tasks.add(work)
        work.add_done_callback(tasks.discard)
        if pause:
            await asyncio.sleep(pause)
    await asyncio.gather(*tasks)
    print(json.dumps({"done": time.monotonic()}), flush=True)


if __name__ == "__main__":
    task = json.loads(sys.argv[1])
    if task.get("relay"):
        relay(task["url"], task["epoch"])
    else:
        asyncio.run(publish(task))
