"""A collector for spans (OTLP over HTTP) of the standard library, as bad as one asks for."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class Span(NamedTuple):
    service: str
    name: str
    trace: str
    id: str
    parent: str
    attributes: dict[str, Any]
    begun: int
    ended: int
    failed: bool


class Collector:
    """`how`: "takes", "refuses" (503), or "hangs" (it answers nothing until it is told otherwise)."""

    def __init__(self, host: str) -> None:
        self.how = "takes"
        self.spans: list[Span] = []
        self.asked = 0
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.asked += 1
                while collector.how == "hangs":
                    time.sleep(0.05)
                if collector.how == "takes":
                    collector.spans += read(body)
                self.send_response(200 if collector.how == "takes" else 503)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *about: object) -> None:
                pass

        self.server = ThreadingHTTPServer((host, 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://{host}:{self.server.server_port}/v1/traces"

    def of(self, trace: str) -> dict[tuple[str, str], Span]:
        """The spans of a trace, by service and name."""
        return {(span.service, span.name): span for span in self.spans if span.trace == trace}


def read(body: bytes) -> list[Span]:
    found = []
    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        about = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
        for scope in resource.scope_spans:
            for span in scope.spans:
                attributes = {
                    pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in span.attributes
                }
                found.append(
                    Span(
                        about["service.name"], span.name, span.trace_id.hex(), span.span_id.hex(),
                        span.parent_span_id.hex(), attributes, span.start_time_unix_nano,
                        span.end_time_unix_nano, span.status.code == 2,
                    )
                )  # fmt: skip
    return found


@contextmanager
def collecting(host: str = "127.0.0.1") -> Iterator[Collector]:
    collector = Collector(host)
    threading.Thread(target=collector.server.serve_forever, daemon=True).start()
    try:
        yield collector
    finally:
        collector.how = "refuses"
        collector.server.shutdown()
        collector.server.server_close()
