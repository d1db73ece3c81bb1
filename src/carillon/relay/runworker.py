"""What the process runworker does: the relay, the outbox, and the row that says how far the log goes."""

from __future__ import annotations

import asyncio
import logging
import signal
import time

from django.db import DatabaseError
from prometheus_client import Counter

from carillon.events import broker, heads, outbox
from carillon.relay.relay import Relay

logger = logging.getLogger(__name__)

STOP_DEADLINE = 8.0
"""Seconds a stop may take: what is in hand is finished, the rest stays on the queue."""

HEAD_INTERVAL = 0.25
"""Seconds between notes of how far the stream goes."""

RELAYED = Counter("carillon_relay_events", "Events that came by the durable queue", ["outcome"])


async def serve() -> bool:
    """Work until TERM or INT; False when work in hand had to be cut off (it stays on the queue)."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    relay = Relay(
        broker.options("carillon relay"),
        broker.topology(),
        broker.queue(),
        open_epoch=heads.open_epoch,
        declaration=broker.declaration,
        counted=lambda what, count: RELAYED.labels(what).inc(count),
    )
    running = asyncio.create_task(relay.run())
    stop = asyncio.create_task(stopping.wait())
    helpers = [asyncio.create_task(work) for work in (note_heads(relay), outbox.run())]
    logger.info("runworker is ready")
    try:
        await asyncio.wait({running, stop, *helpers}, return_when=asyncio.FIRST_COMPLETED)
        for helper in helpers:
            if helper.done():
                helper.result()  # raises what ended it
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
        for task in (running, stop, *helpers):
            task.cancel()
        await asyncio.gather(running, stop, *helpers, return_exceptions=True)


async def note_heads(relay: Relay) -> None:
    """Keep the row of `heads` near the end of the stream, and the relay at the epoch that it names, until
    cancelled. A database that is away only makes the positions in REST answers older."""
    noted = None
    looked = 0.0
    while True:
        await asyncio.sleep(HEAD_INTERVAL)
        reached = relay.position
        try:
            if reached is not None and reached != noted:
                relay.follow(await heads.save(reached))
                noted = reached
            elif relay.epoch and time.monotonic() - looked >= 1:
                looked = time.monotonic()
                row = await heads.current()
                relay.follow(None if row is None else row.epoch)
        except DatabaseError as error:
            logger.warning("The position cannot be noted: %s", type(error).__name__)
            await asyncio.sleep(1)
