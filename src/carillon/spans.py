"""Spans of OpenTelemetry and their way to a collector (OTLP over HTTP). Imported where TRACES_ENDPOINT is
set, and nowhere else: `carillon.tracing`.

A thread of its own sends them. What waits for it is bounded, and what is too much, or what the collector does
not take, is dropped and counted.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections import deque
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from carillon import __version__
from carillon.metrics.names import SPANS

logger = logging.getLogger(__name__)

WAITING, AT_ONCE = 4096, 512
"""Spans that wait to be sent, and that are sent in one request."""

INTERVAL = 1.0
"""Seconds between two requests, if less than that waits."""

SECONDS = 5.0
"""That a request may take, with its retries."""

GOODBYE = 0.5
"""Seconds that a process which ends gives to what waits."""


class Sender(SpanProcessor):
    """Sends what has ended, from a thread."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._well = True
        self._waiting: deque[ReadableSpan] = deque()
        self._wake = threading.Event()
        self._stopped = False

    def begin(self) -> None:
        """Also after a fork: the thread is the parent's, and so is what waits."""
        self._waiting, self._wake = deque(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="carillon spans", daemon=True)
        self._thread.start()

    def on_end(self, span: ReadableSpan) -> None:
        waiting = self._waiting
        if len(waiting) >= WAITING:
            SPANS.labels("full").inc()
            return
        waiting.append(span)
        if len(waiting) >= AT_ONCE:
            self._wake.set()

    def stop(self) -> None:
        self._stopped = True
        self._wake.set()
        self._thread.join(GOODBYE)

    def _run(self) -> None:
        while not self._stopped:
            self._wake.wait(INTERVAL)
            self._wake.clear()
            while self._waiting and self._send([self._waiting.popleft() for _ in self._next()]):
                pass

    def _next(self) -> range:
        return range(min(len(self._waiting), AT_ONCE))

    def _send(self, spans: list[ReadableSpan]) -> bool:
        try:
            taken, why = self._exporter.export(spans) is SpanExportResult.SUCCESS, "it takes none"
        except Exception as error:
            taken, why = False, type(error).__name__
        if taken != self._well:
            if taken:
                logger.warning("Spans are sent again")
            else:
                logger.warning("Spans cannot be sent: %s. They are dropped, and events go on", why)
        self._well = taken
        SPANS.labels("sent" if taken else "failed").inc(len(spans))  # the last: who sees it has been told why
        return taken


_sender: Sender | None = None
_tracer: trace.Tracer


def start(endpoint: str, ratio: float, process: str) -> None:
    """Send spans to the endpoint; of the traces that begin here so many in one."""
    global _sender, _tracer
    if _sender is not None:
        return
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # it says each failure; we say the first
    _sender = Sender(OTLPSpanExporter(endpoint=endpoint, timeout=SECONDS))
    about = {"service.name": f"carillon-{process}", "service.version": __version__}
    provider = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(ratio)), resource=Resource.create(about), shutdown_on_exit=False
    )
    provider.add_span_processor(_sender)
    # What a project instruments itself joins these traces.
    trace.set_tracer_provider(provider)
    _tracer = provider.get_tracer("carillon", __version__)
    _sender.begin()
    os.register_at_fork(after_in_child=_sender.begin)
    atexit.register(_sender.stop)


def begin(name: str, kind: str, parent: str, attributes: Mapping[str, Any]) -> Span:
    """A span behind that `traceparent`, or of a new trace."""
    context = None
    if parent:
        _, trace_id, span_id, flags = parent.split("-")
        before = SpanContext(int(trace_id, 16), int(span_id, 16), True, TraceFlags(int(flags, 16)))
        context = trace.set_span_in_context(NonRecordingSpan(before))
    return _tracer.start_span(name, context, SpanKind[kind], attributes)


def traceparent(span: Span) -> str:
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def failed(span: Span, why: str) -> None:
    span.set_status(Status(StatusCode.ERROR, why))


def around(span: Span) -> AbstractContextManager[Span]:
    """The span is the current one inside, and ends there."""
    return trace.use_span(span, end_on_exit=True)
