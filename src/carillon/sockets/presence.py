"""Who is connected and who watches what: `join`, `watch`, `leave`, and `connected` to ask.

The truth about a socket is in the process that serves it. Each process keeps a copy of its own in PostgreSQL,
written in batches, off the sockets' way: a client that comes waits for no row of it. A process that dies
takes its sockets along when its heartbeat grows old, by the one clock that all agree on, the database's.

How far the copy may be from the truth: a socket that comes, goes or subscribes is seen within a second. After
a kill -9 the dead process's sockets are shown for STALE at most, and those who asked to be told hear of it
within STALE and one HEARTBEAT. While the database is away nothing can be asked; when it is back, the copy is
right again within a second, as far as it was not forgotten, and within a HEARTBEAT where it was.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from typing import Any
from weakref import WeakKeyDictionary

from channels.db import database_sync_to_async
from django.contrib.auth import get_user_model
from django.db import Error, transaction
from django.db.models import Q, QuerySet
from django.db.models.functions import Now
from django.utils import timezone

from carillon import logs
from carillon.budgets import fitting
from carillon.events import NotificationsUnavailable, aemit_channel_notification
from carillon.metrics import names
from carillon.sockets.models import Connection, Process, Watch

logger = logging.getLogger(__name__)

HEARTBEAT = 3.0  # seconds
STALE = timedelta(seconds=10)  # three heartbeats missed
GATHER = 0.2  # seconds: a reload of a thousand pages is one batch, and one thing to look at
BATCH = 500  # sockets in one transaction: others want the database's thread, too
ROWS = 2000  # of who watches what, likewise; a socket's allowance of groups bounds how many it makes
APART = 0.6  # seconds between two writes of one socket, however often it subscribes to something else
AGAIN = 1.0  # seconds until the next try, when database or broker took nothing

GROUP = "connections-changed"
PAYLOAD = {"group_name": "connections", "changed": True}


def subscribed(group: str) -> QuerySet[Connection]:
    """The live connections that are subscribed to a group, whoever asks: for operators."""
    return Connection.objects.filter(process__heartbeat__gt=Now() - STALE, watches__group=group)


def connected(user: Any, group: str | None = None) -> QuerySet[Connection]:
    """The live connections that a user may see: his own and his team mates'; an admin, all. Newest first.
    With `group`, those that are subscribed to it."""
    found = Connection.objects.filter(process__heartbeat__gt=Now() - STALE)
    if not user.is_superuser:
        mates = get_user_model().objects.filter(teams__members=user.pk)
        found = found.filter(Q(user=user.pk) | Q(user__in=mates))
    if group is not None:
        found = found.filter(watches__group=group)
    return found.select_related("user").order_by("-since", "id")


@dataclass(slots=True)
class Present:
    """A socket of this process."""

    row: Connection
    groups: frozenset[str] = frozenset()


class Presence:
    """The sockets of this process. Its one task runs while there are any."""

    def __init__(self) -> None:
        self._process = uuid.uuid4()
        self._here: dict[uuid.UUID, Present] = {}
        self._changed: dict[uuid.UUID, None] = {}  # in order: what the copy does not have yet
        self._written: dict[uuid.UUID, float] = {}  # when, of those that are here and were changed of late
        self._keeper: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._round: asyncio.Future[None] | None = None
        self._reaped = 0.0
        self._unannounced = False
        self._announcing: asyncio.Task[None] | None = None

    def join(self, user_id: int, address: str, client: str) -> uuid.UUID:
        """Note a new socket; what it answers is for `watch` and `leave`."""
        row = Connection(
            process_id=self._process,
            user_id=user_id,
            address=address[:64],
            client=client[:200].replace("\0", ""),
            since=timezone.now(),
        )
        self._here[row.id] = Present(row)
        self._note(row.id)
        return row.id

    def watch(self, entry: uuid.UUID, groups: Iterable[str]) -> None:
        """The groups that a socket is subscribed to, from now on."""
        here, now = self._here.get(entry), frozenset(groups)
        if here is not None and here.groups != now:
            here.groups = now
            self._note(entry)

    async def leave(self, entry: uuid.UUID) -> None:
        """Forget a socket, and wait until the copy has, or cannot. Raises nothing: what is left behind goes
        stale with the process."""
        if self._here.pop(entry, None) is None:
            return
        self._note(entry)
        if self._round is None:
            self._round = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._round)

    def _note(self, entry: uuid.UUID) -> None:
        self._changed[entry] = None
        self._wake.set()
        if self._keeper is None or self._keeper.done():
            self._keeper = asyncio.get_running_loop().create_task(self._keep())

    # The copy

    async def _keep(self) -> None:
        logs.forget()
        while self._here or self._changed or self._round is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT):
                    await self._wake.wait()
                    await asyncio.sleep(GATHER)
            self._wake.clear()
            # Those who leave during this round wait for the next.
            waiting, self._round = self._round, None
            written = True
            try:
                await self._write()
                if self._changed:  # not yet due
                    asyncio.get_running_loop().call_later(APART, self._wake.set)
                await self._reap()
            except Error as error:  # InterfaceError, of a connection that broke, is no DatabaseError
                written = False
                names.PRESENCE_FAILURES.inc()
                logger.warning("Presence cannot be kept: %s", type(error).__name__)
            finally:
                if waiting is not None and not waiting.done():
                    waiting.set_result(None)
            if not written:
                await asyncio.sleep(AGAIN)
                self._wake.set()

    async def _write(self) -> None:
        """Bring the copy up to date, and be alive in it. Raises DatabaseError: then nothing is forgotten."""
        while True:
            some = list(islice(self._due(), BATCH))
            sizes = (len(self._here[entry].groups) if entry in self._here else 0 for entry in some)
            batch = some[: fitting(sizes, ROWS)]
            here = [self._here[entry] for entry in batch if entry in self._here]
            rows = [each.row for each in here]
            watches = [Watch(connection=each.row, group=group) for each in here for group in each.groups]
            for entry in batch:
                del self._changed[entry]
                self._written.pop(entry, None)
            last = not self._here and not self._changed
            try:
                known = await self._store(rows, watches, batch, last)
            except BaseException:
                self._changed = dict.fromkeys(batch) | self._changed
                raise
            if not known:
                # New, or forgotten by the others while it was cut off from the database: everything, anew.
                self._changed = dict.fromkeys([*batch, *self._here])
                self._written.clear()
            elif batch:
                self._announce()
                now = asyncio.get_running_loop().time()
                self._written.update({entry: now for entry in batch if entry in self._here})
            if next(self._due(), None) is None:
                return

    def _due(self) -> Iterator[uuid.UUID]:
        """What has changed and may be written now. A socket that changes all the time is written once in
        APART; one that is new or gone, at once."""
        early = asyncio.get_running_loop().time() - APART
        return (
            entry
            for entry in self._changed
            if entry not in self._here or self._written.get(entry, early) <= early
        )

    @database_sync_to_async
    def _store(
        self, rows: list[Connection], watches: list[Watch], changed: list[uuid.UUID], last: bool
    ) -> bool:
        """One transaction: the heartbeat, and these sockets as they are now. False: the process was not
        known; it is now, and nothing else has been written."""
        process = Process.objects.filter(id=self._process)
        with transaction.atomic():
            if not process.update(heartbeat=Now()):
                if last:
                    return True
                Process.objects.create(id=self._process, heartbeat=Now())
                return False
            if changed:
                present = {row.id for row in rows}
                Watch.objects.filter(connection__in=changed).delete()
                Connection.objects.filter(id__in=[id for id in changed if id not in present]).delete()
                # A user who has been deleted is on the way out: the socket is told of it by another way.
                users = set(
                    get_user_model()
                    .objects.filter(pk__in={row.user_id for row in rows})
                    .values_list("pk", flat=True)
                )
                kept = {row.id for row in rows if row.user_id in users}
                Connection.objects.bulk_create([row for row in rows if row.id in kept], ignore_conflicts=True)
                Watch.objects.bulk_create(watch for watch in watches if watch.connection_id in kept)
            if last:
                process.delete()
            return True

    async def _reap(self) -> None:
        """Remove the processes that died, now and then; and say so. Raises DatabaseError."""
        now = asyncio.get_running_loop().time()
        if now - self._reaped >= HEARTBEAT / 2:
            self._reaped = now
            if await _remove_dead():
                self._announce()

    # The word of it

    def _announce(self) -> None:
        self._unannounced = True
        if self._announcing is None or self._announcing.done():
            self._announcing = asyncio.get_running_loop().create_task(self._say_so())

    async def _say_so(self) -> None:
        """Apart from the copy: a broker that is away must not stop the heartbeat."""
        while self._unannounced:
            self._unannounced = False
            try:
                await aemit_channel_notification(GROUP, PAYLOAD)
            except NotificationsUnavailable as error:
                logger.warning("Could not announce who is connected: %s", error)
                self._unannounced = True
                await asyncio.sleep(AGAIN)


@database_sync_to_async
def _remove_dead() -> int:
    """How many processes were dead. One that only seemed so writes itself anew at its next heartbeat."""
    with transaction.atomic():
        # Locked, so that one that stirs meanwhile is looked at again; skipped, if another is at it.
        dead = Process.objects.select_for_update(skip_locked=True).filter(heartbeat__lte=Now() - STALE)
        ids = list(dead.values_list("id", flat=True))
        if ids:
            Process.objects.filter(id__in=ids).delete()
        return len(ids)


_presences: WeakKeyDictionary[asyncio.AbstractEventLoop, Presence] = WeakKeyDictionary()


def presence() -> Presence:
    """The one of the running loop's process."""
    loop = asyncio.get_running_loop()
    found = _presences.get(loop)
    if found is None:
        found = _presences[loop] = Presence()
    return found
