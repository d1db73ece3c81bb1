"""How an event gets onto the durable queue. From there the relay takes it to the log.

A message is `{"id", "group", "text", "audience", "stamp"}`: 16 bytes that name the event for ever, the group,
the payload as JSON text, the tags of those who may hear it (None: every subscriber), and the time in
milliseconds; and `"trace"`, the `traceparent` of the request that emitted it, if it had one. A message that
is sent again, by us or by who called, is recognised by its id: clients see it once.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from channels.exceptions import ChannelFull
from channels.layers import get_channel_layer

from asgi_amqp import LayerError
from carillon import tracing
from carillon.conf import conf
from carillon.events.event import tags_of
from carillon.logs import trace
from carillon.metrics import names

QUEUE = "notifications"


class NotificationsUnavailable(Exception):
    """The broker did not take the messages: it is away, full, or did not confirm in time.

    Whether some of them were taken is not known; sending the same messages again is safe.
    """

    def __init__(self) -> None:
        super().__init__(
            "The message broker is not available: nothing was confirmed. Try again in a few seconds."
        )


def message(
    group: str, text: str, audience: Mapping[str, Sequence[int]] | None = None, id: bytes | None = None
) -> dict[str, Any]:
    """An event, ready for the queue; `id`: 16 bytes, where the caller has given it one."""
    made = {
        "id": os.urandom(16) if id is None else id,
        "group": group,
        "text": text,
        "audience": tags_of(audience),
        "stamp": int(time.time() * 1000),
    }
    if traced := trace.get():
        made["trace"] = traced
    return made


def publish(messages: Sequence[dict[str, Any]], timeout: float | None = None) -> None:
    """Put messages on the durable queue, in order, as one batch; returns when the broker has confirmed them
    all.

    Synchronous: not for an event loop's thread. Raises NotificationsUnavailable.
    """
    if not messages:
        return
    with _counted(messages):
        get_channel_layer().publisher.send_many(
            [(QUEUE, message) for message in messages], timeout=timeout or conf.PUBLISH_SECONDS
        )


async def apublish(messages: Sequence[dict[str, Any]], timeout: float | None = None) -> None:
    """`publish` for asynchronous code."""
    layer = get_channel_layer()
    with _counted(messages):
        async with asyncio.timeout(timeout or conf.PUBLISH_SECONDS):
            await asyncio.gather(*(layer.send(QUEUE, message) for message in messages))


@contextmanager
def _counted(messages: Sequence[dict[str, Any]]) -> Iterator[None]:
    begun = time.perf_counter()
    try:
        with tracing.hop("emit", messages):
            yield
    except (LayerError, ChannelFull, TimeoutError) as error:
        names.EMIT_FAILURES.inc()
        raise NotificationsUnavailable from error
    names.EMIT_SECONDS.observe(time.perf_counter() - begun)
    names.EMITTED.inc(len(messages))


def check(timeout: float = 2.0) -> None:
    """Raises NotificationsUnavailable unless the broker takes a message (that nobody listens to)."""
    try:
        get_channel_layer().publisher.group_send("internal.health", {"type": "health"}, timeout=timeout)
    except (LayerError, ChannelFull) as error:
        raise NotificationsUnavailable from error
