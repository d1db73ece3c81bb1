"""Through every real service: what a client that is not Tower's meets."""

from __future__ import annotations

import time
import uuid
from contextlib import suppress

import pytest
import requests
from websockets.exceptions import ConnectionClosed, InvalidStatus

pytestmark = pytest.mark.stack

GRACE = 12  # seconds from TERM to KILL, as in compose/dev.yml


@pytest.mark.parametrize("path", ["/websocket", "/websocket/"])
@pytest.mark.parametrize("plain", [False, True])
def test_both_paths_on_both_ports(stack, path, plain):
    with stack.socket(f"{path}?token={stack.token}", plain=plain) as socket:
        assert socket.frame()["accept"] is True
        assert socket.subscribe({"jobs": ["summary"]})["groups_joined"] == ["jobs-summary"]


def test_authorization_header(stack):
    with stack.socket("/websocket/", Authorization=f"Bearer {stack.token}") as socket:
        assert socket.frame()["accept"] is True


@pytest.mark.parametrize(
    ("headers", "code", "reason"),
    [
        ({}, 4401, "no credentials"),
        ({"Authorization": "Bearer nonsense"}, 4401, "invalid auth token"),
        ({"Cookie": "token=nonsense", "Origin": "https://evil.test"}, 4403, "forbidden Origin"),
    ],
)
def test_a_refusal_is_a_frame_and_a_close_code(stack, headers, code, reason):
    with stack.socket("/websocket/", **headers) as socket:
        frame = socket.frame()
        assert frame.pop("error").startswith(reason)
        assert frame == {"accept": False, "user": None, "close": True}
        assert socket.closed() == code


def test_too_much_nonsense(stack):
    with stack.socket() as socket:
        socket.frame()
        with suppress(ConnectionClosed):  # the server may have had enough before the last
            for _ in range(30):
                socket.raw.send("nonsense")
        assert socket.closed() == 1008


def test_a_frame_that_is_too_big(stack):
    with stack.socket() as socket:
        socket.frame()
        socket.raw.send("x" * 65536)
        assert socket.frame()["error"].startswith("invalid message")
        socket.raw.send("x" * 65537)
        assert socket.closed() == 1009


@pytest.mark.parametrize("path", ["/websocket", "/websocket/"])
def test_plain_http_is_426(stack, path):
    answer = requests.get(stack.url + path, verify=stack.ca, timeout=20)
    assert answer.status_code == 426
    assert answer.headers["Content-Type"].startswith("application/json")
    assert answer.json()


def test_another_path_is_no_websocket(stack):
    with pytest.raises(InvalidStatus), stack.socket("/websocketfoo"):
        pass


def test_hundreds_of_events_in_order(stack):
    job = stack.new_job()
    with stack.socket() as socket:
        socket.frame()
        socket.subscribe({"job_events": [job["id"]]})
        for start in range(1, 2001, 500):
            body = [{"counter": number, "event": "verbose"} for number in range(start, start + 500)]
            assert stack.post(f"/jobs/{job['id']}/events/", body) == {"created": 500, "duplicates": 0}
        assert [socket.frame()["counter"] for _ in range(2000)] == list(range(1, 2001))


def test_publishing(stack):
    job = stack.new_job()
    group = f"job_events-{job['id']}"
    with stack.socket() as socket:
        socket.frame()
        socket.subscribe({"job_events": [job["id"]]})
        assert stack.post("/notifications/", {"group": group, "payload": {"n": 0}}) == {"accepted": 1}
        body = [{"group": group, "payload": {"n": number}} for number in range(1, 101)]
        assert stack.post("/notifications/", body) == {"accepted": 100}
        assert [socket.frame()["n"] for _ in range(101)] == list(range(101))


def test_a_revoked_token_ends_its_sockets(stack):
    token = stack.post("/tokens/", {"description": "to be revoked", "scope": "read"})
    with stack.socket(f"/websocket/?token={token['token']}") as socket, stack.socket() as other:
        assert socket.frame()["accept"] is other.frame()["accept"] is True
        assert stack.api("DELETE", f"/tokens/{token['id']}/").status_code == 204
        assert socket.closed() == 4401
        assert other.subscribe({})["groups_current"] == []


def test_who_is_connected(stack):
    agent = f"test/{uuid.uuid4()}"
    with stack.socket() as watcher:
        watcher.frame()
        watcher.subscribe({"connections": ["changed"]})
        with stack.socket(User_Agent=agent) as socket:
            socket.frame()
            mine = []
            while not mine:  # others come and go as well: the word may be of them
                assert watcher.frame() == {"group_name": "connections", "changed": True}
                rows = stack.api("GET", "/connections/?page_size=200").json()["results"]
                mine = [row for row in rows if row["client"] == agent]
            (row,) = mine
            assert row["user"]["username"] == stack.username
            # The client's own address, not nginx's.
            assert row["address"]
    deadline = time.monotonic() + 20
    while any(
        row["client"] == agent for row in stack.api("GET", "/connections/?page_size=200").json()["results"]
    ):
        assert time.monotonic() < deadline, "a closed socket is still shown"
        time.sleep(0.1)


def publish(stack, group: str, numbers: range) -> None:
    body = [{"group": group, "payload": {"n": number}} for number in numbers]
    assert stack.post("/notifications/", body) == {"accepted": len(body)}


def heard(socket, count: int) -> list[int]:
    """Numbers as they come, without what is delivered once more, until `count` different ones are there."""
    numbers: list[int] = []
    while len(numbers) < count:
        number = socket.frame()["n"]
        if number not in numbers:
            numbers.append(number)
    return numbers


def test_runworker_killed_while_events_are_published_loses_nothing(stack, container):
    runworker = container("runworker")
    group = f"job_events-{stack.new_job()['id']}"
    with stack.socket() as socket:
        socket.frame()
        socket.subscribe({"job_events": [int(group.rpartition("-")[2])]})
        publish(stack, group, range(0, 200))
        runworker.kill()
        for start in range(200, 1000, 200):
            publish(stack, group, range(start, start + 200))
        runworker.start()
        runworker.wait_until_healthy()
        publish(stack, group, range(1000, 1200))
        assert sorted(heard(socket, 1200)) == list(range(1200))


def test_runworker_stops_at_once_on_term_and_goes_on_later(stack, container):
    runworker = container("runworker")
    group = f"job_events-{stack.new_job()['id']}"
    with stack.socket() as socket:
        socket.frame()
        socket.subscribe({"job_events": [int(group.rpartition("-")[2])]})
        publish(stack, group, range(0, 100))
        # The engine holds the clock: what has not drained by then is killed, and its exit code is 137.
        runworker.stop(timeout=GRACE)
        assert runworker.state()["ExitCode"] == 0
        publish(stack, group, range(100, 200))
        runworker.start()
        runworker.wait_until_healthy()
        assert heard(socket, 200) == list(range(200))


def test_daphne_that_stops_sends_its_clients_to_come_back(stack, container):
    daphne = container("daphne")
    with stack.socket() as socket, stack.socket() as other:
        assert socket.frame()["accept"] is other.frame()["accept"] is True
        daphne.stop(timeout=GRACE)
        assert daphne.state()["ExitCode"] == 0
        assert socket.closed() == other.closed() == 1012
