"""Tower's own client, awxkit 24.6.1, unmodified, against the running stack."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from awxkit.api.client import Connection
from awxkit.ws import WSClient

pytestmark = pytest.mark.stack

WAIT = 20  # seconds

# It logs once more at the interpreter's exit, when pytest has closed what it would write to.
logging.getLogger("awxkit.ws").setLevel(logging.WARNING)


@pytest.fixture(scope="module")
def session(stack) -> Connection:
    connection = Connection(stack.url, verify=stack.ca)
    connection.login(stack.username, stack.password, **connection.get_session_requirements())
    return connection


@pytest.fixture
def client(stack) -> Iterator[Callable[..., WSClient]]:
    made = []

    def make(**options: Any) -> WSClient:
        ws = WSClient(hostname=stack.host, port=stack.port, secure=True, **options)
        made.append(ws)
        return ws.connect()

    yield make
    for ws in made:
        ws.close()


@pytest.fixture(params=["session", "url", "cookie"])
def connected(request, stack, session, client) -> WSClient:
    """A client by each way to come in that awxkit knows."""
    if request.param == "session":
        return client(session_id=session.session_id, csrftoken=session.session.cookies["csrftoken"])
    if request.param == "url":
        return client(ws_suffix=f"websocket/?token={stack.token}")
    return client(token=stack.token)


def until(ws: WSClient, wanted: Callable[[dict], bool]) -> list[dict]:
    """All frames up to the first one that is wanted."""
    frames = []
    deadline = time.monotonic() + WAIT
    while time.monotonic() < deadline:
        for frame in ws:
            frames.append(frame)
            if wanted(frame):
                return frames
        time.sleep(0.02)  # iterating awxkit's client does not wait
    raise AssertionError(f"the frame did not come; these did: {frames}")


def has(**expected: Any) -> Callable[[dict], bool]:
    return lambda frame: expected.items() <= frame.items()


def replied(frame: dict) -> bool:
    return "groups_current" in frame


def test_login(stack, session):
    assert session.session_id
    assert session.session_cookie_name == "awx_sessionid"
    me = session.get("/api/v2/me/").json()
    assert me["results"][0]["username"] == stack.username


def test_the_first_frame(stack, connected):
    user = stack.api("GET", "/me/").json()["results"][0]["id"]
    assert until(connected, lambda frame: True) == [{"accept": True, "user": user}]


def test_a_job_s_whole_life(stack, connected):
    job = stack.new_job(status="pending")
    connected.job_details(job["id"])
    assert until(connected, replied)[-1]["groups_current"] == sorted(
        ["jobs-status_changed", "jobs-summary", f"job_events-{job['id']}"]
    )
    stack.api("PATCH", f"/jobs/{job['id']}/", {"status": "running"})
    events = [{"counter": number, "event": "verbose", "stdout": f"line {number}"} for number in range(1, 101)]
    stack.post(f"/jobs/{job['id']}/events/", [*events, {"event": "EOF", "final_counter": 100}])
    stack.api("PATCH", f"/jobs/{job['id']}/", {"status": "successful"})
    frames = until(connected, has(unified_job_id=job["id"], status="successful"))
    assert any(has(unified_job_id=job["id"], status="running")(frame) for frame in frames)
    assert any(has(unified_job_id=job["id"], final_counter=100)(frame) for frame in frames)
    assert [frame["counter"] for frame in frames if frame.get("job") == job["id"]] == list(range(1, 101))


@pytest.mark.parametrize(
    ("helper", "kind"),
    [
        ("pending_job_stdout", "job"),
        ("pending_ad_hoc_stdout", "ad_hoc_command"),
        ("pending_project_update_stdout", "project_update"),
        ("pending_inventory_update_stdout", "inventory_update"),
        ("pending_system_job_events", "system_job"),
    ],
)
def test_the_pending_helpers(stack, client, helper, kind):
    """awxkit subscribes by itself to the events of the job that it hears is pending."""
    ws = client(token=stack.token)
    getattr(ws, helper)()
    until(ws, replied)
    job = stack.new_job(kind=kind, status="pending", resource=1)
    family = job["event_family"]
    assert f"{family}-{job['id']}" in until(ws, replied)[-1]["groups_joined"]
    stack.post(f"/jobs/{job['id']}/events/", {"counter": 1, "event": "verbose", "stdout": "hello"})
    assert until(ws, has(group_name=family))[-1]["stdout"] == "hello"


def test_workflow_events(stack, connected):
    workflow = stack.new_job(kind="workflow_job")
    connected.workflow_events(workflow["id"])
    until(connected, replied)
    node = stack.new_job(status="pending", workflow_job=workflow["id"])
    frame = until(connected, has(group_name="workflow_events"))[-1]
    assert (frame["workflow_job_id"], frame["unified_job_id"]) == (workflow["id"], node["id"])


def test_schedules(stack, connected):
    connected.jobs_list()
    until(connected, replied)
    schedule = stack.post("/schedules/", {"name": "nightly"})
    until(connected, has(group_name="schedules", id=schedule["id"]))
    stack.api("DELETE", f"/schedules/{schedule['id']}/")


def test_unsubscribe_waits_for_the_reply(stack, connected):
    connected.status_changes()
    until(connected, replied)
    connected.unsubscribe(wait=True, timeout=WAIT)
    unheard = stack.new_job(status="pending")
    marker = stack.new_job(kind="workflow_job")
    connected.workflow_events(marker["id"])
    group = f"workflow_events-{marker['id']}"
    frames = until(connected, lambda frame: group in frame.get("groups_current", ()))
    # By its id: what an earlier test did may still be on its way.
    assert not [frame for frame in frames if frame.get("unified_job_id") == unheard["id"]]


def test_a_wrong_csrftoken(session, client):
    ws = client(session_id=session.session_id, csrftoken="x" * 32)
    ws._csrftoken = ws.csrftoken = None
    ws.subscribe(jobs=["status_changed"])
    until(ws, has(error="access denied to channel"))


def test_a_wrong_token_is_told_why(client):
    ws = client(token="nonsense")
    assert until(ws, lambda frame: True) == [
        {"accept": False, "user": None, "close": True, "error": "invalid auth token"}
    ]
