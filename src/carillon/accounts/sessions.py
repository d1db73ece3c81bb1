"""Sessions, whatever keeps them (SESSION_ENGINE).

One in Django's table ends with its row. Of any other nobody tells when it ends: a cache forgets it, a signed
cookie is only taken from the browser. So it has a mark of its own from the login on, and who logs out leaves
the mark among the ended ones, for as long as a cookie may be shown again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from importlib import import_module
from typing import Any

from django.conf import settings
from django.contrib.sessions.backends import cache, cached_db
from django.contrib.sessions.models import Session
from django.core.exceptions import ImproperlyConfigured
from django.db import transaction
from django.db.models.functions import Now
from django.utils.crypto import get_random_string

from carillon.accounts.models import EndedSession
from carillon.conf import conf

MARK = "_carillon_session"
_CACHED = (cache.SessionStore, cached_db.SessionStore)
_ALONE = ("locmem.LocMemCache", "dummy.DummyCache")


def store() -> Any:
    """The class of SESSION_ENGINE."""
    return import_module(settings.SESSION_ENGINE).SessionStore


def are_rows() -> bool:
    """Whether each session is a row of Django's own table."""
    model = getattr(store(), "get_model_class", None)
    return model is not None and model() is Session


def find(key: str) -> tuple[Mapping[str, Any], datetime] | None:
    """What a session says, and when it ends; None: there is no such session. Raises django.db.Error, and what
    its engine raises."""
    if are_rows():
        # The row and not the store, which would say that it ends as long after now as one that begins now.
        row = Session.objects.filter(pk=key, expire_date__gt=Now()).first()
        return None if row is None else (store()().decode(row.session_data), row.expire_date)
    session = store()(key)
    return None if has_ended(session) else (session, session.get_expiry_date())


def cookie_middleware(get_response: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A key with a NUL, which a cookie may be written with, is nobody's: a database does not even look."""

    def answer(request: Any) -> Any:
        if "\0" in request.COOKIES.get(settings.SESSION_COOKIE_NAME, ""):
            del request.COOKIES[settings.SESSION_COOKIE_NAME]
        return get_response(request)

    return answer


def end_rows(keys: Sequence[str]) -> None:
    """End sessions that are rows, in the transaction of whoever asks; their sockets hear of it. What a cache
    has of them goes when that has committed: before, a request would bring it back. Raises DatabaseError."""
    with transaction.atomic():
        Session.objects.filter(pk__in=keys).delete()
        if issubclass(store(), _CACHED):
            transaction.on_commit(lambda: [store()(key).delete() for key in keys])


def mark(session: Any) -> None:
    """At a login. Who logs in anew keeps the mark: sockets of before go with the session, too."""
    session.setdefault(MARK, get_random_string(32))


def end(session: Any) -> bool:
    """At a log-out; whether somebody can ask for it. Raises DatabaseError."""
    if (marked := session.get(MARK)) is None:
        return False
    EndedSession.objects.get_or_create(mark=marked)
    return True


def has_ended(session: Any) -> bool:
    """Raises DatabaseError."""
    marked = session.get(MARK)
    return marked is not None and EndedSession.objects.filter(mark=marked).exists()


def check_settings() -> None:
    """Raises ImproperlyConfigured for sessions that could not be ended."""
    if issubclass(store(), _CACHED):
        kept = settings.CACHES[settings.SESSION_CACHE_ALIAS]["BACKEND"]
        if kept.endswith(_ALONE):
            raise ImproperlyConfigured(
                f"SESSION_ENGINE {settings.SESSION_ENGINE} with {kept}: each process would have sessions of "
                "its own, and a log-out would end them in one alone. Name a cache that all processes share"
            )
    if conf.SESSIONS_PER_USER >= 0 and not are_rows():
        raise ImproperlyConfigured(
            f"SESSIONS_PER_USER with SESSION_ENGINE {settings.SESSION_ENGINE}: nobody knows which sessions "
            "there are. Use django.contrib.sessions.backends.db or cached_db, or leave it at -1"
        )
