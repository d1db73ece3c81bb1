"""Publishing by the API."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.permissions import IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from carillon.accounts import audit
from carillon.accounts.permissions import MayPublish
from carillon.api import quotas
from carillon.conf import conf
from carillon.events import Notification, emit_many
from carillon.events.families import registry


class AudienceSerializer(serializers.Serializer):
    users = serializers.ListField(child=serializers.IntegerField(min_value=1), default=list, max_length=1000)
    teams = serializers.ListField(child=serializers.IntegerField(min_value=1), default=list, max_length=1000)


class NotificationSerializer(serializers.Serializer):
    group = serializers.CharField(max_length=100, help_text="<family>-<key>")
    payload = serializers.DictField(help_text="The frame that subscribers get")
    audience = AudienceSerializer(
        required=False, allow_null=True, help_text="Only these; default: all subscribers"
    )

    id = serializers.UUIDField(
        required=False,
        help_text="Of your making: the same again, after an error, is the same event, sent once",
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
        if length > conf.PUBLISH_CHARACTERS:
            raise serializers.ValidationError(
                f"{length} characters of JSON: the most is {conf.PUBLISH_CHARACTERS}"
            )
        return payload


class NotificationsView(APIView):
    """Publish one notification or a list. 202: the broker has confirmed them all. 503: try again."""

    permission_classes = (IsAuthenticated, MayPublish)

    @extend_schema(
        request=NotificationSerializer(many=True),
        responses={202: dict, 503: dict},
        parameters=[
            OpenApiParameter(
                "Idempotency-Key",
                str,
                OpenApiParameter.HEADER,
                description="of your making: the same request again under the same key is the same events",
            )
        ],
    )
    def post(self, request: Request) -> Response:
        items = request.data if isinstance(request.data, list) else [request.data]
        if len(items) > conf.PUBLISH_EVENTS:
            raise serializers.ValidationError(
                {"detail": f"{len(items)} notifications in one request: the most is {conf.PUBLISH_EVENTS}."}
            )
        serializer = NotificationSerializer(data=items, many=True)
        serializer.is_valid(raise_exception=True)
        key = request.headers.get("Idempotency-Key", "")
        if len(key) > 200:
            raise serializers.ValidationError({"detail": "Idempotency-Key: 200 characters are the most."})
        with quotas.spent("notifications", request.user, len(items)):
            families = {item["group"].partition("-")[0] for item in serializer.validated_data}
            audit.keep_publishing(request.user, families)
            accepted = emit_many(
                Notification(
                    item["group"], item["payload"], item.get("audience"), id_of(item, number, key, request)
                )
                for number, item in enumerate(serializer.validated_data)
            )
        return Response({"accepted": accepted}, status=202)


def id_of(item: Mapping[str, Any], number: int, key: str, request: Request) -> bytes | None:
    """The id of the event: the caller's own, or one that his `Idempotency-Key` gives to the event at this
    place in the request, so that the same request again is the same events. None: a new one."""
    if "id" in item:
        return item["id"].bytes
    if not key:
        return None
    return hashlib.sha256(f"{request.user.pk}\0{number}\0{key}".encode()).digest()[:16]
