"""`X-Carillon-Position` in the answers of the REST API: where to go on from after looking at the state."""

from __future__ import annotations

from collections.abc import Callable

from django.db import DatabaseError
from django.http import HttpRequest, HttpResponse

from carillon.delivery import heads

HEADER = "X-Carillon-Position"
PREFIX = "/api/v2/"


class PositionMiddleware:
    """The position is read before the view asks the database: what the view did not see comes after it. GET the
    state, subscribe `since` this position, and nothing falls between."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        position = None
        if request.method == "GET" and request.path.startswith(PREFIX):
            try:
                position = heads.position()
            except DatabaseError:
                pass  # the view will say so, in its own way, if it needs the database
        response = self.get_response(request)
        if position is not None:
            response[HEADER] = str(position)
        return response
