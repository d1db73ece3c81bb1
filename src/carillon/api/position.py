"""`X-Carillon-Position` in answers: where to go on from after looking at the state."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from django.db import Error
from django.http import HttpRequest, HttpResponse

from carillon.conf import conf
from carillon.events import heads

HEADER = "X-Carillon-Position"
PREFIX = "/api/v2/"
STATELESS = frozenset({"asyncapi", "docs", "health", "index", "metrics", "operations", "ping", "schema"})
"""Routes of ours that show no state: they are asked often, and a query would be wasted."""


class PositionMiddleware:
    """The position is read before the view asks the database: what the view did not see comes after it. GET
    the state, subscribe `since` this position, and nothing falls between."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response = self.get_response(request)
        position = getattr(request, "position", None)
        if position is not None:
            response[HEADER] = str(position)
        return response

    def process_view(self, request: HttpRequest, view: Any, args: Any, kwargs: Any) -> None:
        path = request.path_info
        stateless = path.startswith(PREFIX) and request.resolver_match.url_name in STATELESS
        if request.method == "GET" and path.startswith(tuple(conf.POSITION_PREFIXES)) and not stateless:
            with suppress(Error):  # the view will say so, in its own way, if it needs the database
                request.position = heads.position()
