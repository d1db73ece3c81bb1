"""When a user, a team, a token or a session changes: sockets look again at what they may do."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.contrib.auth import SESSION_KEY, get_user_model
from django.contrib.auth.signals import user_logged_in, user_logged_out
from django.db import transaction
from django.db.models.signals import m2m_changed, post_delete, post_save, pre_delete
from django.dispatch import receiver
from django.utils import timezone

from carillon.accounts import sessions
from carillon.accounts.models import ApiToken, ExternalIdentity, Team, UserSession, lock_user
from carillon.conf import conf
from carillon.events import Notification, access_changed, emit_in_transaction


@receiver(user_logged_in)
def limit_sessions(sender: Any, request: Any, user: Any, **kwargs: Any) -> None:
    """Note the new session; end the oldest ones beyond SESSIONS_PER_USER and say so to the user."""
    if not sessions.are_rows():
        sessions.mark(request.session)
        return
    if request.session.session_key is None:
        request.session.create()
    else:
        request.session.save()
    with transaction.atomic():
        # One login at a time per user: two at once would each count without the other.
        lock_user(user.pk)
        meta = request.META
        about = {
            "user_id": user.pk,
            "address": meta.get("REMOTE_ADDR", "")[:64],
            "client": meta.get("HTTP_USER_AGENT", "")[:200].replace("\0", ""),
        }
        UserSession.objects.get_or_create(session_id=request.session.session_key, defaults=about)
        limit = conf.SESSIONS_PER_USER
        if limit < 0:
            return
        keys = list(
            # By number, which the lock gives them in turn: the clocks of two hosts may differ.
            UserSession.objects.filter(user=user).order_by("-pk").values_list("session_id", flat=True)
        )
        if evicted := keys[max(limit, 1) :]:
            # First the word, then the end of the sessions, which closes their sockets.
            group = f"control-limit_reached_{user.pk}"
            emit_in_transaction([Notification(group, {"group_name": "control", "reason": "limit_reached"})])
            sessions.end_rows(evicted)


@receiver(post_delete, sender=UserSession)
def session_ended(sender: Any, instance: UserSession, **kwargs: Any) -> None:
    """Log out, eviction, clean-up: whatever deletes a session deletes this row with it, in one transaction.

    Not Django's signal of a logout: that comes while the session is still there.
    """
    access_changed([instance.user_id])


@receiver(user_logged_out)
def logged_out(sender: Any, request: Any, **kwargs: Any) -> None:
    """Of a session that is no row. It says whose it is: of the request, a view may know nobody."""
    if not sessions.are_rows() and (user := request.session.get(SESSION_KEY)) is not None:
        with transaction.atomic():
            if sessions.end(request.session):
                access_changed([get_user_model()._meta.pk.to_python(user)])


@receiver(post_save, sender=settings.AUTH_USER_MODEL)
def user_changed(sender: Any, instance: Any, created: bool, update_fields: Any = None, **kwargs: Any) -> None:
    # Every login saves last_login: that changes nothing that anybody may do.
    if not created and (update_fields is None or set(update_fields) != {"last_login"}):
        access_changed([instance.pk])


@receiver(pre_delete, sender=settings.AUTH_USER_MODEL)
def user_deleted(sender: Any, instance: Any, **kwargs: Any) -> None:
    access_changed([instance.pk])


@receiver(m2m_changed, sender=Team.members.through)
def members_changed(
    sender: Any, instance: Any, action: str, reverse: bool, pk_set: Iterable[int] | None, **kwargs: Any
) -> None:
    if action not in ("post_add", "post_remove", "pre_clear"):
        return
    if reverse:
        access_changed([instance.pk])
    elif action == "pre_clear":
        access_changed(instance.members.values_list("pk", flat=True))
    else:
        access_changed(pk_set or ())


@receiver(pre_delete, sender=Team)
def team_deleted(sender: Any, instance: Team, **kwargs: Any) -> None:
    access_changed(instance.members.values_list("pk", flat=True))


@receiver(post_save, sender=ApiToken)
def token_changed(sender: Any, instance: ApiToken, created: bool, **kwargs: Any) -> None:
    # Its use is written without a signal.
    if not created:
        access_changed([instance.user_id])


@receiver(post_delete, sender=ApiToken)
@receiver(post_delete, sender=ExternalIdentity)
def token_revoked(sender: Any, instance: ApiToken | ExternalIdentity, **kwargs: Any) -> None:
    # One that ended long ago has no socket: no clock is as wrong as that.
    expires = instance.expires if isinstance(instance, ApiToken) else None
    if expires is None or expires > timezone.now() - timedelta(days=1):
        access_changed([instance.user_id])
