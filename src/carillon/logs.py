"""Log lines: JSON for machines, one object a line, or text for people; and what a line is about.

The request's id is nginx's, of its access log and of the answer's `X-Request-ID`. The trace is W3C's
`traceparent`, as the request brought it: it goes with what the request emits, to the clients' frames. Both
hold for the running thread or task.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime

_REQUEST = re.compile(r"[A-Za-z0-9-]{1,64}")
_TRACE = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")

MOST = 32 * 1024
"""Characters of a message or of a traceback."""

request_id: ContextVar[str] = ContextVar("carillon_request_id", default="")
trace: ContextVar[str] = ContextVar("carillon_trace", default="")


def known_trace(text: object) -> str:
    """A `traceparent`, or "" for what is none."""
    return text if isinstance(text, str) and _TRACE.fullmatch(text) else ""


@contextmanager
def about(request: str, traceparent: str) -> Iterator[None]:
    """What is logged and emitted inside belongs to this request. Nonsense is as if nothing had been said."""
    before = request_id.get(), trace.get()
    request_id.set(request if _REQUEST.fullmatch(request) else "")
    trace.set(known_trace(traceparent))
    try:
        yield
    finally:
        request_id.set(before[0])
        trace.set(before[1])


def forget() -> None:
    """What is logged in this context belongs to no request, whichever happened to begin it."""
    request_id.set("")
    trace.set("")


class JsonFormatter(logging.Formatter):
    """One object a line: `time` (UTC), `level`, `logger`, `message`, and, where there is one, `request`,
    `trace`, `event` (`extra={"event": …}`, the ids of events in hex), `audit` (likewise, an object) and
    `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage()[:MOST],
        }
        for name, value in (
            ("request", request_id.get()),
            ("trace", getattr(record, "trace", "") or trace.get()),
            ("event", getattr(record, "event", "")),
            ("audit", getattr(record, "audit", None)),
        ):
            if value:
                line[name] = value
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)[-MOST:]
        return json.dumps(line, ensure_ascii=False, default=str)


class TextFormatter(logging.Formatter):
    """A line for people, and which request and event it is about, where there is one."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        about = {"request": request_id.get(), "event": getattr(record, "event", "")}
        said = "".join(f" {name}={value}" for name, value in about.items() if value)
        return super().formatMessage(record) + said
