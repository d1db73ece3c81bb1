"""Who is connected and who watches what: rows that each process keeps alive by its heartbeat."""

from __future__ import annotations

import uuid

from django.conf import settings
from django.db import models
from django.utils import timezone


class Process(models.Model):
    """A process that serves sockets, alive as long as its heartbeat is young."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    heartbeat = models.DateTimeField(default=timezone.now, db_index=True)

    def __str__(self) -> str:
        return str(self.id)


class Connection(models.Model):
    """A socket of a user."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    process = models.ForeignKey(Process, on_delete=models.CASCADE, related_name="connections")
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="+")
    since = models.DateTimeField(default=timezone.now)
    address = models.CharField(max_length=64, blank=True)
    client = models.CharField(max_length=200, blank=True)

    def __str__(self) -> str:
        return f"socket of user {self.user_id}"


class Watch(models.Model):
    """A socket is subscribed to a group."""

    connection = models.ForeignKey(Connection, on_delete=models.CASCADE, related_name="watches")
    group = models.CharField(max_length=121)  # a family and a key, 60 characters each at the most

    class Meta:
        indexes = [models.Index(fields=["group"], name="watch_by_group")]

    def __str__(self) -> str:
        return f"{self.group}, by {self.connection_id}"
