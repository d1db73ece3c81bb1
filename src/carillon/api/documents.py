"""Documents for programs: the REST API as OpenAPI, which drf-spectacular makes, the websocket as AsyncAPI."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from django.conf import settings
from django.urls import get_script_prefix
from django.utils.translation import override
from drf_spectacular.utils import extend_schema
from drf_spectacular.views import SpectacularJSONAPIView
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from carillon import __version__
from carillon.events.families import registry
from carillon.sockets import asyncapi


@lru_cache(maxsize=2)
def _openapi(prefix: str) -> Any:
    """Of an installation whose paths begin so. It takes a processor for a twentieth of a second."""
    with override(settings.LANGUAGE_CODE):  # not that of the first visitor
        return OpenAPIView.generator_class().get_schema(public=True)


class OpenAPIView(SpectacularJSONAPIView):
    """The REST API as an OpenAPI 3 document: the same for everybody, whatever else the query asks for."""

    authentication_classes = ()
    permission_classes = (AllowAny,)

    @extend_schema(exclude=True)
    def get(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        return Response(_openapi(get_script_prefix()))


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
