"""Text that comes from outside: its charset is UTF-8, and a database can hold it.

Python knows codecs that are no charsets, or take the square of the length. Django uses the one that a request
names while it makes the request: before any middleware, budget or handler of errors.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from typing import Any

from django.utils.http import parse_header_parameters

KNOWN = frozenset({"utf-8", "utf8", "us-ascii", "ascii"})
REFUSED = {"detail": "What is sent here is UTF-8: leave the charset out of Content-Type, or say utf-8."}

_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


def storable(text: str) -> str:
    """The same with U+FFFD for what PostgreSQL does not store: NUL and lone surrogates."""
    return _UNSTORABLE.sub("\ufffd", text)


def is_fit(content_type: str) -> bool:
    """Whether it names no charset, or one of `KNOWN`."""
    try:
        return parse_header_parameters(content_type)[1].get("charset", "utf-8").lower() in KNOWN
    except ValueError:
        return False


def guarded(application: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
    """A WSGI application that answers 415 to any other."""

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if is_fit(environ.get("CONTENT_TYPE", "")):
            return application(environ, start_response)
        body = json.dumps(REFUSED).encode()
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        start_response("415 Unsupported Media Type", headers)
        return [body]

    return answer
