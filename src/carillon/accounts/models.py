"""Teams, API tokens, and which sessions are whose. Users are Django's own."""

from __future__ import annotations

from datetime import timedelta

from django.conf import settings
from django.contrib.sessions.models import Session
from django.db import models
from django.db.models import Q
from django.utils import timezone

from carillon.accounts import tokens

# How exactly `last_used` is kept: one write a minute instead of one a request.
LAST_USED_STEP = timedelta(minutes=1)


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

    objects = ApiTokenQuerySet.as_manager()

    def __str__(self) -> str:
        return f"token {self.pk} of user {self.user_id}"

    def allows(self, scope: str) -> bool:
        return scope in self.scope.split()

    @classmethod
    def find(cls, token: str) -> ApiToken | None:
        """The valid token that `token` spells, with its user; notes that it was used."""
        found = cls.objects.valid().select_related("user").filter(digest=tokens.digest(token)).first()
        if found is not None:
            now = timezone.now()
            if found.last_used is None or now - found.last_used >= LAST_USED_STEP:
                cls.objects.filter(pk=found.pk).update(last_used=now)
        return found

    @classmethod
    def issue(cls, user, **fields) -> tuple[ApiToken, str]:
        """Make a token: (the row, the token itself, which is nowhere else)."""
        token = tokens.new_token()
        return cls.objects.create(user=user, digest=tokens.digest(token), **fields), token


class UserSession(models.Model):
    """Which of Django's sessions belongs to whom, oldest first: for SESSIONS_PER_USER."""

    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="+")
    session = models.OneToOneField(Session, on_delete=models.CASCADE, related_name="+")
    created = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return f"session of user {self.user_id}"
