"""What all processes of this machine have counted, for Prometheus; and what a request counts."""

from __future__ import annotations

import ipaddress
import logging
import time
from collections.abc import Callable
from functools import cache
from typing import Any

from django.http import HttpRequest, HttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from prometheus_client.exposition import choose_encoder
from rest_framework.exceptions import APIException
from rest_framework.negotiation import BaseContentNegotiation
from rest_framework.permissions import BasePermission
from rest_framework.request import Request
from rest_framework.views import APIView

from carillon import logs, tracing
from carillon.accounts import audit
from carillon.accounts.models import ApiToken
from carillon.accounts.permissions import allows
from carillon.conf import conf
from carillon.metrics import names, shared
from carillon.metrics.snapshot import Together

logger = logging.getLogger(__name__)

METHODS = frozenset({"GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"})


class MayScrape(BasePermission):
    """A token with the scope `metrics`, an admin's session, or an address of the list of scrapers."""

    message = "Metrics need a token with the scope metrics (an admin can make one)."

    def has_permission(self, request: Request, view: Any) -> bool:
        if isinstance(request.auth, ApiToken):
            return request.auth.allows("metrics")
        return bool(request.user and request.user.is_superuser) and allows(request, "metrics")


class AnyFormat(BaseContentNegotiation):
    """Prometheus asks for types that the REST API does not have: the view looks at them itself."""

    def select_parser(self, request: Request, parsers: Any) -> Any:
        return parsers[0]

    def select_renderer(self, request: Request, renderers: Any, format_suffix: str | None = None) -> Any:
        return renderers[0], renderers[0].media_type


class MetricsAway(APIException):
    status_code = 503


def read() -> Together:
    """What the processes of this machine have counted. Raises MetricsAway."""
    directory = conf.METRICS_DIRECTORY
    if directory is None:
        raise MetricsAway("CARILLON_METRICS_DIRECTORY is none: no metrics are kept.")
    try:
        return shared.read(directory)
    except OSError as error:
        logger.warning("The metrics in %s cannot be read: %s", directory, error.strerror)
        raise MetricsAway("The metrics cannot be read: the log of uwsgi says why.") from None


class MetricsView(APIView):
    """Text of Prometheus or, where the scraper prefers it, OpenMetrics. 503: they cannot be read."""

    permission_classes = (MayScrape,)
    content_negotiation_class = AnyFormat

    def perform_authentication(self, request: Request) -> None:
        """A scraper that is known by its address needs no database."""
        if not is_scraper(request.META.get("REMOTE_ADDR", "")):
            super().perform_authentication(request)

    def check_permissions(self, request: Request) -> None:
        if not is_scraper(request.META.get("REMOTE_ADDR", "")):
            super().check_permissions(request)

    @extend_schema(responses={(200, "text/plain"): OpenApiTypes.STR, 503: dict})
    def get(self, request: Request) -> HttpResponse:
        together = read()
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return HttpResponse(encode(together), content_type=content_type)


def is_scraper(address: str) -> bool:
    """Whether this address may read the metrics without a token."""
    networks = _networks(tuple(conf.METRICS_ADDRESSES))
    try:
        return bool(networks) and any(ipaddress.ip_address(address) in network for network in networks)
    except ValueError:
        return False  # a socket in the file system has no address


@cache
def _networks(texts: tuple[str, ...]) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    return [ipaddress.ip_network(text, strict=False) for text in texts]


class MeasureMiddleware:
    """Counts requests by the name of their route: there are as many as there are routes. What is logged and
    emitted meanwhile belongs to the request."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        begun = time.perf_counter()
        headers = request.headers
        method = request.method if request.method in METHODS else "other"
        about = logs.about(headers.get("X-Request-ID", ""), headers.get("traceparent", ""))
        with about, audit.of(request), tracing.request(method) as answered:
            response = self.get_response(request)
            match = request.resolver_match
            route = "none" if match is None else match.view_name or "unnamed"
            answered(route, response.status_code)
        names.HTTP_SECONDS.labels(route).observe(time.perf_counter() - begun)
        names.HTTP_REQUESTS.labels(route, method, str(response.status_code)).inc()
        return response
