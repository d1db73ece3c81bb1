"""Who is connected, behind three calls: `join`, `leave` and `connected`.

Kept in PostgreSQL, by process: a process that dies takes its sockets along when its heartbeat grows old.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from datetime import timedelta
from typing import Any
from weakref import WeakKeyDictionary

from channels.db import database_sync_to_async
from django.contrib.auth import get_user_model
from django.db import DatabaseError, IntegrityError, transaction
from django.db.models import Q, QuerySet
from django.utils import timezone

from carillon.notifications import NotificationsUnavailable, aemit_channel_notification
from carillon.websocket.models import Connection, Process

logger = logging.getLogger(__name__)

HEARTBEAT = 10.0  # seconds
STALE = timedelta(seconds=35)  # three heartbeats missed
FORGET = timedelta(minutes=10)
# What changes within this time is told of once: a reload of a thousand pages is one thing to look at.
ANNOUNCE_AFTER = 0.2  # seconds

GROUP = "connections-changed"
PAYLOAD = {"group_name": "connections", "changed": True}


def connected(user: Any) -> QuerySet[Connection]:
    """The live connections that a user may see: his own and his team mates'; an admin, all. Newest first."""
    found = Connection.objects.filter(process__heartbeat__gt=timezone.now() - STALE)
    if not user.is_superuser:
        mates = get_user_model().objects.filter(teams__members=user.pk)
        found = found.filter(Q(user=user.pk) | Q(user__in=mates))
    return found.select_related("user").order_by("-since", "id")


class Presence:
    """The sockets of this process. The heartbeat runs while there are any."""

    def __init__(self) -> None:
        self._process = uuid.uuid4()
        self._here: dict[uuid.UUID, Connection] = {}
        self._heartbeat: asyncio.Task[None] | None = None
        self._announcing: asyncio.Task[None] | None = None

    async def join(self, user_id: int, address: str, client: str) -> uuid.UUID:
        """Note a new socket; what it answers is for `leave`. Raises DatabaseError."""
        row = Connection(process_id=self._process, user_id=user_id, address=address[:64], client=client[:200])
        self._here[row.id] = row
        try:
            await self._store([row])
        except BaseException:
            self._here.pop(row.id, None)
            raise
        if self._heartbeat is None or self._heartbeat.done():
            self._heartbeat = asyncio.create_task(self._beat())
        self._announce()
        return row.id

    async def leave(self, entry: uuid.UUID) -> None:
        """Forget a socket. Raises nothing: what is left behind goes stale with the process."""
        if self._here.pop(entry, None) is None:
            return
        if not self._here and self._heartbeat is not None:
            self._heartbeat.cancel()
            self._heartbeat = None
        try:
            await self._remove(entry, last=not self._here)
        except DatabaseError as error:
            logger.warning("Could not note that a socket closed: %s", type(error).__name__)
        self._announce()

    @database_sync_to_async
    def _store(self, rows: list[Connection]) -> None:
        with transaction.atomic():
            Process.objects.update_or_create(id=self._process, defaults={"heartbeat": timezone.now()})
            Connection.objects.bulk_create(rows, ignore_conflicts=True)

    @database_sync_to_async
    def _remove(self, entry: uuid.UUID, last: bool) -> None:
        Connection.objects.filter(id=entry).delete()
        if last:
            # Only if nobody joined meanwhile: rows of other sockets would go with it.
            Process.objects.filter(id=self._process, connections=None).delete()

    @database_sync_to_async
    def _touch(self) -> bool:
        now = timezone.now()
        Process.objects.filter(heartbeat__lt=now - FORGET).delete()
        return Process.objects.filter(id=self._process).update(heartbeat=now) == 1

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT)
            try:
                if not await self._touch():
                    # Another process forgot this one: it was cut off from the database for long.
                    await self._store(list(self._here.values()))
            except IntegrityError:
                logger.warning("A connected user is gone: presence is incomplete until its socket closes")
            except DatabaseError as error:
                logger.warning("Presence cannot be kept: %s", type(error).__name__)

    def _announce(self) -> None:
        if self._announcing is None or self._announcing.done():
            self._announcing = asyncio.create_task(self._announce_soon())

    async def _announce_soon(self) -> None:
        await asyncio.sleep(ANNOUNCE_AFTER)
        # From here on a further change needs a further announcement.
        self._announcing = None
        try:
            await aemit_channel_notification(GROUP, PAYLOAD)
        except NotificationsUnavailable as error:
            logger.warning("Could not announce who is connected: %s", error)


_presences: WeakKeyDictionary[asyncio.AbstractEventLoop, Presence] = WeakKeyDictionary()


def presence() -> Presence:
    """The one of the running loop's process."""
    return _presences.setdefault(asyncio.get_running_loop(), Presence())
