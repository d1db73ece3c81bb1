"""Dead letters of a durable channel: looked at, sent again, or thrown away; and how much waits there."""

import asyncio
import contextlib
import hashlib
from collections.abc import Callable, Collection, Iterator
from datetime import datetime
from typing import Any, NamedTuple

from .codec import Message, decode, encode, encode_batch, encode_target
from .exceptions import GONE, BrokerUnavailable, ConfigurationError, describe
from .layer import AMQPChannelLayer
from .loops import run_in
from .queues import exists
from .session import Session
from .topology import Queue


class Letter(NamedTuple):
    """One AMQP message of the dead-letter queue. `name` is made of its body: the same letter keeps it.
    `time`: when it died, as the broker or its timestamp says; None: neither does. `sound`: it holds messages
    that can be sent again; what something else wrote is shown as it is."""

    name: str
    reason: str
    time: datetime | None
    size: int
    messages: list[Message]
    sound: bool = True


class Depth(NamedTuple):
    """Of a durable channel: messages that no reader has in hand, dead letters, and readers."""

    messages: int
    dead: int
    readers: int


def letter_of(body: bytes, headers: dict[str, Any], timestamp: datetime | None = None) -> Letter:
    """The broker says why in a header. An application that puts one there itself writes the reason in place
    of the target.
    """
    try:
        pairs: list[tuple[str, Any]] = list(decode(body))
    except ValueError:
        pairs = [("not a batch", body)]
    death = (headers.get("x-death") or [{}])[0]
    reason = death.get("reason") or (pairs[0][0] if pairs else "")
    name = hashlib.sha256(body).hexdigest()[:12]
    messages = [message if isinstance(message, dict) else {"body": message} for _, message in pairs]
    sound = all(isinstance(message, dict) for _, message in pairs)
    return Letter(name, str(reason), death.get("time") or timestamp, len(body), messages, sound)


def with_text_keys(value: Any) -> Any:
    """A copy that `json.dumps` takes: keys that are no text are written as it is in Python."""
    if type(value) is dict:
        copy: Any = {}
        for key, each in value.items():
            copy[key if isinstance(key, str) else repr(key)] = with_text_keys(each)
    elif type(value) is list:
        copy = []
        for each in value:
            copy.append(with_text_keys(each))
    else:
        copy = value
    return copy


async def go_through(
    layer: AMQPChannelLayer,
    channel: str,
    what: str = "show",
    names: Collection[str] | None = None,
    say: Callable[[Letter], None] = lambda letter: None,
    limit: int | None = None,
    before: datetime | None = None,
) -> set[str]:
    """`show`, `replay` or `drop` the letters with these names, or all, oldest first; the names that were
    found. One is taken off after it has been dealt with; what is not taken off goes back, in its order. So
    does one that is not `sound` and was to be replayed. As many are looked at as there are when it begins,
    `limit` at most: what is replayed may die again. `before`: only those that are known to have died before
    then. `say` is called when one has been replayed, and before it is dropped, in the loop of the layer's
    session: where this is called by async_to_sync, that is the background's. BrokerUnavailable, ChannelFull
    where a replay has no room, and what `say` raises: the pass ends there. A channel that the broker does not
    know has no letters.
    """
    queue = _durable(layer, channel)
    session = layer.session()

    async def go() -> set[str]:
        destination = layer.destination(channel)
        found: set[str] = set()
        with _asking(queue.dead):
            link = await session.receiver.supervisor.link(layer.timeout)
            if not await exists(link, queue.dead):
                return found
            there = await link.attempt(lambda channel: channel.queue_declare(queue.dead, passive=True))
            wire = await link.wire(passing=True)
        most = there.message_count or 1  # a queue without a leader counts none: its own answer says so
        try:
            for _ in range(most if limit is None else min(limit, most)):
                with _asking(queue.dead):
                    got = await link.own(wire.channel.basic_get(queue.dead, timeout=layer.timeout))
                if got.delivery_tag is None:
                    break
                properties = got.header.properties
                letter = letter_of(got.body, dict(properties.headers or {}), properties.timestamp)
                if names is not None and letter.name not in names:
                    continue
                if before is not None and (letter.time is None or letter.time >= before):
                    continue
                found.add(letter.name)
                if what == "replay" and letter.sound:
                    for message in letter.messages:
                        await session.sender.send(destination, encode(message), layer.timeout)
                    wire.ack(got.delivery_tag)
                    wire.tell()  # now: whatever `say` does, it has been sent
                say(letter)
                if what == "drop":
                    wire.ack(got.delivery_tag)
        finally:
            await wire.close()
        return found

    return await run_in(session.loop, go)


async def bury(session: Session, queue: Queue, reason: str, event: bytes, timeout: float) -> None:
    """Put an event among the dead letters of a queue; back when the broker has it. LayerError, or what a call
    on a link that goes may raise.
    """
    link = await session.receiver.supervisor.link(timeout)
    answered: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def note(*, ok: bool) -> None:
        if not answered.done():
            answered.set_result(ok)

    wire = await link.wire(
        passing=True,
        on_confirm=lambda tag, several, ok: note(ok=ok),
        on_return=lambda identity: note(ok=False),
    )
    try:
        body = encode_batch([encode_target(reason) + event])
        link.write(wire.publish("", (queue.dead,), body, 1))
        async with asyncio.timeout(timeout):
            if not await answered:
                raise BrokerUnavailable(f"the broker does not take a message for {queue.dead}")
    finally:
        await wire.close()


async def known(layer: AMQPChannelLayer, channel: str) -> bool:
    """Whether the broker has the queues of a durable channel, which who first sends to it or reads it makes.
    LayerError.
    """
    queue = _durable(layer, channel)
    session = layer.session()

    async def look() -> bool:
        with _asking(queue.dead):
            return await exists(await session.receiver.supervisor.link(layer.timeout), queue.dead)

    return await run_in(session.loop, look)


async def depth(layer: AMQPChannelLayer, channel: str) -> Depth:
    """How much waits there, and for how many; nothing where the broker does not know the channel.
    LayerError.
    """
    queue = _durable(layer, channel)
    session = layer.session()

    async def look() -> Depth:
        counts = []
        with _asking(queue.name):
            async with asyncio.timeout(layer.timeout):
                link = await session.receiver.supervisor.link(layer.timeout)
                for name in (queue.name, queue.dead):
                    if await exists(link, name):
                        there = await link.attempt(lambda wire: wire.queue_declare(name, passive=True))  # noqa: B023
                        counts.append((there.message_count or 0, there.consumer_count or 0))
                    else:
                        counts.append((0, 0))
        (messages, readers), (dead, _) = counts
        return Depth(messages, dead, readers)

    return await run_in(session.loop, look)


@contextlib.contextmanager
def _asking(name: str) -> Iterator[None]:
    """What a call on a link that goes may raise is BrokerUnavailable for who called."""
    try:
        yield
    except BrokerUnavailable:
        raise
    except GONE as error:
        raise BrokerUnavailable(f"{name}: {describe(error)}") from None


def _durable(layer: AMQPChannelLayer, channel: str) -> Queue:
    queue = layer.destination(channel).queue
    if queue is None or not queue.dead:
        raise ConfigurationError(f"{channel} is not a durable channel of this layer")
    return queue
