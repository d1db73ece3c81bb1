"""The table of tasks: what waits, what runs, and for some days what came of it."""

from __future__ import annotations

from django.db import models
from django.db.models import F, Q
from django_tasks import TaskResultStatus


class QueuedTask(models.Model):
    """A call of a task, and its result. `due`: not before then. `announced`: a message for it is on its
    channel. `seen`: when its worker last said that it runs."""

    id = models.CharField(max_length=32, primary_key=True)
    backend = models.CharField(max_length=100)
    queue = models.CharField(max_length=100)
    path = models.CharField(max_length=500)
    priority = models.SmallIntegerField()
    run_after = models.DateTimeField(null=True)
    args = models.JSONField()
    kwargs = models.JSONField()
    status = models.CharField(max_length=10, default=TaskResultStatus.READY)
    enqueued = models.DateTimeField()
    due = models.DateTimeField()
    announced = models.BooleanField(default=False)
    started = models.DateTimeField(null=True)
    attempted = models.DateTimeField(null=True)
    seen = models.DateTimeField(null=True)
    finished = models.DateTimeField(null=True)
    workers = models.JSONField(default=list)
    errors = models.JSONField(default=list)
    value = models.JSONField(null=True)

    class Meta:
        # Each for a question that is asked again and again, over the rows that it is about.
        indexes = [
            models.Index(
                "backend", "queue", F("priority").desc(), "due", "id",
                condition=Q(status=TaskResultStatus.READY), name="carillon_tasks_next",
            ),
            models.Index(fields=["due"], condition=Q(announced=False), name="carillon_tasks_unannounced"),
            models.Index(
                fields=["seen"], condition=Q(status=TaskResultStatus.RUNNING), name="carillon_tasks_running"
            ),
            models.Index(fields=["finished"], name="carillon_tasks_finished"),
        ]  # fmt: skip

    def __str__(self) -> str:
        return f"task {self.id} {self.path}"
