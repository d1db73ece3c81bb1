"""What delivery keeps in the database: which stream is current and how far it goes, and the outbox."""

from __future__ import annotations

from django.db import models


class Head(models.Model):
    """One row: the current epoch, how far its log is known to go, and which numbers are spoken for.

    An event is taken off the queue only when the row has its number: `number` is never ahead of what the log
    had, and a log that ends before it has lost something. Numbers up to `reserved` were given to a relay,
    the newest one's end there: whoever finds another value has been superseded."""

    ONLY = 1

    id = models.PositiveSmallIntegerField(primary_key=True, default=ONLY)
    epoch = models.CharField(max_length=32)
    number = models.BigIntegerField(default=0)
    reserved = models.BigIntegerField(default=0)

    def __str__(self) -> str:
        return f"{self.epoch}:{self.number}"


class Outbox(models.Model):
    """An event that waits to be put on the durable queue: written in the transaction that it tells of, or
    when the broker was away. `message` is the queue's message, packed; its id makes a second sending
    harmless."""

    message = models.BinaryField()
    created = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return f"outbox {self.pk}"
