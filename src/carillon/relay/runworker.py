"""What the process runworker does: the relay, and the outbox."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Coroutine
from typing import Any

from carillon.events import outbox
from carillon.relay.relay import Relay

logger = logging.getLogger(__name__)

STOP_DEADLINE = 8.0
"""Seconds a stop may take: what is in hand is finished, the rest stays on the queue."""


async def serve(*beside: Coroutine[Any, Any, None]) -> bool:
    """Work until TERM or INT, with more work `beside`; False when work in hand had to be cut off (it stays on
    the queue)."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    relay = Relay()
    running = asyncio.create_task(relay.run())
    stop = asyncio.create_task(stopping.wait())
    sending = asyncio.create_task(outbox.run())
    measuring = [asyncio.create_task(work) for work in (outbox.measure(), *beside)]
    logger.info("runworker is ready")
    try:
        await asyncio.wait({running, stop, sending}, return_when=asyncio.FIRST_COMPLETED)
        if sending.done():
            sending.result()  # raises what ended it
        if running.done():
            running.result()
            return True
        logger.info("runworker is stopping")
        await relay.stop()
        done, _ = await asyncio.wait({running}, timeout=STOP_DEADLINE)
        if done:
            running.result()
        return bool(done)
    finally:
        tasks = (running, stop, sending, *measuring)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
