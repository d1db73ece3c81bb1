"""The row that says which epoch is current, how far its log goes and which numbers are spoken for: a position
to read before a query, the word of which stream to tail, and the fence of relays. Synchronous for uWSGI,
asynchronous for runworker and daphne. Everything raises DatabaseError.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from functools import wraps

from asgiref.sync import sync_to_async
from django.db import close_old_connections, transaction

from asgi_amqp import Position
from carillon.events.event import first_after
from carillon.events.models import Head

FRESH = 0.25
"""Seconds for which a position that was read may be used again: any lower bound is safe."""

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


class Superseded(Exception):
    """Another relay has taken over, or another epoch has begun."""


def _from_a_loop(function: Callable) -> Callable:
    """In a thread, with a connection to the database that lives."""

    @wraps(function)
    def run(*arguments):
        close_old_connections()
        try:
            return function(*arguments)
        finally:
            close_old_connections()

    return sync_to_async(run, thread_sensitive=False)


def _row():
    return Head.objects.filter(pk=Head.ONLY)


@_from_a_loop
def current() -> Position | None:
    """The current epoch, and a number that its log has reached; None: there was none yet."""
    row = _row().first()
    return Position(row.epoch, row.number) if row is not None else None


@_from_a_loop
def begin(old: str | None) -> str:
    """A new epoch in place of `old`, whose stream is gone. Raises Superseded where it is not the current one.
    For the active relay alone."""
    # Never used before, in this installation or one that was restored from its backup.
    epoch = f"{int(time.time()):x}{secrets.token_hex(3)}"
    if old is None:
        _, done = Head.objects.get_or_create(pk=Head.ONLY, defaults={"epoch": epoch})
    else:
        done = _row().filter(epoch=old).update(epoch=epoch, number=0, reserved=0)
    if not done:
        raise Superseded(f"the epoch {old} is over")
    return epoch


@_from_a_loop
def reserve(epoch: str, reached: int, size: int) -> tuple[Position, int]:
    """For a relay that takes over and has found the log to go to `reached`: how far the log should go, and
    the first of `size` numbers that nobody was given, and nobody else will be. Raises Superseded."""
    with transaction.atomic():
        row = _row().select_for_update().filter(epoch=epoch).first()
        if row is None:
            raise Superseded(f"the epoch {epoch} is over")
        noted = max(row.number, reached)
        first = first_after(max(row.reserved, noted))
        row.reserved = first - 1 + size
        row.save()
    return Position(epoch, noted), first


@_from_a_loop
def extend(epoch: str, reserved: int, size: int) -> int:
    """`size` more numbers for the relay whose numbers end with `reserved`; their end. Raises Superseded."""
    if not _row().filter(epoch=epoch, reserved=reserved).update(reserved=reserved + size):
        raise Superseded("another relay has taken over")
    return reserved + size


@_from_a_loop
def note(reached: Position, reserved: int) -> None:
    """How far the log goes, from the relay whose numbers end with `reserved`. Raises Superseded."""
    mine = _row().filter(epoch=reached.epoch, reserved=reserved)
    if not mine.update(number=reached.number):
        raise Superseded("another relay has taken over")
