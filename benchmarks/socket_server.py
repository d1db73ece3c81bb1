"""The serving end of a socket measurement: an ASGI application, the same for the client whatever carries the
events.

BENCH_KIND: `carillon` (event stream, local fan-out, our server), or the consumer as Channels' documentation
teaches it on `redis core`, `redis pubsub` or `channels_rabbitmq`, under daphne as it comes. A client sends
the names of its groups as one text and gets `ok` back; after that, every frame is an event.
"""

import asyncio
import os

KIND, URL = os.environ["BENCH_KIND"], os.environ["BENCH_URL"]

if KIND == "carillon":
    import watched

    from asgi_amqp import Options, Position, Target
    from carillon.fanout.forms import Frames1
    from carillon.fanout.hub import Hub
    from carillon.fanout.tail import Tail
    from carillon.fanout.window import Window

    hub = Hub(Window(16 * 2**20))
    tail = None

    async def application(scope, receive, send):
        global tail
        if tail is None:
            watched.begin("daphne")

            async def epoch():
                return Position(os.environ["BENCH_EPOCH"], 0)

            tail = Tail(Options((Target.parse(URL),), "bench tail"), hub, epoch, print)
            tail.start()
        outlet = scope["carillon.outlet"]
        outlet.form = Frames1
        await receive()
        await send({"type": "websocket.accept"})
        await tail.level.wait()
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                hub.subscribe(outlet, frozenset())
                return
            hub.subscribe(outlet, frozenset(message["text"].encode().split()))
            outlet.text("ok")

else:
    from channels.generic.websocket import AsyncJsonWebsocketConsumer
    from django.conf import settings

    BACKENDS = {
        "redis core": ("channels_redis.core.RedisChannelLayer", {"hosts": [URL], "capacity": 100_000}),
        "redis pubsub": ("channels_redis.pubsub.RedisPubSubChannelLayer", {"hosts": [URL]}),
        "channels_rabbitmq": (
            "channels_rabbitmq.core.RabbitmqChannelLayer",
            {"host": URL, "local_capacity": 60_000, "remote_capacity": 100_000, "groups_exchange": "peer"},
        ),
    }
    backend, config = BACKENDS[KIND]
    if not settings.configured:  # daphne imports this module once more by its name
        settings.configure(CHANNEL_LAYERS={"default": {"BACKEND": backend, "CONFIG": config}})

    class Consumer(AsyncJsonWebsocketConsumer):
        async def receive(self, text_data=None, bytes_data=None):
            for name in text_data.split():
                await self.channel_layer.group_add(name, self.channel_name)
            await self.send("ok")

        async def event(self, message):
            await self.send_json(message["payload"])

    application = Consumer.as_asgi()


if __name__ == "__main__":
    import sys

    sys.argv[0] = "daphne"
    if KIND == "carillon":
        import daphne.server  # noqa: F401  (installs its reactor first)

        from carillon.server.server import DeliveryServer, Launcher

        class Here(Launcher):
            server_class = DeliveryServer

        Here.entrypoint()
    else:
        from daphne.cli import CommandLineInterface

        CommandLineInterface.entrypoint()
    asyncio.run(asyncio.sleep(0))
