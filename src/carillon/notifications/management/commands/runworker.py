"""`runworker`: takes notifications off the durable queue and broadcasts them to the sockets.

In place of the command of the same name in Channels, which would need to be told the queue's name and takes
messages without acknowledging them.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from typing import Any

from asgi_amqp.worker import Worker
from channels.layers import get_channel_layer
from django.core.management.base import BaseCommand, CommandError

from carillon.notifications import delivery

logger = logging.getLogger(__name__)

# Seconds a stop may take: what is in hand is finished, the rest stays on the queue.
STOP_DEADLINE = 8.0


class Command(BaseCommand):
    help = "Broadcast notifications from the durable queue to the websockets, until told to stop (TERM, INT)."
    # Checks and migrations are the launcher's to wait for.
    requires_system_checks: list[str] = []

    def handle(self, *args: Any, **options: Any) -> None:
        if not asyncio.run(serve()):
            raise CommandError(f"runworker did not stop within {STOP_DEADLINE:g} s and was cut off.")


async def serve() -> bool:
    """Work until TERM or INT; False when work in hand had to be cut off (it stays on the queue)."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    layer = get_channel_layer()
    # One at a time: the order of the queue is the order in which clients hear.
    worker = Worker(layer, delivery.broadcast, delivery.QUEUE, concurrency=1)
    running = asyncio.create_task(worker.run())
    stop = asyncio.create_task(stopping.wait())
    logger.info("runworker is ready")
    await asyncio.wait({running, stop}, return_when=asyncio.FIRST_COMPLETED)
    if running.done():
        stop.cancel()
        running.result()  # raises what ended it
        return True
    logger.info("runworker is stopping")
    worker.stop()
    done, _ = await asyncio.wait({running}, timeout=STOP_DEADLINE)
    if not done:
        running.cancel()
        await asyncio.wait({running}, timeout=1.0)
        return False
    running.result()
    await layer.close()
    return True
