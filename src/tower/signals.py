"""When a job comes to belong to others: sockets that hear its events look again at whether they may. And what
goes with its owner is told of."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.conf import settings
from django.db.models.signals import post_delete, post_save, pre_delete
from django.dispatch import receiver

from carillon.events import access_changed
from tower import changes, payloads
from tower.models import Job, Schedule


@receiver(pre_delete, sender=settings.AUTH_USER_MODEL)
def owner_goes(sender: Any, instance: Any, **kwargs: Any) -> None:
    """His jobs first, as whoever adds events to them or prunes them has them: else one of the two fails, and
    events that come meanwhile fail the deletion."""
    list(Job.objects.filter(owner=instance).order_by("pk").select_for_update().values_list("pk"))


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


@receiver(pre_delete, sender=Schedule)
def schedule_goes(sender: Any, instance: Schedule, **kwargs: Any) -> None:
    changes.tell([payloads.schedule_changed(instance)])
