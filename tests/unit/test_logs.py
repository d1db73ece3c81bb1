"""Log lines for machines and for people, and the way of a request's trace to the frame."""

from __future__ import annotations

import json
import logging
import sys

import pytest

from asgi_amqp import codec
from carillon import logs
from carillon.events import queue
from carillon.events.event import Event, pack, unpack
from carillon.fanout.forms import envelope
from carillon.relay.judge import judge

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def record(message: str, *arguments, **fields) -> logging.LogRecord:
    made = logging.LogRecord("carillon.relay", logging.WARNING, __file__, 1, message, arguments, None)
    made.__dict__.update(fields)
    return made


def test_a_line_for_machines_is_one_object():
    with logs.about("abc-1", TRACE):
        line = logs.JsonFormatter().format(record("%d wait:\n%s", 3, "\u2713", event="0a0b"))
    assert "\n" not in line
    said = json.loads(line)
    assert said.pop("time").endswith("+00:00")
    assert said == {
        "level": "WARNING", "logger": "carillon.relay", "message": "3 wait:\n\u2713",
        "request": "abc-1", "trace": TRACE, "event": "0a0b",
    }  # fmt: skip
    assert "request" not in json.loads(logs.JsonFormatter().format(record("outside")))


def test_a_traceback_is_in_it_and_has_an_end(monkeypatch):
    monkeypatch.setattr(logs, "MOST", 200)
    made = record("failed")
    try:
        raise ValueError("x" * 5000 + "the end")
    except ValueError:
        made.exc_info = sys.exc_info()
    said = json.loads(logs.JsonFormatter().format(made))
    assert said["exception"].endswith("the end")
    assert len(said["exception"]) == 200


def test_a_line_for_people_says_which_request_and_event():
    with logs.about("abc-1", ""):
        line = logs.TextFormatter().format(record("gone", event="0a0b"))
    assert line.endswith(" WARNING carillon.relay gone request=abc-1 event=0a0b")


@pytest.mark.parametrize(
    "nonsense",
    [
        "",
        "x",
        TRACE.upper(),
        TRACE + "0",
        TRACE.replace("00-", "ff-", 1),
        "00-" + "0" * 32 + TRACE[35:],
        TRACE + "\n",
    ],
)
def test_a_trace_of_nonsense_is_none(nonsense):
    with logs.about("a b\n", nonsense):
        assert (logs.request_id.get(), logs.trace.get()) == ("", "")
        assert "trace" not in queue.message("jobs-summary", "{}")


def test_a_trace_goes_from_the_request_to_the_frame():
    with logs.about("", TRACE):
        message = queue.message("jobs-summary", '{"a": 1}')
    body = codec.encode_batch([codec.encode_target("") + codec.encode(message)])
    (event,), letters = judge(body)
    assert letters == []
    (read,) = unpack(pack([event], 7)).events
    frame = json.loads(envelope(read, "e"))
    assert frame == {"position": "e:7", "group": "jobs-summary", "trace": TRACE, "event": {"a": 1}}


def test_what_is_on_the_queue_already_cannot_bring_nonsense_into_a_frame():
    message = {**queue.message("jobs-summary", "{}"), "trace": '", "event": {}, "x": "'}
    (event,), _ = judge(codec.encode_batch([codec.encode_target("") + codec.encode(message)]))
    assert event.trace == ""


def test_without_a_trace_nothing_of_it_is_sent():
    event = Event(b"jobs-summary", b"{}", None, b"i" * 16, 1)
    assert b"trace" not in envelope(event, "e")
    (read,) = unpack(pack([event], 7)).events
    assert (read.trace, read.stamp) == ("", 1)


def test_a_request_s_own_words_are_in_its_lines_alone(client):
    seen = []
    with logs.about("outer", TRACE):
        seen.append(client.get("/api/v2/ping/", headers={"X-Request-ID": "inner"}).status_code)
        assert (logs.request_id.get(), logs.trace.get()) == ("outer", TRACE)
    assert seen == [200]
