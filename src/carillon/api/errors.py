"""Errors as JSON: what is wrong, where, and what to do."""

from __future__ import annotations

import sys
from typing import Any

from django.contrib.auth import get_user_model
from django.db import DataError, IntegrityError, OperationalError
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.http.request import split_domain_port
from django.shortcuts import render
from django.urls import get_script_prefix
from django.views.debug import technical_500_response
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.response import Response
from rest_framework.views import exception_handler as drf_exception_handler

from carillon.conf import conf
from carillon.events import NotificationsUnavailable

QUERY_CANCELED, FOREIGN_KEY_VIOLATION = "57014", "23503"  # of SQLSTATE


def exception_handler(error: Exception, context: dict[str, Any]) -> Response | None:
    """Django REST framework's handler; the broker being away is a 503 that says when to try again."""
    if isinstance(error, NotificationsUnavailable):
        return Response(
            {"detail": str(error), "code": "broker_unavailable"}, status=503, headers={"Retry-After": "5"}
        )
    state = getattr(error.__cause__, "sqlstate", None)
    if isinstance(error, OperationalError) and state == QUERY_CANCELED:
        detail = "The database takes longer for this than is allowed: ask for less, or try again later."
        return Response({"detail": detail}, status=503, headers={"Retry-After": "5"})
    if isinstance(error, IntegrityError) and state == FOREIGN_KEY_VIOLATION:
        return Response({"detail": "What it refers to has gone meanwhile: look again."}, status=409)
    if isinstance(error, DataError) or (isinstance(error, ValueError) and "NUL" in str(error)):
        return Response(
            {"detail": "The request has a value that the database cannot hold, such as a NUL character."},
            status=400,
        )
    if isinstance(error, get_user_model().DoesNotExist):
        error = AuthenticationFailed("Your account has ended meanwhile.")
    return drf_exception_handler(error, context)


def csrf_failure(request: HttpRequest, reason: str = "") -> HttpResponse:
    """Django's answer to a missing or wrong CSRF token, in words a program can show."""
    return JsonResponse(
        {"detail": f"CSRF check failed: {reason} Send the csrftoken cookie's value as X-CSRFToken."},
        status=403,
    )


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    """400, for a request that is none. Django's own handler reads the body again, to fail again: 500."""
    return JsonResponse({"detail": "Bad request: it cannot be read."}, status=400)


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    """404: JSON below /api/, elsewhere a page for browsers and a sentence for programs."""
    if request.path_info.startswith("/api/"):
        return JsonResponse({"detail": "Not found. GET /api/v2/schema/ lists what there is."}, status=404)
    if _is_browser(request):
        return render(request, "carillon/404.html", {"home": get_script_prefix()}, status=404)
    return HttpResponse("Not found.\n", status=404, content_type="text/plain; charset=utf-8")


def server_error(request: HttpRequest) -> HttpResponse:
    """500: the traceback is in the log, not in the answer. In development a browser of this machine is shown
    Django's debug page.
    """
    kind, error, where = sys.exc_info()
    if error is not None and _shows_debug_page(request):
        page = technical_500_response(request, kind, error, where)
        page["Content-Security-Policy"] = _OF_DEBUG_PAGE
        return page
    return JsonResponse({"detail": "Internal error: the server's log has the details."}, status=500)


# Its styles and its script are in it.
_OF_DEBUG_PAGE = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def _shows_debug_page(request: HttpRequest) -> bool:
    """Also by the name that the browser was told: a tunnel from elsewhere has another."""
    host, _ = split_domain_port(request.META.get("HTTP_HOST", ""))
    loopback = host in ("localhost", "127.0.0.1", "[::1]")
    return conf.DEBUG_PAGE and loopback and _is_browser(request)


def _is_browser(request: HttpRequest) -> bool:
    return request.accepts("text/html") and "text/html" in request.headers.get("Accept", "")


_ERROR = {"type": "object", "properties": {"detail": {"type": "string"}}, "required": ["detail"]}
_MESSAGES = {"type": "array", "items": {"type": "string"}}
_SCHEMAS = {
    "Error": _ERROR,
    "FieldErrors": {
        "type": "object",
        "description": "What is wrong with each field. A field that is a list has, by index, what is wrong "
        'with its items: {"groups": {"0": ["…"]}}.',
        "additionalProperties": {"anyOf": [_MESSAGES, {"type": "object", "additionalProperties": {}}]},
    },
}
_DESCRIPTIONS = {
    "400": "The request is not understood, or a field of it is wrong.",
    "401": "Nobody is logged in, or the token is not valid.",
    "403": "The token's scope or the user's rights do not allow it, or the CSRF token is missing.",
    "404": "There is no such object, or this user may not see it.",
    "429": "Too many requests. Try again later.",
}


def document_errors(result: dict[str, Any], **_: Any) -> dict[str, Any]:
    """A hook of drf-spectacular: adds to each operation the errors that it can answer with."""
    schemas = result.setdefault("components", {}).setdefault("schemas", {})
    schemas.update(_SCHEMAS)
    for path, operations in result["paths"].items():
        for method, operation in operations.items():
            for status in _statuses(path, method, operation):
                documented = operation["responses"].setdefault(status, {})
                documented["description"] = documented.get("description") or _DESCRIPTIONS[status]
                documented["content"] = {"application/json": {"schema": _shape(status)}}
    return result


def _statuses(path: str, method: str, operation: dict[str, Any]) -> list[str]:
    found = ["429"]
    if "requestBody" in operation or any(one["in"] == "query" for one in operation.get("parameters", [])):
        found.append("400")
    if {} not in operation.get("security", [{}]):
        found += ["401", "403"]
    elif method == "post":  # logging in and out
        found += ["403"] if "401" not in operation["responses"] else ["401", "403"]
    if (
        "{" in path
        or "404" in operation["responses"]
        or any(one["name"] == "page" for one in operation.get("parameters", []))
    ):
        found.append("404")
    return sorted(found)


def _shape(status: str) -> dict[str, Any]:
    names = ["Error", "FieldErrors"] if status == "400" else ["Error"]
    shapes = [{"$ref": f"#/components/schemas/{name}"} for name in names]
    return shapes[0] if len(shapes) == 1 else {"anyOf": shapes}
