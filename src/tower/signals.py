"""When a job comes to belong to others: sockets that hear its events look again at whether they may."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.db.models.signals import post_delete, post_save
from django.dispatch import receiver

from carillon.events import access_changed
from tower.models import Job


@receiver(post_save, sender=Job)
def job_saved(
    sender: Any, instance: Job, created: bool, update_fields: Iterable[str] | None = None, **kwargs: Any
) -> None:
    # A change of status saves its own fields, and changes nobody's rights.
    if not created and (update_fields is None or {"owner", "team", "kind"} & set(update_fields)):
        access_changed(groups=[f"{instance.event_family}-{instance.pk}"])


@receiver(post_delete, sender=Job)
def job_deleted(sender: Any, instance: Job, **kwargs: Any) -> None:
    access_changed(groups=[f"{instance.event_family}-{instance.pk}"])
