"""Spans: one for each hop of the events of a request. `request` is uwsgi's; then `outbox`, `emit`, `relay`
and `fan-out`, each the child of the one before, which the event brought with it.

They are made where TRACES_ENDPOINT is set, and nothing of OpenTelemetry is imported elsewhere. What fails in
them (`carillon.spans` sends them) neither stops an event nor makes it wait.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

from django.core.exceptions import ImproperlyConfigured

from carillon import logs
from carillon.conf import conf

if TYPE_CHECKING:
    from carillon.events.event import Event

_spans: ModuleType | None = None
"""`carillon.spans`, in a process that makes them."""


def check_settings() -> None:
    """Raises ImproperlyConfigured where there is an endpoint, and nothing to send spans with."""
    if conf.TRACES_ENDPOINT:
        try:
            from carillon import spans  # noqa: F401
        except ImportError as error:
            raise ImproperlyConfigured(
                f"TRACES_ENDPOINT needs OpenTelemetry: install django-carillon[traces] ({error})"
            ) from None


def start(process: str) -> None:
    """Make spans in this process, which is a `process`, if there is an endpoint for them."""
    global _spans
    if conf.TRACES_ENDPOINT:
        from carillon import spans

        spans.start(conf.TRACES_ENDPOINT, conf.TRACES_RATIO, process)
        _spans = spans


@contextmanager
def request(method: str) -> Iterator[Callable[[str, int], None]]:
    """What is logged and emitted inside belongs to this span. Call what is given with the route's name and
    the status of the answer."""
    if _spans is None:
        yield lambda route, status: None
        return
    span = _spans.begin("request", "SERVER", logs.trace.get(), {"http.request.method": method})
    logs.trace.set(_spans.traceparent(span))  # recorded or not: what follows is as this is

    def answered(route: str, status: int) -> None:
        span.update_name(f"{method} {route}")
        span.set_attributes({"http.route": route, "http.response.status_code": status})
        if status >= 500:
            _spans.failed(span, str(status))

    with _spans.around(span):
        yield answered


@contextmanager
def hop(name: str, messages: Sequence[dict[str, Any]]) -> Iterator[None]:
    """This hop of messages for the queue; one that no request emitted begins a trace."""
    if _spans is None:
        yield
        return
    begun = _begin(name, "PRODUCER", ((message.get("trace", ""), message["id"]) for message in messages))
    for message in messages:
        if span := begun.get(message.get("trace", "")):
            message["trace"] = _spans.traceparent(span)
    try:
        yield
    except BaseException as error:
        end(begun.values(), type(error).__name__)
        raise
    end(begun.values())


def begin(name: str, events: Sequence[Event]) -> Iterable[Any]:
    """Begin this hop of events; what is given wants an `end`. An event without a trace, or with one that
    nobody records, gets no span."""
    if _spans is None:
        return ()
    begun = _begin(name, "CONSUMER", ((event.trace, event.id) for event in events if _recorded(event.trace)))
    for event in events:
        if span := begun.get(event.trace):
            event.trace = _spans.traceparent(span)
    return begun.values()


def end(spans: Iterable[Any], error: str = "") -> None:
    for span in spans:
        if error:
            _spans.failed(span, error)
        span.end()


class Underway:
    """Spans of events that are on their way to a place that says how many it has."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, Iterable[Any]]] = deque()
        self._sent = self._there = 0

    def sent(self, spans: Iterable[Any], events: int) -> None:
        """So many more events are sent, and these spans end when the last of them is there."""
        self._sent += events
        if spans:
            self._waiting.append((self._sent, spans))

    def there(self, events: int) -> None:
        """So many more are there."""
        self._there += events
        while self._waiting and self._waiting[0][0] <= self._there:
            end(self._waiting.popleft()[1])

    def lost(self, why: str) -> None:
        """Nothing more is heard of them."""
        for _, spans in self._waiting:
            end(spans, why)
        self.__init__()


def _begin(name: str, kind: str, events: Iterable[tuple[str, bytes]]) -> Mapping[str, Any]:
    """One span for those that share what they bring, by that."""
    ids: dict[str, list[bytes]] = {}
    for brought, id in events:
        ids.setdefault(brought, []).append(id)
    begun = {
        brought: _spans.begin(
            name,
            kind,
            brought,
            {"messaging.message.id": of[0].hex(), "messaging.batch.message_count": len(of)},
        )
        for brought, of in ids.items()
    }
    return {brought: span for brought, span in begun.items() if span.is_recording()}


def _recorded(traceparent: str) -> bool:
    return bool(traceparent) and int(traceparent[-2:], 16) & 1 == 1
