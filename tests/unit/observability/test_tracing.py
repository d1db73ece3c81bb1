"""Spans: the hops of an event are one trace, and a collector that is bad costs nothing but spans."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from carillon import logs, spans, tracing
from carillon.events import outbox, queue
from carillon.events.event import Event
from carillon.metrics.names import SPANS
from tests.collector import collecting

BROUGHT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture
def made(monkeypatch):
    """The spans that end, and tracing that is on."""

    def on(ratio: float = 1.0) -> InMemorySpanExporter:
        exporter = InMemorySpanExporter()
        provider = TracerProvider(sampler=ParentBased(TraceIdRatioBased(ratio)), shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        monkeypatch.setattr(spans, "_tracer", provider.get_tracer("test"), raising=False)
        monkeypatch.setattr(tracing, "_spans", spans)
        return exporter

    return on


class Broker:
    """What a channel layer's publisher is asked for."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.messages: list[dict] = []

    @property
    def publisher(self):
        return self

    def send_many(self, batch, timeout):
        self.messages += [dict(message) for _, message in batch]
        if self.error is not None:
            raise self.error


def emitted(monkeypatch, messages, error=None) -> list[dict]:
    broker = Broker(error)
    monkeypatch.setattr(queue, "get_channel_layer", lambda: broker)
    queue.publish(messages)
    return broker.messages


def event_of(message) -> Event:
    return Event(b"jobs-1", b"{}", None, message["id"], trace=message.get("trace", ""))


def by_name(exporter) -> dict:
    return {span.name: span for span in exporter.get_finished_spans()}


def test_the_hops_are_one_trace_each_the_child_of_the_one_before(made, monkeypatch):
    exporter = made()
    with logs.about("", BROUGHT), tracing.request("POST") as answered:
        (message,) = emitted(monkeypatch, [queue.message("jobs-1", "{}")])
        answered("notifications", 202)
    event = event_of(message)
    relayed = tracing.begin("relay", [event])
    tracing.end(relayed)
    tracing.end(tracing.begin("fan-out", [event]))
    found = by_name(exporter)
    names = ["POST notifications", "emit", "relay", "fan-out"]
    assert {span.context.trace_id for span in found.values()} == {int(BROUGHT.split("-")[1], 16)}
    parents = [found[name].parent.span_id for name in names]
    assert parents == [int(BROUGHT.split("-")[2], 16), *(found[name].context.span_id for name in names[:3])]
    assert event.trace == spans.traceparent(found["fan-out"])
    assert found["relay"].attributes["messaging.message.id"] == message["id"].hex()
    assert found["POST notifications"].attributes["http.response.status_code"] == 202


@pytest.mark.django_db
def test_what_waits_in_the_outbox_is_a_hop_of_its_own(made, monkeypatch):
    exporter = made()
    with logs.about("", BROUGHT):
        outbox.store([queue.message("jobs-1", "{}")])
    broker = Broker()
    monkeypatch.setattr(queue, "get_channel_layer", lambda: broker)
    assert outbox.send_some() == 1
    found = by_name(exporter)
    assert found["emit"].parent.span_id == found["outbox"].context.span_id
    assert found["outbox"].parent.span_id == int(BROUGHT.split("-")[2], 16)


def test_a_batch_of_several_requests_has_a_span_for_each(made, monkeypatch):
    exporter = made()
    other = BROUGHT.replace("4bf9", "5bf9")
    messages = []
    for trace in (BROUGHT, other, BROUGHT):
        with logs.about("", trace):
            messages.append(queue.message("jobs-1", "{}"))
    sent = emitted(monkeypatch, messages)
    counts = [span.attributes["messaging.batch.message_count"] for span in exporter.get_finished_spans()]
    assert sorted(counts) == [1, 2]
    assert sent[0]["trace"] == sent[2]["trace"] != sent[1]["trace"]
    assert [message["trace"][:36] for message in sent] == [BROUGHT[:36], other[:36], BROUGHT[:36]]


def test_what_the_broker_does_not_take_is_a_span_that_failed(made, monkeypatch):
    exporter = made()
    with pytest.raises(queue.NotificationsUnavailable):
        emitted(monkeypatch, [queue.message("jobs-1", "{}")], TimeoutError())
    assert by_name(exporter)["emit"].status.description == "TimeoutError"


@pytest.mark.parametrize(
    "header", ["", "nonsense", "00-" + "0" * 32 + "-00f067aa0ba902b7-01", "é" * 55, "ff" + BROUGHT[2:]]
)
def test_a_header_of_nonsense_begins_a_trace_of_our_own(made, monkeypatch, header):
    exporter = made()
    with logs.about("", header), tracing.request("GET"):
        (message,) = emitted(monkeypatch, [queue.message("jobs-1", "{}")])
    found = by_name(exporter)
    assert found["request"].parent is None
    assert message["trace"] == spans.traceparent(found["emit"])


