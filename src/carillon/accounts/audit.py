"""Who has changed what of accounts and rights: a line of the log `carillon.audit`, and a row for admins.

The row is part of the transaction that changes something: there is no change without its row, and no row of
a change that was undone. Tokens, memberships and whatever is deleted have one; a user's own row has one where
whoever saves it has begun one, as the API and the admin do. A signal does not say who acts: the request that
is being answered does.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.db import DatabaseError
from django.db.models.signals import m2m_changed, post_delete, post_save, pre_delete, pre_save
from django.dispatch import receiver
from django.http import HttpRequest
from django.utils import timezone

from carillon import logs
from carillon.accounts.models import ApiToken, AuditEntry, Team
from carillon.budgets import Allowance, Meter
from carillon.text import storable

logger = logging.getLogger("carillon.audit")

RIGHTS = ("is_active", "is_staff", "is_superuser")

MOST = 100
"""Ids that one entry names."""

_request: ContextVar[HttpRequest | None] = ContextVar("carillon_audited_request", default=None)

# Of one process: strangers may be refused as often as they like, and must not fill the table.
_refusals = Allowance(burst=600, rate=0.1)

# Of one process: an entry an hour for what may be done thousands of times a second.
_publishing = Meter()
_publishing_lock = Lock()


@contextmanager
def of(request: HttpRequest) -> Iterator[None]:
    """What is changed inside is changed by who has sent this request."""
    before = _request.set(request)
    try:
        yield
    finally:
        _request.reset(before)


def note(what: str, name: str, **about: Any) -> None:
    """Both of it; of a command the row alone: what it prints is for its terminal. Raises DatabaseError."""
    name = name[:150]
    if _request.get() is not None:
        line(f"{what[0].upper()}{what[1:]}: {name!r}", {"what": what, "name": name, **about})
    keep(what, name, **about)


def line(words: str, said: dict[str, Any]) -> None:
    """A line alone. A name may be anything that was typed: in `words` it is a literal, in one line."""
    logger.info("%s", words, extra={"audit": said})


def keep(what: str, name: str, **about: Any) -> None:
    """A row alone. Raises DatabaseError."""
    request = _request.get()
    user = getattr(request, "user", None)
    AuditEntry.objects.create(
        what=what,
        name=storable(name[:150]),
        by=user.get_username() if user is not None and user.is_authenticated else "",
        address=request.META.get("REMOTE_ADDR", "")[:64] if request is not None else "",
        request=logs.request_id.get(),
        about=about,
    )


def keep_refusal(name: str) -> None:
    """A wrong password; of very many some have no row. Raises DatabaseError."""
    if _refusals.spend(time.monotonic()):
        keep("wrong password", name)


def keep_publishing(user: Any, families: Iterable[str]) -> None:
    """A user begins to publish by the API: of each family one entry an hour. Raises DatabaseError."""
    for family in sorted(families):
        with _publishing_lock:
            allowance, now = _publishing.of((user.pk, family), 1, 1 / 3600), time.monotonic()
            if not allowance.spend(now):
                continue
        try:
            note("publishing", user.get_username(), family=family)
        except DatabaseError:
            with _publishing_lock:
                allowance.give(now)
            raise


class PasswordChanges:
    """Of AUTH_PASSWORD_VALIDATORS: Django tells these of every new password, whoever has set it."""

    def validate(self, password: str, user: Any = None) -> None:
        """Has nothing against any."""

    def get_help_text(self) -> str:
        return "Each change is noted in the audit log."

    def password_changed(self, password: str, user: Any) -> None:
        note("password changed", user.get_username())


@receiver(post_save, sender=settings.AUTH_USER_MODEL)
def _user_made(sender: Any, instance: Any, created: bool, raw: bool = False, **more: Any) -> None:
    if created and not raw:
        note("user made", instance.get_username(), is_superuser=instance.is_superuser)


@receiver(pre_save, sender=settings.AUTH_USER_MODEL)
def _rights_changed(
    sender: Any, instance: Any, raw: bool = False, update_fields: Collection[str] | None = None, **more: Any
) -> None:
    fields = [name for name in RIGHTS if hasattr(instance, name)]
    if raw or instance.pk is None or (update_fields is not None and not {*fields} & {*update_fields}):
        return
    before = sender._base_manager.filter(pk=instance.pk).values(*fields).first() or {}
    now = {name: getattr(instance, name) for name in before}
    if now != before:
        note("rights changed", instance.get_username(), **now)


@receiver(pre_delete, sender=settings.AUTH_USER_MODEL)
def _user_deleted(sender: Any, instance: Any, **more: Any) -> None:
    note("user deleted", instance.get_username())


@receiver(post_save, sender=ApiToken)
def _token_made(sender: Any, instance: ApiToken, created: bool, raw: bool = False, **more: Any) -> None:
    if created and not raw:
        expires = instance.expires and instance.expires.isoformat()
        name, scope = instance.user.get_username(), instance.scope
        note("token made", name, token=instance.pk, scope=scope, expires=expires, parent=instance.parent_id)


@receiver(post_delete, sender=ApiToken)
def _token_revoked(sender: Any, instance: ApiToken, **more: Any) -> None:
    if instance.expires is None or instance.expires > timezone.now():  # else it was over already
        note("token revoked", instance.user.get_username(), token=instance.pk)


_VERBS = {"post_add": "added", "post_remove": "taken away", "pre_clear": "all taken away"}


def _watch(through: Any, what: str) -> None:
    """Note what is added to, and taken away from, a relation."""

    def changed(
        sender: Any, instance: Any, action: str, model: Any, pk_set: Iterable[Any] | None, **more: Any
    ) -> None:
        if action in _VERBS and (pk_set or action == "pre_clear"):
            name = instance.get_username() if isinstance(instance, get_user_model()) else str(instance)
            ids = sorted(pk_set or ())
            note(f"{what} {_VERBS[action]}", name, of=model._meta.model_name, ids=ids[:MOST], count=len(ids))

    m2m_changed.connect(changed, sender=through, weak=False, dispatch_uid=f"carillon audit {what}")


def watch() -> None:
    """Once all models are there."""
    _watch(Team.members.through, "membership")
    user = get_user_model()
    for field, what in (("groups", "group of rights"), ("user_permissions", "permission")):
        if hasattr(user, field):  # a project's own user may have none
            _watch(getattr(user, field).through, what)
