"""Documents for programs: the websocket as AsyncAPI. The REST API's own is drf-spectacular's."""

from __future__ import annotations

from django.urls import get_script_prefix
from drf_spectacular.utils import extend_schema
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from carillon import __version__
from carillon.events.families import registry
from carillon.sockets import asyncapi


class AsyncAPIView(APIView):
    """The websocket as an AsyncAPI 3 document."""

    authentication_classes = ()
    permission_classes = (AllowAny,)

    @extend_schema(responses={200: dict})
    def get(self, request: Request) -> Response:
        path = f"{get_script_prefix()}websocket/"
        return Response(
            asyncapi.document(registry.all(), __version__, request.get_host(), path, tls=request.is_secure())
        )
