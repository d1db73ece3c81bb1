"""The outbox: events that are rows first, and go onto the durable queue from there.

Written in a transaction, an event exists exactly when the transaction has committed, whatever happens to the
process or the broker afterwards. runworker sends what it finds, in order, and deletes what the broker has
confirmed; a crash between the two sends it again under the same id.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import msgpack
from asgiref.sync import sync_to_async
from django.apps import apps
from django.db import Error, close_old_connections, transaction
from django.db.models import Count, Min
from django.db.models.functions import Length
from django.utils import timezone

from asgi_amqp import MessageTooLarge
from carillon import locks, tracing
from carillon.budgets import fitting
from carillon.events import queue
from carillon.metrics import names

logger = logging.getLogger(__name__)

BATCH = 500
"""Rows that are sent at once, under one deadline: half as many after one that was not kept, down to one."""

BYTES = 4 * 1024 * 1024
"""The most that so many rows hold together, but for a larger one alone; less of it goes with fewer rows."""

ROUNDS = 10
"""Batches that a process sends in a row after a commit of its own; then it is runworker's turn."""

LOOK = 0.25
"""Seconds between looks at an empty outbox."""

AGAIN = 1.0
"""Seconds until the next try, when database or broker took nothing."""

_failed = float("-inf")  # when send_now() last did, by the monotonic clock


def _rows():
    # Not imported: emitters are imported before Django's models may be.
    return apps.get_model("carillon", "Outbox").objects


def store(messages: Sequence[dict[str, Any]]) -> None:
    """Keep messages for the queue, in the current transaction. Raises DatabaseError."""
    rows = _rows()
    with tracing.hop("outbox", messages):
        rows.bulk_create(rows.model(message=msgpack.packb(message)) for message in messages)


def waits() -> bool:
    """Whether something is in the outbox: what is emitted now must come after it. Raises DatabaseError."""
    return _rows().exists()


def send_some(most: int = BATCH) -> int:
    """Send the oldest rows and delete them; how many. Raises NotificationsUnavailable, DatabaseError."""
    with transaction.atomic():
        if not locks.alone(locks.OUTBOX):  # one sender at a time keeps the order
            return 0
        rows = _rows().order_by("pk")
        sizes = dict(rows.values_list("pk", Length("message"))[:most])
        some = list(sizes)[: fitting(sizes.values(), BYTES * most // BATCH)]
        if some:
            packed = rows.filter(pk__in=some).values_list("message", flat=True)
            _publish([msgpack.unpackb(bytes(message)) for message in packed])
            _rows().filter(pk__in=some).delete()
        return len(some)


def _publish(messages: Sequence[dict[str, Any]]) -> None:
    """All of them but what no broker ever takes: that would hold up what is behind it, withdrawn rights too.
    Raises NotificationsUnavailable."""
    try:
        queue.publish(messages)
    except queue.NotificationsUnavailable as error:
        if not isinstance(error.__cause__, MessageTooLarge):
            raise
        if half := len(messages) // 2:
            _publish(messages[:half])
            _publish(messages[half:])
            return
        logger.error("Dropped an event of the outbox: %s", error.__cause__)
        names.DROPPED.inc()


def send_now() -> None:
    """Send what is there, unless somebody is at it: who is looks once more when he has sent, so that nothing
    waits that came meanwhile. What cannot be sent, runworker sends: a transaction that tells of a hundred
    changes while the broker is away waits for it once. Raises nothing."""
    global _failed
    if time.monotonic() - _failed < AGAIN:
        return
    try:
        for _ in range(ROUNDS):
            if not send_some():
                break
    except (queue.NotificationsUnavailable, Error) as error:  # InterfaceError is no DatabaseError
        _failed = time.monotonic()
        logger.warning("The outbox waits for runworker: %s", type(error).__name__)


@sync_to_async(thread_sensitive=False)
def _send_some(most: int) -> int:
    close_old_connections()
    try:
        return send_some(most)
    finally:
        close_old_connections()


MEASURE = 5.0
"""Seconds between two looks at what waits."""


def waiting() -> tuple[int, float]:
    """How many events wait, and for how many seconds the oldest has. Ages compare two machines' clocks: none
    is below 0."""
    rows = _rows().aggregate(number=Count("pk"), oldest=Min("created"))
    now = timezone.now()
    return rows["number"], max(0.0, (now - (rows["oldest"] or now)).total_seconds())


def count_waiting() -> None:
    """Say how much waits and for how long."""
    close_old_connections()
    try:
        events, oldest = waiting()
    finally:
        close_old_connections()
    names.OUTBOX_EVENTS.set(events)
    names.OUTBOX_OLDEST.set(oldest)


async def measure() -> None:
    """Say how much waits, again and again until cancelled."""
    while True:
        with suppress(Error):  # run() says so
            await sync_to_async(count_waiting, thread_sensitive=False)()
        await asyncio.sleep(MEASURE)


async def run() -> None:
    """Empty the outbox as it fills, until cancelled."""
    most = BATCH
    while True:
        try:
            if await _send_some(most):
                most = min(most + most // 4 + 1, BATCH)
            else:
                await asyncio.sleep(LOOK)
        except queue.NotificationsUnavailable:
            most = max(most // 2, 1)
            await asyncio.sleep(AGAIN)
        except Error as error:  # InterfaceError, of a connection that broke, is no DatabaseError
            logger.warning("The outbox cannot be read: %s", type(error).__name__)
            await asyncio.sleep(AGAIN)
