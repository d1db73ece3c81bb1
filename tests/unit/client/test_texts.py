"""Words for people, the order of a job's output, and where Carillon is."""

import pytest

from carillon.client.endpoint import endpoint, from_environment
from carillon.client.errors import ConfigurationError
from carillon.client.failures import connection_failure
from carillon.client.protocol import Event
from carillon.client.sequence import MAX_EARLY, Sequence, output_of
from carillon.client.words import describe


def words(**payload):
    return describe(Event(payload["group_name"], payload))


@pytest.mark.parametrize(
    ("payload", "line", "colour"),
    [
        ({"group_name": "jobs", "unified_job_id": 4, "status": "failed"}, "job 4 is failed", "red"),
        (
            {"group_name": "jobs", "unified_job_id": 4, "final_counter": 9},
            "job 4 has all its 9 events",
            "dim",
        ),
        ({"group_name": "schedules", "id": 2}, "schedule 2 changed", None),
        ({"group_name": "bells", "note": "c3"}, "bells: {'note': 'c3'}", None),
        (
            {
                "group_name": "workflow_events",
                "workflow_job_id": 3,
                "unified_job_id": 4,
                "status": "running",
            },
            "workflow 3: job 4 is running",
            "cyan",
        ),
        (
            {
                "group_name": "job_events",
                "job": 4,
                "counter": 7,
                "event": "runner_on_ok",
                "changed": True,
                "task": "Pour c3",
                "event_data": {"host": "here"},
            },
            "job 4 #7 here: changed: Pour c3",
            "yellow",
        ),
        (
            {
                "group_name": "job_events",
                "job": 4,
                "counter": 8,
                "event": "runner_item_on_failed",
                "task": "T",
                "event_data": {"host": "here", "item": "c4", "ignore_errors": True},
            },
            "job 4 #8 here: failed, ignored: T (item c4)",
            "cyan",
        ),
        (
            {
                "group_name": "job_events",
                "job": 4,
                "counter": 9,
                "event": "playbook_on_stats",
                "failed": False,
                "event_data": {"ok": {"a": 2, "b": 1}, "dark": {"c": 1}, "failures": {}},
            },
            "job 4 #9 recap: ok 3, unreachable 1",
            "green",
        ),
        # Odd shapes are shown, not raised.
        ({"group_name": "job_events", "event_data": None}, "job ? #? ?", None),
    ],
)
def test_an_event_in_words(payload, line, colour):
    assert words(**payload) == (line, colour)


def test_what_comes_over_the_wire_does_not_steer_the_terminal():
    line, _ = words(group_name="jobs", unified_job_id=4, status="\x1b]0;owned\x07run\x1b[2Jning\r\n\x9b5m")
    assert line == "job 4 is running  "


def event(counter):
    return {"counter": counter}


def test_events_come_out_in_order_and_once():
    sequence = Sequence()
    assert sequence.add([event(1), event(3)]) == [event(1)]
    assert sequence.has_gap
    assert sequence.add([event(3), event(1)]) == []
    assert sequence.add([event(2)]) == [event(2), event(3)]
    assert not sequence.has_gap
    assert sequence.add([{"counter": "9"}, {}]) == []


def test_a_gap_is_counted_when_given_up():
    sequence = Sequence()
    sequence.add([event(4), event(6)])
    assert sequence.skip() == (3, [event(4)])
    assert sequence.skip() == (1, [event(6)])
    assert sequence.skip() == (0, [])


def test_what_waits_behind_a_gap_is_bounded():
    sequence = Sequence()
    sequence.add([event(counter) for counter in range(2, MAX_EARLY + 500)])
    assert len(sequence.add([event(1)])) == MAX_EARLY + 1


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        ({"stdout": "a", "start_line": 3, "end_line": 4}, "a\n"),
        ({"stdout": "", "start_line": 3, "end_line": 4}, "\n"),
        ({"stdout": "a\n", "start_line": 0, "end_line": 2}, "a\n\n"),
        ({"stdout": "a\n", "start_line": 0, "end_line": 1}, "a\n"),
        ({"stdout": "", "start_line": 3, "end_line": 3}, ""),
        ({"stdout": "a"}, "a\n"),
        ({"stdout": None}, ""),
    ],
)
def test_output_is_whole_lines(payload, text):
    assert output_of(payload) == text


def test_the_address_of_the_socket():
    assert endpoint("https://tower.example/base/", "t").websocket_url == "wss://tower.example/base/websocket/"
    assert endpoint("http://localhost:8013", "t").websocket_url == "ws://localhost:8013/websocket/"


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({}, "CARILLON_URL is not set"),
        ({"CARILLON_URL": "ftp://x", "CARILLON_TOKEN": "t"}, "no address"),
        ({"CARILLON_URL": "https://a:b@x", "CARILLON_TOKEN": "t"}, "holds a password"),
        ({"CARILLON_URL": "https://x"}, "CARILLON_TOKEN is not set"),
        ({"CARILLON_URL": "https://x", "CARILLON_TOKEN": "a\nb"}, "no single line"),
        (
            {"CARILLON_URL": "https://x", "CARILLON_TOKEN_FILE": "/nonexistent"},
            "'/nonexistent': No such file",
        ),
        (
            {"CARILLON_URL": "https://x", "CARILLON_TOKEN": "t", "CARILLON_CA_CERT": "/nonexistent"},
            "CA certificates in '/nonexistent'",
        ),
    ],
)
def test_what_is_missing_is_said(environ, words):
    with pytest.raises(ConfigurationError, match=words):
        from_environment(environ)


def test_the_token_is_in_no_repr(tmp_path):
    file = tmp_path / "token"
    file.write_text("s3cret\n")
    where = from_environment({"CARILLON_URL": "http://x", "CARILLON_TOKEN": "other"}, token_file=str(file))
    assert where.token == "s3cret"
    assert "s3cret" not in repr(where)


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (ConnectionResetError(), "the other side closed it"),
        (EOFError(), "the other side closed it"),
        (ConnectionResetError(104, "Connection reset by peer"), "connection reset by peer"),
        (OSError(), "OSError"),
        (RuntimeError(""), "RuntimeError"),
    ],
)
def test_a_failed_connection_always_has_a_cause(error, cause):
    assert str(connection_failure(error, "http://there")) == f"no connection to http://there: {cause}"
