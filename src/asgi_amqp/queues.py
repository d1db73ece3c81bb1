"""Declares the queue of a normal channel, for publishers and readers alike."""

import logging

from aiormq import ChannelPreconditionFailed
from aiormq.abc import AbstractChannel

from .connection import Link
from .topology import DEAD, Queue, Topology

log = logging.getLogger("asgi_amqp")


async def declare_queue(link: Link, topology: Topology, queue: Queue) -> None:
    """The queue, the dead-letter queue beside it, and the binding. Whoever comes first makes them.

    One that exists with other arguments is used as it is: a changed capacity must not stop a rolling upgrade.
    """
    wanted = [(queue.name, queue.arguments)]
    if queue.dead:
        wanted.insert(0, (queue.dead, DEAD))
    for name, arguments in wanted:
        try:
            await link.attempt(
                lambda channel: channel.queue_declare(name, durable=True, arguments=arguments)  # noqa: B023
            )
        except ChannelPreconditionFailed as error:
            log.warning("Queue %s exists with other options and is used as it is: %s", name, error)

    async def bind(channel: AbstractChannel) -> None:
        await channel.exchange_declare(topology.exchange, exchange_type="direct", durable=True)
        await channel.queue_bind(queue.name, topology.exchange, queue.key)

    await link.attempt(bind)
