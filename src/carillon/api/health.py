"""Whether the server is well."""

from __future__ import annotations

from threading import Lock

from django.core.cache import cache
from django.db import Error, connection
from drf_spectacular.utils import extend_schema
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from carillon import __version__
from carillon.events import NotificationsUnavailable, queue

HEALTH_CACHE = 2  # seconds: anybody may ask, and an answer costs a query and a publish


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
            healthy = _ask()
        return Response({"status": "ok" if healthy else "unavailable"}, status=200 if healthy else 503)


_asking = Lock()
_known: list[bool] = []  # what was found last; nothing yet


def _ask() -> bool:
    """One asks, the others have what was found last: else they take every thread while the broker hangs.
    Where nothing is known yet, they wait for it."""
    if not _asking.acquire(blocking=not _known):
        return _known[0]
    try:
        healthy = cache.get("health")  # who asked before has found it
        if healthy is None:
            healthy = is_healthy()
            cache.set("health", healthy, HEALTH_CACHE)
        _known[:] = [healthy]
        return healthy
    finally:
        _asking.release()


def is_healthy() -> bool:
    """Asks the database and the broker, each with a deadline."""
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        queue.check()
    except Error:
        return False
    except NotificationsUnavailable:
        return False
    return True
