"""Results go after KEEP_TASKS_DAYS."""

from __future__ import annotations

from carillon.retention import Kind, register
from carillon.tasks.models import QueuedTask

register(
    Kind(
        "tasks", "KEEP_TASKS_DAYS", "finished", lambda before: QueuedTask.objects.filter(finished__lt=before)
    )
)
