"""The websocket's side in the REST API: who is connected, and 426 for plain HTTP on its path."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.csrf import csrf_exempt
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.exceptions import PermissionDenied, ValidationError
from rest_framework.generics import ListAPIView
from rest_framework.request import Request
from rest_framework.response import Response

from carillon.events.families import registry
from carillon.sockets import presence, upgrade
from carillon.sockets.models import Connection


class ConnectedUserSerializer(serializers.Serializer):
    id = serializers.IntegerField()
    username = serializers.CharField()


class ConnectionSerializer(serializers.ModelSerializer):
    user = ConnectedUserSerializer(read_only=True)

    class Meta:
        model = Connection
        fields = ("user", "since", "address", "client")


class ConnectionsView(ListAPIView):
    """Who is connected, newest first: oneself and team mates; for an admin, everybody."""

    serializer_class = ConnectionSerializer
    queryset = Connection.objects.none()

    def get_queryset(self):
        return presence.connected(self.request.user, self._group())

    def _group(self) -> str | None:
        """The group asked for, if this user may subscribe to it himself."""
        group = self.request.query_params.get("group")
        if group is None:
            return None
        found = registry.parse_group(group)
        if found is None:
            raise ValidationError({"group": [f"{group[:100]!r} is no <family>-<key>"]})
        family, key = found
        if not family.allowed(self.request.user, {key}):
            raise PermissionDenied(f"access denied to {group}")
        return group

    @extend_schema(
        parameters=[
            OpenApiParameter("group", str, description="only who is subscribed to it, say job_events-42")
        ]
    )
    def get(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        return super().get(request, *args, **kwargs)


@csrf_exempt  # there is nothing here to forge a request for, and the answer should be the same to all
def upgrade_required(request: HttpRequest) -> HttpResponse:
    headers = {
        name: value for name, value in upgrade.HEADERS.items() if name != "Connection"
    }  # WSGI: hop by hop
    return JsonResponse(upgrade.body(request.headers.get("Upgrade")), status=upgrade.STATUS, headers=headers)
