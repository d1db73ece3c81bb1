"""Tokens and users as JSON."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.contrib.auth import get_user_model
from django.db import transaction
from django.utils import timezone
from rest_framework import serializers
from rest_framework.exceptions import AuthenticationFailed

from carillon.accounts import sessions, tokens
from carillon.accounts.authentication import UnknownToken
from carillon.accounts.models import ApiToken, AuditEntry, Team, UserSession, lock_user
from carillon.accounts.permissions import may_publish
from carillon.api import quotas
from carillon.conf import conf


class TeamSerializer(serializers.ModelSerializer):
    class Meta:
        model = Team
        fields = ("id", "name")


class UserSerializer(serializers.ModelSerializer):
    teams = TeamSerializer(many=True, read_only=True)

    class Meta:
        model = get_user_model()
        fields = ("id", "username", "is_superuser", "teams")


class TokenSerializer(serializers.ModelSerializer):
    token = serializers.CharField(
        read_only=True, required=False, help_text="Only in the answer to POST, once."
    )
    scope = serializers.CharField(
        default="read write", help_text="Of read, write, publish and metrics, with spaces."
    )

    class Meta:
        model = ApiToken
        fields = ("id", "description", "scope", "expires", "created", "last_used", "token")
        read_only_fields = ("created", "last_used")

    def validate_scope(self, value: str) -> str:
        try:
            scope = tokens.parse_scope(value)
        except ValueError as error:
            raise serializers.ValidationError(str(error)) from None
        request = self.context["request"]
        wanted = set(scope.split())
        used = request.auth if isinstance(request.auth, ApiToken) else None
        if used is not None and (missing := wanted - set(used.scope.split())):
            raise serializers.ValidationError(
                f"the token you use has no scope {', '.join(sorted(missing))} to give on"
            )
        if "publish" in wanted and not may_publish(request.user):
            raise serializers.ValidationError("only who may publish may make a token with the scope publish")
        if "metrics" in wanted and not request.user.is_superuser:
            raise serializers.ValidationError("only an admin may make a token with the scope metrics")
        return scope

    def validate_expires(self, value: Any) -> Any:
        if value is not None and value <= timezone.now():
            raise serializers.ValidationError("this is in the past")
        parent = self._parent()
        if parent is not None and parent.expires and (value is None or value > parent.expires):
            raise serializers.ValidationError(
                f"the token you use ends at {parent.expires.isoformat()}: no token made by it lives longer"
            )
        return value

    def _parent(self) -> ApiToken | None:
        """The token that is used to make this one."""
        auth = self.context["request"].auth
        return auth if isinstance(auth, ApiToken) else None

    @transaction.atomic
    def create(self, validated_data: dict[str, Any]) -> ApiToken:
        user, parent = self.context["request"].user, self._parent()
        now = lock_user(user.pk)
        key = self.context["request"].session.session_key if parent is None else None
        has_ended = key is not None and sessions.find(key) is None
        if has_ended or not now.is_active or now.password != user.password:
            raise AuthenticationFailed("Your login has ended meanwhile: log in again.")
        if parent is not None and not ApiToken.objects.valid().filter(pk=parent.pk).exists():
            raise UnknownToken  # it has ended since the request came in
        quotas.at_most("tokens", ApiToken.objects.valid().filter(user=user).count(), conf.TOKENS_PER_USER)
        if "expires" not in validated_data:
            year = timezone.now() + timedelta(days=conf.TOKEN_DAYS)
            validated_data["expires"] = min(year, parent.expires) if parent and parent.expires else year
        with quotas.spent("tokens", user):
            row, token = ApiToken.issue(user, parent=parent, **validated_data)
        row.token = token
        return row


class SessionSerializer(serializers.ModelSerializer):
    since = serializers.DateTimeField(source="created", read_only=True)
    expires = serializers.DateTimeField(source="session.expire_date", read_only=True)
    current = serializers.SerializerMethodField(help_text="Whether it is the one of this request.")

    class Meta:
        model = UserSession
        fields = ("id", "since", "expires", "address", "client", "current")

    def get_current(self, entry: UserSession) -> bool:
        return entry.session_id == self.context["request"].session.session_key


class AuditSerializer(serializers.ModelSerializer):
    class Meta:
        model = AuditEntry
        fields = ("id", "at", "what", "name", "by", "address", "request", "about")


class PasswordSerializer(serializers.Serializer):
    current = serializers.CharField(max_length=1000, trim_whitespace=False)
    new = serializers.CharField(max_length=1000, trim_whitespace=False)


class EndedSerializer(serializers.Serializer):
    ended = serializers.IntegerField(help_text="How many there were.")


class CredentialsSerializer(serializers.Serializer):
    username = serializers.CharField(max_length=150)
    password = serializers.CharField(max_length=1000, trim_whitespace=False)
    next = serializers.CharField(required=False, allow_blank=True, max_length=2000)