@pytest.mark.parametrize("brought", [BROUGHT[:-2] + "00", ""])
def test_a_trace_that_nobody_records_costs_no_span(made, monkeypatch, brought):
    """It said so itself, or the ratio did, once for all its hops."""
    exporter = made(0.0)
    with logs.about("", brought), tracing.request("GET"):
        (message,) = emitted(monkeypatch, [queue.message("jobs-1", "{}")])
    assert int(message["trace"][-2:], 16) & 1 == 0
    tracing.end(tracing.begin("relay", [event_of(message)]))
    assert exporter.get_finished_spans() == ()


def test_off_it_changes_nothing(monkeypatch):
    with logs.about("", BROUGHT), tracing.request("GET") as answered:
        (message,) = emitted(monkeypatch, [queue.message("jobs-1", "{}")])
        answered("route", 200)
    event = event_of(message)
    assert list(tracing.begin("relay", [event])) == []
    assert message["trace"] == event.trace == BROUGHT


def test_off_nothing_of_opentelemetry_is_imported():
    program = (
        "import sys, django; django.setup()\n"
        "import carillon.asgi, carillon.wsgi, carillon.relay.runworker, carillon.server.server\n"
        "sys.exit(any(name.split('.')[0] == 'opentelemetry' for name in sys.modules))"
    )
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert (
        subprocess.run([sys.executable, "-c", program], env=environ, check=False, timeout=60).returncode == 0
    )


def test_spans_end_when_their_events_are_there():
    class One:
        ended = False

        def end(self):
            self.ended = True

    spans, underway = [One(), One(), One()], tracing.Underway()
    for span, events in zip(spans, (2, 0, 3), strict=True):  # the second were doubles alone
        underway.sent([span], events)
    for there, ended in ((1, [False] * 3), (1, [True, True, False]), (3, [True] * 3)):
        underway.there(there)
        assert [span.ended for span in spans] == ended


# A collector that is bad


def counted() -> dict[str, float]:
    return {how: SPANS.labels(how)._value.get() for how in ("sent", "full", "failed")}


def grown(before) -> dict[str, float]:
    return {how: value - before[how] for how, value in counted().items()}


def wait(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def sending(monkeypatch):
    monkeypatch.setattr(spans, "INTERVAL", 0.05)
    monkeypatch.setattr(spans, "WAITING", 100)
    monkeypatch.setattr(spans, "GOODBYE", 0.1)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    senders = []

    def to(url: str):
        sender = spans.Sender(OTLPSpanExporter(endpoint=url, timeout=0.5))
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(sender)
        sender.begin()
        senders.append(sender)
        return provider.get_tracer("test")

    yield to
    for sender in senders:
        sender.stop()


def test_all_that_ends_is_sent(sending):
    before = counted()
    with collecting() as collector:
        tracer = sending(collector.url)
        for _ in range(60):
            tracer.start_span("one").end()
        wait(lambda: len(collector.spans) == 60)
        wait(lambda: grown(before) == {"sent": 60, "full": 0, "failed": 0})


def test_why_spans_are_dropped_is_said_before_they_are_counted(monkeypatch):
    """Whoever sees the count finds the reason in the log."""
    before, told = counted(), []
    monkeypatch.setattr(spans.logger, "warning", lambda *words: told.append(grown(before)["failed"]))
    sender = spans.Sender(SimpleNamespace(export=lambda spans: None))
    assert not sender._send(["one", "two"])
    assert (told, grown(before)["failed"]) == ([0], 2)


@pytest.mark.parametrize("how", ["refuses", "hangs", "dead"])
def test_a_bad_collector_makes_nobody_wait_and_what_is_dropped_is_counted(sending, how, caplog):
    before = counted()
    with collecting() as collector:
        collector.how = how
        tracer = sending("http://127.0.0.1:1/v1/traces" if how == "dead" else collector.url)
        begun, slowest = time.perf_counter(), 0.0
        for _ in range(1000):
            at = time.perf_counter()
            tracer.start_span("one").end()
            slowest = max(slowest, time.perf_counter() - at)
        assert slowest < 0.2, "it waited for the collector"
        assert time.perf_counter() - begun < 1.0
        assert grown(before)["full"] > 0, "what waits has no bound"
        wait(lambda: sum(grown(before).values()) == 1000)
        assert grown(before)["sent"] == 0
        assert len([line for line in caplog.messages if "Spans cannot be sent" in line]) == 1
        if how != "dead":
            collector.how = "takes"
            tracer.start_span("again").end()
            wait(lambda: "again" in [span.name for span in collector.spans])
            wait(lambda: "Spans are sent again" in caplog.messages)
