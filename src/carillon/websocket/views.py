"""The websocket's side in the REST API: who is connected, and 426 for plain HTTP on its path."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.views.decorators.csrf import csrf_exempt
from rest_framework import serializers
from rest_framework.generics import ListAPIView

from carillon.websocket import presence, upgrade
from carillon.websocket.models import Connection


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
        return presence.connected(self.request.user)


@csrf_exempt  # there is nothing here to forge a request for, and the answer should be the same to all
def upgrade_required(request: HttpRequest) -> HttpResponse:
    headers = {
        name: value for name, value in upgrade.HEADERS.items() if name != "Connection"
    }  # WSGI: hop by hop
    return HttpResponse(upgrade.body(request.headers.get("Upgrade")), status=upgrade.STATUS, headers=headers)
