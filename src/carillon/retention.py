"""What has ended is kept for so many days: `carillon prune` deletes the rest, a little at a time.

An app says in its `retention.py` what of its own ends, as here for API tokens and sessions:

    register(Kind("jobs", "KEEP_JOBS_DAYS", "finished", ended))

Nothing that is active is ever due: what is in the outbox has no kind, and a job that never ends stays.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache

from asgiref.sync import sync_to_async
from django.apps import apps
from django.conf import settings
from django.contrib.sessions.models import Session
from django.db import Error, OperationalError, close_old_connections, transaction
from django.db.models import Min, QuerySet
from django.utils import timezone
from django.utils.module_loading import autodiscover_modules

from carillon import locks
from carillon.accounts.models import ApiToken, AuditEntry, EndedSession
from carillon.conf import conf
from carillon.metrics import names

logger = logging.getLogger(__name__)

BATCH = 500
"""Rows that one transaction deletes, besides what depends on them: others wait for no more than that."""

DEADLOCK = "40P01"  # of SQLSTATE
LONGEST_PAUSE = 1.0
"""Seconds. The database has as long for others as a batch took, up to this."""

MEASURE = 300.0
"""Seconds between two looks at what is due."""


def delete(due: QuerySet) -> Mapping[str, int]:
    """A batch of what is due and nobody holds, with what depends on it; how many rows of each model."""
    rows = due.order_by("pk").select_for_update(skip_locked=True)
    return due.model.objects.filter(pk__in=list(rows.values_list("pk", flat=True)[:BATCH])).delete()[1]


@dataclass(frozen=True)
class Kind:
    """`days`: for how long it is kept, or the setting that says so; 0: not at all. `when`: the field that
    says since when. `ended`: what had ended before a time. `delete`: one batch of it, in the current
    transaction; how many rows of each model, none when there are no more."""

    name: str
    days: str | float
    when: str
    ended: Callable[[datetime], QuerySet]
    delete: Callable[[QuerySet], Mapping[str, int]] = delete

    def before(self, now: datetime) -> datetime | None:
        """What ended before then is due; None: nothing ever is."""
        if isinstance(self.days, str):
            return kept_until(self.days, now)
        return now - timedelta(days=self.days)

    def overdue(self, now: datetime) -> float:
        """Seconds for which the oldest has been due. Raises django.db.Error."""
        before = self.before(now)
        oldest = before and self.ended(before).aggregate(oldest=Min(self.when))["oldest"]
        return (before - oldest).total_seconds() if oldest else 0.0


def kept_until(setting: str, now: datetime) -> datetime | None:
    """What ended before then has been kept for the days of a setting; None: it says for ever."""
    days = getattr(conf, setting)
    try:
        return now - timedelta(days=days) if days and days > 0 else None
    except OverflowError:  # before the year 1
        return None


def for_ever(name: str, setting: str) -> str:
    return f"{name}: kept for ever ({setting} is {getattr(conf, setting)})"


_kinds: dict[str, Kind] = {}


def register(kind: Kind) -> None:
    _kinds[kind.name] = kind


@cache
def _discover() -> None:
    autodiscover_modules("retention")


def kinds() -> list[Kind]:
    """Those of every app."""
    _discover()
    return list(_kinds.values())


def _ended_tokens(before: datetime) -> QuerySet:
    # One that lives would go with the one that made it.
    parents = ApiToken.objects.filter(parent__isnull=False).exclude(expires__lt=before).values("parent")
    return ApiToken.objects.filter(expires__lt=before).exclude(pk__in=parents)


register(Kind("tokens", "KEEP_TOKENS_DAYS", "expires", _ended_tokens))
register(Kind("sessions", 0, "expire_date", lambda before: Session.objects.filter(expire_date__lt=before)))
# No cookie is taken for longer than this.
register(
    Kind(
        "ended sessions",
        settings.SESSION_COOKIE_AGE / 86400,
        "ended",
        lambda before: EndedSession.objects.filter(ended__lt=before),
    )
)
register(Kind("audit", "KEEP_AUDIT_DAYS", "at", lambda before: AuditEntry.objects.filter(at__lt=before)))


# The run ---------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """One run over the kinds, which ends after `seconds` or `rows`, whichever comes first. Killed at any
    moment, it has deleted whole batches, and the next one goes on."""

    seconds: float
    rows: int
    dry: bool = False
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    stopped: str = field(default="", init=False)  # why there may be more that is due

    def __post_init__(self) -> None:
        self._ends = self.clock() + self.seconds
        self._left = self.rows

    def over(self, kind: Kind, say: Callable[[str], None]) -> None:
        """Delete what is due of a kind, and say how much; also what was, when it fails. Raises
        django.db.Error."""
        before = kind.before(timezone.now())
        if before is None:
            say(for_ever(kind.name, kind.days))
            return
        due = kind.ended(before)
        gone = Counter({due.model._meta.label: 0})  # it is named first
        try:
            if self.dry:
                gone[due.model._meta.label] = due.count()
            else:
                for batch in self._batches(kind, before):
                    gone.update(batch)
        finally:
            verb = "would be deleted" if self.dry else "deleted"
            more = f"; {self.stopped}" if self.stopped else ""
            say(f"{kind.name}: {_counted(gone)} {verb}, ended before {before:%Y-%m-%d %H:%M} UTC{more}")

    def _batches(self, kind: Kind, before: datetime) -> Iterator[Mapping[str, int]]:
        while not self.stopped:
            begun = self.clock()
            if begun >= self._ends:
                self.stopped = f"its {self.seconds:g} seconds are over"
            elif self._left <= 0:
                self.stopped = f"its {self.rows} rows are deleted"
            else:
                try:
                    with transaction.atomic():
                        alone = locks.alone(locks.PRUNE)  # of two runs, one goes on
                        batch = kind.delete(kind.ended(before)) if alone else {}
                except OperationalError as error:
                    if getattr(error.__cause__, "sqlstate", None) != DEADLOCK:
                        raise
                    self.sleep(LONGEST_PAUSE)  # somebody deletes the same: what he has left is next
                    continue
                if not alone:
                    self.stopped = "another run is at it"
                elif not any(batch.values()):
                    return
                else:
                    yield batch
                    self._left -= sum(batch.values())
                    self.sleep(min(self.clock() - begun, LONGEST_PAUSE))


def _counted(gone: Mapping[str, int]) -> str:
    """`2 jobs, 40 job events`."""
    words = [
        f"{number} {apps.get_model(label)._meta.verbose_name_plural}"
        for label, number in gone.items()
        if number
    ]
    return ", ".join(words) or "none"


# What is due -----------------------------------------------------------------------------------------------


def overdue() -> dict[str, float]:
    """Seconds for which the oldest of each kind has been due. Raises django.db.Error."""
    now = timezone.now()
    return {kind.name: kind.overdue(now) for kind in kinds()}


@sync_to_async(thread_sensitive=False)
def _measure() -> None:
    close_old_connections()
    try:
        for name, seconds in overdue().items():
            names.OVERDUE.labels(name).set(seconds)
    finally:
        close_old_connections()


async def measure() -> None:
    """Say for how long something has been due, again and again until cancelled."""
    while True:
        try:
            await _measure()
        except Error:  # others say that the database is away
            pass
        except Exception:  # of an app's retention.py, or a setting
            logger.exception("It cannot be said what is due for `carillon prune`")
        await asyncio.sleep(MEASURE)
