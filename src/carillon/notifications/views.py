"""Publishing by the API, and whether the server is well."""

from __future__ import annotations

import json
from typing import Any

from django.core.cache import cache
from django.db import DatabaseError, connection
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.permissions import AllowAny, IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from carillon import __version__
from carillon.accounts.permissions import MayPublish
from carillon.notifications import Notification, NotificationsUnavailable, delivery, emit_many
from carillon.notifications.registry import registry

MAX_BATCH = 1000
MAX_PAYLOAD = 256 * 1024  # characters of JSON
HEALTH_CACHE = 2  # seconds: anybody may ask, and an answer costs a query and a publish


class AudienceSerializer(serializers.Serializer):
    users = serializers.ListField(child=serializers.IntegerField(min_value=1), default=list, max_length=1000)
    teams = serializers.ListField(child=serializers.IntegerField(min_value=1), default=list, max_length=1000)


class NotificationSerializer(serializers.Serializer):
    group = serializers.CharField(max_length=100, help_text="<family>-<key>")
    payload = serializers.DictField(help_text="The frame that subscribers get")
    audience = AudienceSerializer(
        required=False, allow_null=True, help_text="Only these; default: all subscribers"
    )

    def validate_group(self, group: str) -> str:
        if registry.parse_group(group) is None:
            raise serializers.ValidationError(
                f"{group!r} is no <family>-<key>: the families are {', '.join(registry.names())}"
            )
        return group

    def validate_payload(self, payload: dict[str, Any]) -> dict[str, Any]:
        try:
            length = len(json.dumps(payload, allow_nan=False))
        except ValueError:
            raise serializers.ValidationError("NaN and Infinity are no JSON") from None
        if length > MAX_PAYLOAD:
            raise serializers.ValidationError(f"{length} characters of JSON: the most is {MAX_PAYLOAD}")
        return payload


class NotificationsView(APIView):
    """Publish one notification or a list. 202: the broker has confirmed them all. 503: try again."""

    permission_classes = (IsAuthenticated, MayPublish)

    @extend_schema(request=NotificationSerializer(many=True), responses={202: dict, 503: dict})
    def post(self, request: Request) -> Response:
        items = request.data if isinstance(request.data, list) else [request.data]
        if len(items) > MAX_BATCH:
            raise serializers.ValidationError(
                {"detail": f"{len(items)} notifications in one request: the most is {MAX_BATCH}."}
            )
        serializer = NotificationSerializer(data=items, many=True)
        serializer.is_valid(raise_exception=True)
        accepted = emit_many(
            Notification(item["group"], item["payload"], item.get("audience"))
            for item in serializer.validated_data
        )
        return Response({"accepted": accepted}, status=202)


class PingView(APIView):
    """Answers as long as uwsgi does."""

    authentication_classes = ()
    permission_classes = (AllowAny,)

    @extend_schema(responses={200: dict})
    def get(self, request: Request) -> Response:
        return Response({"version": __version__, "status": "ok"})


class HealthView(APIView):
    """200 when database and broker answer, 503 when one does not. Which one, the log says."""

    authentication_classes = ()
    permission_classes = (AllowAny,)

    @extend_schema(responses={200: dict, 503: dict})
    def get(self, request: Request) -> Response:
        healthy = cache.get("health")
        if healthy is None:
            healthy = is_healthy()
            cache.set("health", healthy, HEALTH_CACHE)
        return Response({"status": "ok" if healthy else "unavailable"}, status=200 if healthy else 503)


def is_healthy() -> bool:
    """Asks the database and the broker, each with a deadline."""
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        delivery.check()
    except DatabaseError:
        return False
    except NotificationsUnavailable:
        return False
    return True
