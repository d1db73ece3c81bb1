"""Teams, API tokens, and which sessions are whose. Users are Django's own."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.sessions.models import Session
from django.db import models, transaction
from django.db.models import Q
from django.utils import timezone

from carillon.accounts import tokens

# How exactly `last_used` is kept: one write a minute instead of one a request.
LAST_USED_STEP = timedelta(minutes=1)


def lock_user(pk: Any) -> Any:
    """The user as he is now. Until the transaction ends, nobody else adds to his tokens and sessions, or ends
    them.

    Django reads what depends on a row first, and deletes afterwards: what is added in between fails the
    deletion. `no_key`: nobody waits who only refers to the user. Raises DoesNotExist, DatabaseError."""
    return get_user_model().objects.select_for_update(no_key=True).get(pk=pk)


class Team(models.Model):
    """People who see each other's jobs."""

    name = models.CharField(max_length=150, unique=True)
    members = models.ManyToManyField(settings.AUTH_USER_MODEL, related_name="teams", blank=True)

    def __str__(self) -> str:
        return self.name


class ApiTokenQuerySet(models.QuerySet):
    def valid(self) -> ApiTokenQuerySet:
        """Tokens that let somebody in now."""
        return self.filter(Q(expires=None) | Q(expires__gt=timezone.now()), user__is_active=True)


class ApiToken(models.Model):
    """A token of a user. The token itself is not stored: see `tokens.digest`."""

    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="api_tokens")
    digest = models.CharField(max_length=64, unique=True)
    description = models.CharField(max_length=200, blank=True)
    scope = models.CharField(max_length=40, default="read write")
    created = models.DateTimeField(auto_now_add=True)
    expires = models.DateTimeField(null=True, blank=True)
    last_used = models.DateTimeField(null=True, blank=True)
    # The token by which this one was made: it ends this one with it.
    parent = models.ForeignKey("self", on_delete=models.CASCADE, null=True, blank=True, related_name="+")

    objects = ApiTokenQuerySet.as_manager()

    class Meta:
        permissions = [("publish", "Can publish notifications, as any job")]

    def __str__(self) -> str:
        return f"token {self.pk} of user {self.user_id}"

    def save(self, *args: Any, **kwargs: Any) -> None:
        # With its entry in the audit log, or not at all: signals come outside of Django's own transaction.
        with transaction.atomic():
            super().save(*args, **kwargs)

    def allows(self, scope: str) -> bool:
        return scope in self.scope.split()

    @classmethod
    def find(cls, token: str) -> ApiToken | None:
        """The valid token that `token` spells, with its user; notes that it was used."""
        return cls.find_many([token]).get(token)

    @classmethod
    def find_many(cls, spelled: Iterable[str]) -> dict[str, ApiToken]:
        """The valid tokens among `spelled`, each with its user; notes that they were used.

        Every request and every socket begins with this: two statements as they are cost a third of one that
        the ORM composes anew each time (0.6 ms for 1.7 of processor time).
        """
        now = timezone.now()
        digests = {tokens.digest(token): token for token in spelled}
        rows = cls.objects.raw(_BY_DIGEST % _places(digests), [now, *digests])
        found = {digests[row.digest]: row for row in rows}
        ids = {row.user_id for row in found.values()}
        users = {}
        if ids:
            active = get_user_model().objects.raw(_ACTIVE_USERS % _places(ids), list(ids))
            users = {user.pk: user for user in active}
        found = {token: row for token, row in found.items() if row.user_id in users}
        for row in found.values():
            row.user = users[row.user_id]
        stale = [
            row.pk for row in found.values() if row.last_used is None or now - row.last_used >= LAST_USED_STEP
        ]
        if stale:
            cls.objects.filter(pk__in=stale).update(last_used=now)
        return found

    @classmethod
    def issue(cls, user, **fields) -> tuple[ApiToken, str]:
        """Make a token: (the row, the token itself, which is nowhere else)."""
        token = tokens.new_token()
        return cls.objects.create(user=user, digest=tokens.digest(token), **fields), token


def _places(values: Collection[object]) -> str:
    return ", ".join(["%s"] * len(values))


# Names of ours and places for values; the doubled % become the statement's own.
_BY_DIGEST = (
    f"SELECT * FROM {ApiToken._meta.db_table} "  # noqa: S608
    "WHERE (expires IS NULL OR expires > %%s) AND digest IN (%s)"
)
_ACTIVE_USERS = f"SELECT * FROM {get_user_model()._meta.db_table} WHERE is_active AND id IN (%s)"  # noqa: S608


class UserSession(models.Model):
    """Which of Django's sessions belongs to whom: for the setting SESSIONS_PER_USER, and to be listed."""

    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="+")
    session = models.OneToOneField(Session, on_delete=models.CASCADE, related_name="+")
    created = models.DateTimeField(auto_now_add=True)
    # Where from and with what its login was. The database has a default, too: hosts that are not upgraded yet
    # log people in meanwhile.
    address = models.CharField(max_length=64, blank=True, default="", db_default="")
    client = models.CharField(max_length=200, blank=True, default="", db_default="")

    def __str__(self) -> str:
        return f"session of user {self.user_id}"


class EndedSession(models.Model):
    """A session that somebody has logged out of, where it is no row: `carillon.accounts.sessions`."""

    mark = models.CharField(max_length=32, primary_key=True)
    ended = models.DateTimeField(auto_now_add=True, db_index=True)

    def __str__(self) -> str:
        return f"session that ended {self.ended}"


class ExternalIdentity(models.Model):
    """A user's account at an issuer outside, which is known by nothing but its subject there:
    `carillon.accounts.identities`."""

    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="+")
    issuer = models.CharField(max_length=255)
    subject = models.CharField(max_length=255)
    created = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["issuer", "subject"], name="one_user_a_subject")]

    def __str__(self) -> str:
        return f"identity {self.pk} of user {self.user_id}"


class AuditEntry(models.Model):
    """Something that was done to accounts or rights: `carillon.accounts.audit`. Names, and no keys: it stays
    when the user goes. `name`: of whom; `by`: who was logged in; `request`: nginx's id."""

    at = models.DateTimeField(auto_now_add=True, db_index=True)
    what = models.CharField(max_length=60)
    name = models.CharField(max_length=150)
    by = models.CharField(max_length=150, blank=True)
    address = models.CharField(max_length=64, blank=True)
    request = models.CharField(max_length=64, blank=True)
    about = models.JSONField(default=dict)

    def __str__(self) -> str:
        return f"{self.what}: {self.name}"


class LoginBudget(models.Model):
    """What is left of a budget of wrong passwords: `carillon.accounts.logins`. `key` is a digest: no names
    and addresses are kept here."""

    key = models.CharField(max_length=64, primary_key=True)
    left = models.FloatField()
    at = models.DateTimeField(db_index=True)
    proven = models.DateTimeField(null=True)

    def __str__(self) -> str:
        return f"login budget {self.key[:8]}"
