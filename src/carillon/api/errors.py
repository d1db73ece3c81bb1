"""Errors as JSON: what is wrong, where, and what to do."""

from __future__ import annotations

from typing import Any

from django.db import DataError
from django.http import HttpRequest, HttpResponse, JsonResponse
from rest_framework.response import Response
from rest_framework.views import exception_handler as drf_exception_handler

from carillon.events import NotificationsUnavailable


def exception_handler(error: Exception, context: dict[str, Any]) -> Response | None:
    """Django REST framework's handler; the broker being away is a 503 that says when to try again."""
    if isinstance(error, NotificationsUnavailable):
        return Response(
            {"detail": str(error), "code": "broker_unavailable"}, status=503, headers={"Retry-After": "5"}
        )
    if isinstance(error, DataError) or (isinstance(error, ValueError) and "NUL" in str(error)):
        return Response(
            {"detail": "The request has a value that the database cannot hold, such as a NUL character."},
            status=400,
        )
    return drf_exception_handler(error, context)


def csrf_failure(request: HttpRequest, reason: str = "") -> HttpResponse:
    """Django's answer to a missing or wrong CSRF token, in words a program can show."""
    return JsonResponse(
        {"detail": f"CSRF check failed: {reason} Send the csrftoken cookie's value as X-CSRFToken."},
        status=403,
    )


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    """404: JSON below /api/, a plain sentence elsewhere."""
    if request.path_info.startswith("/api/"):
        return JsonResponse({"detail": "Not found. GET /api/v2/schema/ lists what there is."}, status=404)
    return HttpResponse("Not found.\n", status=404, content_type="text/plain; charset=utf-8")


def server_error(request: HttpRequest) -> HttpResponse:
    """500: the traceback is in the log, not in the answer."""
    return JsonResponse({"detail": "Internal error: the server's log has the details."}, status=500)
