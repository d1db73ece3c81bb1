"""Declares queues and streams, for publishers and readers alike."""

import logging

from aiormq import ChannelNotFoundEntity, ChannelPreconditionFailed
from aiormq.abc import AbstractChannel

from .connection import Link
from .exceptions import BrokerUnavailable, describe, is_gone
from .topology import DEAD, Arguments, Queue, Topology

log = logging.getLogger("asgi_amqp")


async def exists(link: Link, name: str) -> bool:
    """Whether the queue, or the stream, is there. BrokerUnavailable: its own broker is down."""
    try:
        await link.attempt(lambda channel: channel.queue_declare(name, passive=True))
    except ChannelNotFoundEntity as error:
        if not is_gone(error):
            raise BrokerUnavailable(f"{name}: {describe(error)}") from None
        return False
    return True


async def ensure(link: Link, name: str, arguments: Arguments) -> None:
    """Make a queue or a stream if it is not there. ChannelPreconditionFailed: the broker makes none, as at
    its limit of queues.

    One that exists with other arguments is used as it is: a changed capacity must not stop a rolling upgrade.
    """
    try:
        await link.attempt(lambda channel: channel.queue_declare(name, durable=True, arguments=arguments))
    except ChannelPreconditionFailed as error:
        if not await exists(link, name):
            raise
        log.warning("Queue %s exists with other options and is used as it is: %s", name, describe(error))


async def declare_queue(link: Link, topology: Topology, queue: Queue) -> None:
    """The queue, the dead-letter queue beside it, and the binding. Whoever comes first makes them."""
    if queue.dead:
        await ensure(link, queue.dead, DEAD)
    await ensure(link, queue.name, queue.arguments)

    async def bind(channel: AbstractChannel) -> None:
        await channel.exchange_declare(topology.exchange, exchange_type="direct", durable=True)
        await channel.queue_bind(queue.name, topology.exchange, queue.key)

    await link.attempt(bind)
