"""CONTENT_SECURITY_POLICY: the project's own, in place of the one that nginx sends."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest, HttpResponse

from carillon.conf import conf

HEADER = "Content-Security-Policy"
DIRECTIVES = frozenset(
    """
    base-uri child-src connect-src default-src font-src form-action frame-ancestors frame-src img-src
    manifest-src media-src object-src report-to report-uri require-trusted-types-for sandbox script-src
    script-src-attr script-src-elem style-src style-src-attr style-src-elem trusted-types
    upgrade-insecure-requests worker-src
    """.split()  # noqa: SIM905 - a list of words
)
_SOURCES = re.compile(
    r"[!-+./0-9:<-~ -]*"
)  # visible, but neither `,` nor `;`: they would begin something else


def text() -> str | None:
    """What the setting says, as a header has it; None: nginx's holds. Raises ImproperlyConfigured."""
    policy = conf.CONTENT_SECURITY_POLICY
    if policy is None:
        return None
    if not isinstance(policy, Mapping) or not policy:
        raise ImproperlyConfigured(
            'CONTENT_SECURITY_POLICY must name directives: {"default-src": "\'self\'", "script-src": "…"}'
        )
    for name, sources in policy.items():
        if name not in DIRECTIVES:
            raise ImproperlyConfigured(
                f"CONTENT_SECURITY_POLICY: {name!r} is no directive: there are {' '.join(sorted(DIRECTIVES))}"
            )
        if not isinstance(sources, str) or not _SOURCES.fullmatch(sources):
            raise ImproperlyConfigured(
                f"CONTENT_SECURITY_POLICY: {name}: {sources!r} is no list of sources, as \"'self' https://x.org\""
            )
    return "; ".join(f"{name} {sources}".strip() for name, sources in policy.items())


class PolicyMiddleware:
    """Of an answer that has none of its own; and nobody keeps what the API says, unless a view lets him."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response: Any = self.get_response(request)
        if policy := text():
            response.setdefault(HEADER, policy)
        if request.path_info.startswith("/api/"):
            response.setdefault("Cache-Control", "no-store")
        return response
