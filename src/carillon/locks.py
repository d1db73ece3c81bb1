"""Advisory locks of PostgreSQL: of several processes that may do something, one does."""

from __future__ import annotations

from django.db import connection

# Each a number like no other's in the database.
OUTBOX = 0x63617269
PRUNE = 0x6361726A


def alone(lock: int) -> bool:
    """Whether nobody else has the lock; it is ours then until the transaction ends, for no session outlives a
    pool of connections. SQLite has one process. Raises django.db.Error."""
    if connection.vendor != "postgresql":
        return True
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_xact_lock(%s)", [lock])
        return bool(cursor.fetchone()[0])
