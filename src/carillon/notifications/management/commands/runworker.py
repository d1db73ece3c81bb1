"""`runworker`: takes notifications off the durable queue and broadcasts them to the sockets.

In place of the command of the same name in Channels, which would need to be told the queue's name and takes
messages without acknowledging them.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from channels.layers import get_channel_layer
from django.core.management.base import BaseCommand, CommandError

from asgi_amqp.exceptions import LayerError
from asgi_amqp.worker import Worker
from carillon.notifications import delivery

logger = logging.getLogger(__name__)

DRAIN = 5.0  # seconds that what is in hand gets to finish; the rest stays on the queue


class Command(BaseCommand):
    help = "Broadcast notifications from the durable queue to the websockets, until told to stop (TERM, INT)."
    # Checks and migrations are the launcher's to wait for.
    requires_system_checks: list[str] = []

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            asyncio.run(serve())
        except LayerError as error:
            raise CommandError(f"The broker cannot be used: {error}") from None


async def serve() -> None:
    """Work until TERM or INT. Raises LayerError when the broker cannot be reached at the start."""
    layer = get_channel_layer()
    # One at a time: the order of the queue is the order in which clients hear.
    worker = Worker(layer, delivery.broadcast, delivery.QUEUE, concurrency=1, drain_timeout=DRAIN)
    logger.info("runworker starts")
    try:
        await worker.run()
    finally:
        await layer.close()
    logger.info("runworker has stopped after %d notifications", worker.handled)
