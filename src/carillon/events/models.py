"""What delivery keeps in the database: which stream is current and how far it goes, and the outbox."""

from __future__ import annotations

from django.db import models


class Head(models.Model):
    """One row: the current epoch, and a position in it that was reached. Never ahead of the stream, and
    behind it by a quarter of a second at most while runworker runs."""

    ONLY = 1

    id = models.PositiveSmallIntegerField(primary_key=True, default=ONLY)
    epoch = models.CharField(max_length=32)
    number = models.BigIntegerField(default=0)

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
