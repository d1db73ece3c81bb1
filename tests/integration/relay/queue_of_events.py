"""The durable queue of events and its dead letters, as a test reaches them: past the API."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aio_pika

from asgi_amqp import AMQPChannelLayer

URL = os.environ.get("CARILLON_TEST_AMQP_URL", "")
QUEUE = "carillon.d.notifications"
DEAD = f"{QUEUE}.dead"
GROUP = "jobs-summary"


@asynccontextmanager
async def the_layer() -> AsyncIterator[AMQPChannelLayer]:
    """The stack's own channel layer, as Carillon's settings make it."""
    from carillon.settings import CHANNEL_LAYERS

    config = CHANNEL_LAYERS["default"]["CONFIG"]
    layer = AMQPChannelLayer(URL, prefix=config["prefix"], durable=config["durable"])
    try:
        yield layer
    finally:
        await layer.close()


def event(text: str) -> dict:
    return {"id": uuid.uuid4().bytes, "group": GROUP, "text": text, "audience": None, "stamp": 1}


async def dead_letters() -> list[bytes]:
    """Takes what is in the dead-letter queue."""
    connection = await aio_pika.connect(URL)
    async with connection:
        channel = await connection.channel()
        queue = await channel.get_queue(DEAD)
        found = []
        while (message := await queue.get(fail=False)) is not None:
            found.append(message.body)
            await message.ack()
        return found
