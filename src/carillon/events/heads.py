"""The current epoch and how far its stream goes, kept in one row: a position to read before a query, and the
word of which stream to tail. Synchronous functions, and asynchronous ones for runworker and daphne.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable

from asgiref.sync import sync_to_async
from django.db import close_old_connections, transaction

from asgi_amqp.position import Position, message_of
from carillon.events.models import Head

logger = logging.getLogger(__name__)

FRESH = 0.25
"""Seconds for which a position that was read may be used again: any lower bound is safe."""

PATIENCE = 1.0
"""Seconds that the end of a stream may take to show at the broker that is asked."""

_cached: tuple[float, Position | None] = (0.0, None)


def position() -> Position | None:
    """A position that the stream had reached before this call; None when there is no stream yet. A query made
    afterwards sees everything that events at or before this position tell of."""
    global _cached
    read, known = _cached
    now = time.monotonic()
    if known is None or now - read > FRESH:
        row = Head.objects.filter(pk=Head.ONLY).first()
        known = Position(row.epoch, row.number) if row is not None else None
        _cached = (now, known)
    return known


def forget() -> None:
    """The next position() asks the database."""
    global _cached
    _cached = (0.0, None)


@sync_to_async(thread_sensitive=False)
def current() -> Position | None:
    """The epoch whose stream is to be tailed, and a position that it had reached. Raises DatabaseError."""
    close_old_connections()
    try:
        row = Head.objects.filter(pk=Head.ONLY).first()
        return Position(row.epoch, row.number) if row is not None else None
    finally:
        close_old_connections()


@sync_to_async(thread_sensitive=False)
def save(reached: Position) -> str | None:
    """Note how far the stream goes, never backwards; which epoch is current. Raises DatabaseError."""
    close_old_connections()
    try:
        mine = Head.objects.filter(pk=Head.ONLY, epoch=reached.epoch)
        mine.filter(number__lt=reached.number).update(number=reached.number)
        return Head.objects.filter(pk=Head.ONLY).values_list("epoch", flat=True).first()
    finally:
        close_old_connections()


@sync_to_async(thread_sensitive=False)
def replace(old: str | None) -> str:
    """A new epoch in place of `old`, unless another process was quicker: then that one's. Whoever saw that
    the stream of `old` lost events it once had calls this; the relay makes the new one. Raises
    DatabaseError."""
    with transaction.atomic():
        row = Head.objects.select_for_update().filter(pk=Head.ONLY).first()
        if row is not None and row.epoch != old:
            return row.epoch
        # Never used before, in this installation or one that was restored from its backup.
        epoch = f"{int(time.time()):x}{secrets.token_hex(3)}"
        if row is None:
            _, made = Head.objects.get_or_create(pk=Head.ONLY, defaults={"epoch": epoch})
            return epoch if made else Head.objects.get(pk=Head.ONLY).epoch
        row.epoch, row.number = epoch, 0
        row.save()
        return epoch


async def open_epoch(
    end: Callable[[str], Awaitable[int | None]], reached: Position | None = None, patience: float = PATIENCE
) -> str:
    """The epoch to append to. A stream that is gone, or that ends before where it once was, gets a new one:
    what its positions promised can no longer be kept, and clients are told so.

    `reached` is what the caller knows of the stream, beyond the row. A replica that is behind the others has
    `patience` seconds to get there before its stream counts as cut.
    """
    known = await current()
    if known is None:
        return await replace(None)
    if reached is not None and reached.epoch == known.epoch:
        known = max(known, reached, key=lambda position: position.number)
    deadline = time.monotonic() + patience
    while True:
        last = await end(known.epoch)
        if last is not None and (not known.number or last >= message_of(known.number)):
            return known.epoch
        if last is None and not known.number:
            return known.epoch  # it has just been begun: the caller makes its stream
        if last is None or time.monotonic() >= deadline:
            break
        await asyncio.sleep(0.1)
    what = "is gone" if last is None else "was cut"
    logger.warning("The event stream of epoch %s %s: a new epoch begins", known.epoch, what)
    return await replace(known.epoch)
