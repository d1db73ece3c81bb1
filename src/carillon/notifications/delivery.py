"""How a message travels: onto the durable queue, and from there to the sockets of every process.

A message is `{"group": <layer group>, "message": {"type": …, …}}`: what to broadcast, and to whom.
Everything else in Carillon calls `publish`, `apublish` and `broadcast`, and knows nothing of the broker.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from channels.exceptions import ChannelFull
from channels.layers import get_channel_layer

from asgi_amqp.exceptions import LayerError

QUEUE = "notifications"
TIMEOUT = 5.0  # seconds until a publish that the broker did not confirm counts as failed


class NotificationsUnavailable(Exception):
    """The broker did not take the messages: it is away, full, or did not confirm in time.

    Whether some of them were taken is not known; sending them again is safe for receivers that look at ids.
    """

    def __init__(self) -> None:
        super().__init__(
            "The message broker is not available: nothing was confirmed. Try again in a few seconds."
        )


def publish(messages: Sequence[dict[str, Any]], timeout: float = TIMEOUT) -> None:
    """Put messages on the durable queue, in order, as one batch; returns when all are confirmed.

    Synchronous: not for an event loop's thread. Raises NotificationsUnavailable.
    """
    if not messages:
        return
    try:
        get_channel_layer().publisher.send_many([(QUEUE, message) for message in messages], timeout=timeout)
    except (LayerError, ChannelFull) as error:
        raise NotificationsUnavailable from error


async def apublish(messages: Sequence[dict[str, Any]]) -> None:
    """`publish` for asynchronous code."""
    layer = get_channel_layer()
    try:
        async with asyncio.timeout(TIMEOUT):
            await asyncio.gather(*(layer.send(QUEUE, message) for message in messages))
    except (LayerError, ChannelFull, TimeoutError) as error:
        raise NotificationsUnavailable from error


async def broadcast(message: dict[str, Any]) -> None:
    """What runworker does with a message from the queue. An error means: not acked."""
    await get_channel_layer().group_send(message["group"], message["message"])
    # `group_send` is back before the message has left, which it does in this turn of the loop. The ack on the
    # same connection must come after it: a worker killed between the two would take the message along.
    await asyncio.sleep(0)


def check(timeout: float = 2.0) -> None:
    """Raises NotificationsUnavailable unless the broker takes a message (that nobody listens to)."""
    try:
        get_channel_layer().publisher.group_send("internal.health", {"type": "health"}, timeout=timeout)
    except (LayerError, ChannelFull) as error:
        raise NotificationsUnavailable from error
