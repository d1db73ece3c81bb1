"""What a user of the layer writes, for mypy: each name of the public face. It is checked and never run."""

from asgi_amqp import (
    AMQPChannelLayer,
    BrokerUnavailable,
    ChannelFull,
    ConfigurationError,
    LayerError,
    Loss,
)
from asgi_amqp.worker import Worker


def on_loss(loss: Loss) -> None:
    reason: str = loss.reason
    count: int | None = loss.count
    print(reason, count)


def make(url: str) -> AMQPChannelLayer:
    try:
        layer = AMQPChannelLayer(url, prefix="mysite", durable={"jobs": {"batch": 1}}, capacity=10)
    except ConfigurationError as error:
        raise SystemExit(str(error)) from None
    layer.on_loss.append(on_loss)
    return layer


async def talk(layer: AMQPChannelLayer) -> str:
    channel: str = await layer.new_channel()
    await layer.group_add("chat", channel)
    try:
        await layer.send(channel, {"type": "chat.message", "text": "hello"})
        await layer.group_send("chat", {"type": "chat.message", "text": "hello", "to": [1, None]})
        await layer.send_many([("jobs", {"type": "job.run", "id": 7})])
    except (BrokerUnavailable, ChannelFull, LayerError) as error:
        print(error)
    message = await layer.receive(channel)
    await layer.group_discard("chat", channel)
    await layer.flush()
    await layer.close()
    return str(message["text"])


async def work(layer: AMQPChannelLayer) -> None:
    async def handle(message: dict[str, object]) -> None:
        print(message["type"])

    await Worker(layer, handle, "jobs", concurrency=4, drain_timeout=10).run()


def emit(layer: AMQPChannelLayer) -> bool:
    layer.publisher.send("jobs", {"type": "job.run", "id": 7})
    layer.publisher.send_many([("jobs", {"type": "job.run", "id": 8})])
    layer.publisher.group_send("chat", {"type": "chat.message"}, wait=False)
    return layer.publisher.flush(5.0)
