"""The metrics of a running stack: one address for all, numbers that add up, and a disk that is full."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from datetime import datetime

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.infra.stack import docker, wait

FILLER = "/run/carillon/metrics/filler"


def scrape(stack, token: str | None = None) -> dict:
    """Sums of samples by name, and by name and process."""
    request = urllib.request.Request(
        stack.values["CARILLON_URL"] + "/api/v2/metrics/",
        headers={"Authorization": f"Bearer {token or scraper(stack)}", "Accept": "text/plain"},
    )
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=stack.tls())
    )
    with opener.open(request, timeout=15) as answer:
        text = answer.read().decode()
    sums: dict = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            for key in (sample.name, (sample.name, sample.labels.get("process"))):
                sums[key] = sums.get(key, 0.0) + sample.value
    return sums


_tokens: dict = {}


def scraper(stack) -> str:
    if stack not in _tokens:
        _tokens[stack] = docker(
            *("exec", stack.container("uwsgi"), "carillon", "manage", "create_token", "--username"),
            *("admin", "--scope", "metrics", "--days", "1"),
        ).strip()
    return _tokens[stack]


def test_every_process_is_behind_the_one_address(stack):
    found = wait("every kind of process is up", lambda: _all_up(stack), 20)
    for process in ("uwsgi", "daphne", "runworker"):
        assert found["process_resident_memory_bytes", process] > 2**20
    assert ("carillon_relay_active", "uwsgi") not in found
    assert found["carillon_relay_active"] == 1
    assert found["carillon_fanout_level"] == 1


def _all_up(stack) -> dict | None:
    found = scrape(stack)
    here = all(found.get(("carillon_process_up", name)) for name in ("uwsgi", "daphne", "runworker"))
    return found if here and found.get("carillon_relay_active") else None


@pytest.mark.parametrize("scope", [None, "read"])
def test_only_for_whom_it_is(stack, scope):
    token = "nonsense" if scope is None else stack.values["CARILLON_TOKEN"]
    with pytest.raises(urllib.error.HTTPError) as refused:
        scrape(stack, token)
    assert refused.value.code == (401 if scope is None else 403)


COUNTED = ("carillon_events_emitted_total", "carillon_relay_events_total", "carillon_fanout_events_total")


def settled(stack, condition) -> dict:
    """What is scraped once `condition` holds."""
    return wait("the numbers agree", lambda: (found := scrape(stack)) and condition(found) and found, 20, 0.3)


def still(stack) -> dict:
    """What is scraped once nothing more is counted: who comes and goes elsewhere is announced, too."""
    last: list[dict] = [{}]

    def unchanged() -> dict | None:
        before, last[0] = last[0], scrape(stack)
        return last[0] if all(before.get(name) == last[0][name] for name in COUNTED) else None

    return wait("nothing is counted any more", unchanged, 30, 2.5)  # more than two snapshots apart


def test_what_is_emitted_is_relayed_and_delivered(stack):
    events = 40
    before = still(stack)

    def grown(found: dict, name: str) -> float:
        return found[name] - before[name]

    with stack.websocket() as socket:
        socket.recv(10)
        socket.send(json.dumps({"groups": {"schedules": ["changed"]}}))
        socket.recv(10)
        body = [{"group": "schedules-changed", "payload": {"n": n}} for n in range(events)]
        stack.api("/api/v2/notifications/", body)
        heard = [json.loads(socket.recv(10)) for _ in range(events)]
        assert [event["n"] for event in heard] == list(range(events))
        after = settled(
            stack,
            lambda found: (
                len({grown(found, name) for name in COUNTED}) == 1 and grown(found, COUNTED[0]) >= events
            ),
        )
        assert grown(after, "carillon_fanout_deliveries_total") >= events
        assert after["asgi_amqp_confirmed_total", "uwsgi"] >= events
        assert grown(after, "carillon_event_age_seconds_count") > 0
        assert settled(
            stack, lambda found: found["carillon_relay_position"] == found["carillon_fanout_position"]
        )
        assert after["carillon_sockets"] >= 1
    settled(
        stack,
        lambda found: (
            grown(found, "carillon_sockets_closed_total") > 0
            and found["carillon_sockets"] < after["carillon_sockets"]
        ),
    )


def test_a_full_disk_stops_no_event(stack):
    """The processes' real directory, full to the last byte."""
    runworker, since = stack.container("runworker"), str(int(time.time()))
    filled = subprocess.run(
        ["docker", "exec", runworker, "python3", "-c", f"open('{FILLER}', 'wb').write(bytes(2**26))"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    try:
        assert "No space left" in filled.stderr
        for service in ("daphne", "runworker", "uwsgi"):
            wait(
                f"{service} says so",
                lambda service=service: "Metrics cannot be written" in stack.logs(service, "--since", since),
                10,
            )
        assert stack.deliver()
    finally:
        docker("exec", runworker, "rm", FILLER)
    wait("it is well again", lambda: "are written to" in stack.logs("runworker", "--since", since), 10)
    assert stack.deliver()
    wait("every process is seen again", lambda: _all_up(stack), 20)


def explain(stack, what: str) -> tuple[int, str]:
    answer = subprocess.run(
        ["docker", "exec", stack.container("uwsgi"), "carillon", "explain", what],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    return answer.returncode, answer.stdout + answer.stderr


def test_one_event_is_explained_by_its_position_and_by_its_id(stack):
    id, trace = uuid.uuid4().hex, "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    with stack.websocket(subprotocols=["carillon.v2"]) as socket:
        socket.recv(10)
        socket.send(json.dumps({"groups": {"schedules": ["changed"]}}))
        socket.recv(10)
        request = urllib.request.Request(
            stack.values["CARILLON_URL"] + "/api/v2/notifications/",
            data=json.dumps({"group": "schedules-changed", "payload": {"a": 1}, "id": id}).encode(),
            headers={
                "Authorization": f"Bearer {stack.values['CARILLON_TOKEN']}",
                "Content-Type": "application/json",
                "traceparent": trace,
            },
        )
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=stack.tls())
        )
        with opener.open(request, timeout=15) as answer:
            assert answer.status == 202
        frame = json.loads(socket.recv(10))
        while "event" not in frame:
            frame = json.loads(socket.recv(10))
        assert frame["trace"] == trace
        wait("daphne's metrics have it", lambda: "has passed it" in explain(stack, frame["position"])[1], 20)
        for what in (frame["position"], id):
            code, said = explain(stack, what)
            assert code == 0, said
            for line in (
                f"position    {frame['position']}",
                f"id          {id}",
                "group       schedules-changed",
                "audience    everyone who subscribed",
                f"trace       {trace}",
                "the queue   taken off",
                "daphne 0    has passed it",
                "subscribed  admin (1)",
            ):
                assert line in said


LOAD = """
import time
from carillon.events import emit_channel_notification
until, count = time.monotonic() + 8, 0
while time.monotonic() < until:
    emit_channel_notification("schedules-changed", {"n": count})
    count += 1
print(count)
"""


def test_an_event_under_load_is_explained_hop_by_hop_with_its_times(stack):
    with stack.websocket(subprotocols=["carillon.v2"]) as socket:
        socket.recv(10)
        socket.send(json.dumps({"groups": {"schedules": ["changed"]}}))
        socket.recv(10)
        load = subprocess.Popen(
            ["docker", "exec", stack.container("uwsgi"), "carillon", "manage", "shell", "-c", LOAD],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            socket.recv(60)  # a Python has to start, on a machine that is busy
            while json.loads(socket.recv(20)).get("event", {}).get("n", 0) < 1000:
                pass
            before = time.time()
            frame = json.loads(socket.recv(10))
            heard = time.time()
            late = "daphne's metrics have it"
            wait(late, lambda: "has passed it at" in explain(stack, frame["position"])[1], 20)
            code, said = explain(stack, frame["position"])
        finally:
            emitted = int(load.communicate(timeout=30)[0].split()[-1])
        assert (code, emitted > 1500) == (0, True), (said, emitted)
    told = dict(line.split(None, 1) for line in said.splitlines())
    hops = [
        told["emitted"],
        told["relayed"],
        said[said.index("has passed it at") + len("has passed it at ") :],
    ]
    times = [datetime.fromisoformat(hop.split(",")[0].split()[0]).timestamp() for hop in hops]
    assert times == sorted(times)
    assert before - 20 < times[0]
    assert times[-1] < heard + 0.1


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("nonsense", "neither a position"),
        ("gone1:5", "the log of epoch gone1 is gone"),
        ("f" * 32, "there was never such an event"),
    ],
)
def test_what_cannot_be_explained_is_said(stack, what, words):
    code, said = explain(stack, what)
    assert code == 1
    assert words in said


def test_top_shows_the_same_numbers(stack):
    said = docker("exec", stack.container("uwsgi"), "carillon", "top", "--once", "--seconds", "0.5")
    assert "emitted" in said
    for process in ("uwsgi 0", "daphne 0", "runworker 0"):
        assert any(line.startswith(process) and " yes " in line for line in said.splitlines())
