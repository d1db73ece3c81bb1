"""Dead letters: what the relay could not take to the log, to be looked at, sent again or thrown away."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Any, NamedTuple

import aio_pika

from asgi_amqp import codec
from carillon.events import broker

SECONDS = 10.0
AWAY = (OSError, TimeoutError, aio_pika.exceptions.AMQPError)
"""What a broker that does not answer, or not so, raises."""


class Letter(NamedTuple):
    """`name` is made of what is in it: it stays the same, and twins share it."""

    name: str
    reason: str
    message: dict[str, Any]
    again: bytes
    """The queue message that sends it again: the same, with the same id."""

    def line(self) -> str:
        """One line for a list."""
        stamp, group, id = (self.message.get(key) for key in ("stamp", "group", "id"))
        when = ""
        if isinstance(stamp, int) and 0 < stamp < 2**42:
            when = datetime.fromtimestamp(stamp / 1000, UTC).isoformat(" ", "seconds")
        named = id.hex() if isinstance(id, bytes) else ""
        size = f"{len(self.again)} bytes"
        group = group if isinstance(group, str) else ""
        return "  ".join(part for part in (self.name, when, group[:60], named, size, self.reason) if part)

    def text(self) -> str:
        """All of it, as JSON; bytes are shown in hexadecimal digits."""
        shown = {"reason": self.reason, "message": self.message}
        return json.dumps(shown, indent=2, default=lambda value: getattr(value, "hex", lambda: repr(value))())


def letter_of(body: bytes, headers: dict[str, Any]) -> Letter:
    """What is in a message of the dead-letter queue: the relay's letters are batches of one message, with the
    reason in place of its target. The broker itself puts messages there as they were."""
    again, message, reason = body, {"body": body}, ""
    with suppress(ValueError):
        ((reason, message),) = codec.decode(body)
    if death := (headers.get("x-death") or [{}])[0].get("reason"):
        reason = str(death)
    elif isinstance(raw := message.get("body"), bytes) and len(message) == 1:
        again = raw
    else:
        again = codec.encode_batch([codec.encode_target(broker.CHANNEL) + codec.encode(message)])
    return Letter(hashlib.sha256(again).hexdigest()[:12], reason, message, again)


@asynccontextmanager
async def _channel() -> AsyncIterator[aio_pika.abc.AbstractChannel]:
    """To the first broker that answers. Raises one of AWAY."""
    options = broker.options("carillon dead letters")
    for at, target in enumerate(options.targets, 1):
        try:
            connection = await aio_pika.connect(
                host=target.host, port=target.port, login=target.user, password=target.password,
                virtualhost=target.vhost, ssl=target.tls, ssl_context=options.tls if target.tls else None,
                timeout=SECONDS,
            )  # fmt: skip
            break
        except AWAY:
            if at == len(options.targets):
                raise
    async with connection:
        yield await connection.channel()


async def go_through(
    what: str, names: Collection[str] | None, say: Callable[[Letter], None] = lambda letter: None
) -> set[str]:
    """`list`, `show`, `replay` or `drop` the letters with these names, or all; the names that were found. One
    that is sent again is taken off when that is confirmed; what is not taken off stays, in its order."""
    queue = broker.queue()
    found = set()
    async with _channel() as channel:
        dead = await channel.get_queue(queue.dead)
        while (message := await dead.get(fail=False, timeout=SECONDS)) is not None:
            letter = letter_of(message.body, dict(message.headers))
            if names is not None and letter.name not in names:
                continue
            found.add(letter.name)
            if what == "replay":
                again = aio_pika.Message(letter.again, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
                await channel.default_exchange.publish(again, queue.name, timeout=SECONDS)
            say(letter)
            if what in ("replay", "drop"):
                await message.ack()
    return found
