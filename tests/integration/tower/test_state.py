"""State and events are two views of one thing: what the API showed at position P, with the events after P
applied, is what the API shows now. Whatever changes, however many writers interleave, and wherever the reader
was cut off meanwhile.
"""

from __future__ import annotations

import json
import os
import socket as sockets
import ssl
import threading
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.tls import for_threads

pytestmark = pytest.mark.stack

EXAMPLES = int(os.environ.get("CARILLON_STATE_EXAMPLES", "8"))
WAIT = 30  # seconds for a frame that must come

KINDS = ("job", "inventory_update", "workflow_job", "node")
STATUSES = ("pending", "waiting", "running", "successful", "failed", "error")
which = st.integers(0, 7)
changes = st.one_of(
    st.tuples(st.just("create"), st.sampled_from(KINDS)),
    st.tuples(st.just("status"), which, st.sampled_from(STATUSES)),
    st.tuples(st.just("cancel"), which),
    st.tuples(st.just("events"), which, st.integers(1, 4)),
    st.tuples(st.just("end"), which),
    st.tuples(st.just("new schedule")),
    st.tuples(st.just("change schedule"), which),
    st.tuples(st.just("delete schedule"), which),
)
writers = st.lists(st.lists(changes, min_size=3, max_size=8), min_size=2, max_size=4)
cuts = st.lists(st.integers(1, 12), max_size=4)


class Api:
    """The writers: they share what there is to change, and step on each other's toes."""

    def __init__(self, stack) -> None:
        self.stack = stack
        self.name = f"state {uuid.uuid4()}"
        self.lock = threading.Lock()
        self.jobs: list[dict[str, Any]] = []
        self.schedules: list[int] = []
        self.counter = 0
        self.last_job = 0
        self.ends: list[tuple[float, int, int]] = []

    def call(self, method: str, path: str, body: Any = None, allowed: tuple[int, ...] = ()) -> Any:
        answer = self.stack.api(method, path, body)
        assert answer.status_code < 300 or answer.status_code in allowed, answer.text
        return answer

    def write(self, changes: list[tuple]) -> None:
        for change in changes:
            getattr(self, change[0].replace(" ", "_"))(*change[1:])

    def next(self) -> int:
        with self.lock:
            self.counter += 1
            return self.counter

    def job(self, number: int, *kinds: str) -> dict[str, Any] | None:
        jobs = [job for job in list(self.jobs) if not kinds or job["kind"] in kinds]
        return jobs[number % len(jobs)] if jobs else None

    def create(self, kind: str) -> None:
        body: dict[str, Any] = {"name": self.name, "kind": "job" if kind == "node" else kind}
        if kind == "inventory_update":
            body["resource"] = uuid.uuid4().int % 10**9 + 1
        if kind == "node" and (workflow := self.job(0, "workflow_job")):
            body["workflow_job"] = workflow["id"]
        self.jobs.append(self.call("POST", "/jobs/", body).json())

    def last_word(self) -> None:
        """A change that is told of behind all that were answered before. By the outbox, as they were: what is
        published at once waits for nothing, and may be heard before them."""
        self.create("job")
        self.last_job = self.jobs[-1]["id"]
        self.status(-1, "pending")  # a reader may have heard of the job before its id was known here

    def status(self, number: int, status: str) -> None:
        if job := self.job(number):
            self.call("PATCH", f"/jobs/{job['id']}/", {"status": status}, (409,))

    def cancel(self, number: int) -> None:
        if job := self.job(number):
            self.call("POST", f"/jobs/{job['id']}/cancel/", None, (409,))

    def events(self, number: int, count: int) -> None:
        if job := self.job(number, "job", "inventory_update"):
            body = [
                {"counter": self.next(), "event": "verbose", "stdout": f"line {uuid.uuid4()}\n"}
                for _ in range(count)
            ]
            self.call("POST", f"/jobs/{job['id']}/events/", body)

    def end(self, number: int) -> None:
        if job := self.job(number, "job", "inventory_update"):
            final, begun = self.next(), time.monotonic()
            self.call("POST", f"/jobs/{job['id']}/events/", {"event": "EOF", "final_counter": final})
            self.ends.append((begun, job["id"], final))

    def new_schedule(self) -> None:
        self.schedules.append(self.call("POST", "/schedules/", {"name": self.name}).json()["id"])

    def change_schedule(self, number: int) -> None:
        if schedules := list(self.schedules):
            body = {"rrule": str(uuid.uuid4()), "enabled": bool(self.next() % 2)}
            self.call("PATCH", f"/schedules/{schedules[number % len(schedules)]}/", body, (404,))

    def delete_schedule(self, number: int) -> None:
        if schedules := list(self.schedules):
            self.call("DELETE", f"/schedules/{schedules[number % len(schedules)]}/", None, (404,))


EVENT_KEYS = ("id", "counter", "event", "uuid", "stdout", "event_data", "failed", "changed", "url")


def moment(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


class State:
    """What a client knows: from the API, and then from events."""

    def __init__(self) -> None:
        self.jobs: dict[int, tuple] = {}
        self.nodes: dict[int, tuple] = {}
        self.inventories: dict[int, str] = {}
        self.events: dict[int, dict[int, tuple]] = {}
        self.schedules: dict[int, tuple] = {}

    @classmethod
    def read(cls, api: Api) -> tuple[State, str, dict[int, str]]:
        """The state, a position that it includes, and the group that tells of each job's events."""
        state, position, groups = cls(), None, {}

        def pages(path: str) -> Any:
            nonlocal position
            number = 1
            while True:
                answer = api.call("GET", f"{path}page_size=200&page={number}")
                # The first one's: whatever was read later includes it, too.
                position = position or answer.headers["X-Carillon-Position"]
                yield from answer.json()["results"]
                if answer.json()["next"] is None:
                    return
                number += 1

        jobs = list(pages(f"/jobs/?search={api.name.replace(' ', '%20')}&order_by=id&"))
        for job in jobs:
            state.jobs[job["id"]] = (job["status"], moment(job["finished"]))
            groups[job["id"]] = f"{job['event_family']}-{job['id']}"
            if job["workflow_job"]:
                state.nodes[job["id"]] = (job["workflow_job"], job["status"])
            if job["kind"] == "inventory_update":
                state.inventories[job["resource"]] = job["status"]
            state.events[job["id"]] = {
                row["counter"]: tuple(row[key] for key in EVENT_KEYS)
                for row in pages(f"/jobs/{job['id']}/events/?")
            }
        for schedule in pages("/schedules/?"):
            if schedule["name"] == api.name:
                state.schedules[schedule["id"]] = cls.schedule(schedule)
        return state, position, groups

    @staticmethod
    def schedule(row: dict[str, Any]) -> tuple:
        return row["rrule"], row["enabled"], row["modified"]

    def shown(self) -> dict[str, Any]:
        return {**vars(self), "events": {job: rows for job, rows in self.events.items() if rows}}


class Reader:
    """A client of version 2 that looks once and lives on events from then on."""

    def __init__(self, api: Api, cuts: list[int]) -> None:
        self.api = api
        self.cuts = list(cuts)
        self.summaries: Counter = Counter()
        self.state, self.base, groups = State.read(api)
        self.begun = time.monotonic()
        self.since = self.base
        self.groups = {
            "jobs-status_changed",
            "jobs-summary",
            "schedules-changed",
            "inventories-status_changed",
        }
        self.groups |= set(groups.values())
        self.last: dict[str, int] = {}  # of each group, the number of the last event
        self.waiting = 0  # for answers to messages with `since`
        self.last_word = False

    def wanted(self) -> str:
        groups: dict[str, list[str]] = {}
        for group in sorted(self.groups):
            family, _, key = group.partition("-")
            groups.setdefault(family, []).append(key)
        return json.dumps({"groups": groups, "since": self.since})

    def run(self) -> None:
        """Until the last word has come, over as many connections as there are cuts."""
        while not (self.last_word and not self.waiting):
            self.waiting = 0
            stack = self.api.stack
            with connect(
                f"{stack.url.replace('http', 'ws', 1)}/websocket/", proxy=None, max_queue=None,
                ssl=for_threads(ssl.create_default_context(cafile=stack.ca)), subprotocols=["carillon.v2"],
                additional_headers={"Authorization": f"Bearer {stack.token}"},
            ) as raw:  # fmt: skip
                assert json.loads(raw.recv(WAIT))["accept"] is True
                self.ask(raw, self.since)
                with suppress(ConnectionClosed):
                    self.read(raw)

    def ask(self, raw, since: str) -> None:
        self.since = since
        self.waiting += 1
        raw.send(self.wanted())

    def read(self, raw) -> None:
        left = self.cuts.pop(0) if self.cuts else None
        here: dict[str, int] = {}
        while not (self.last_word and not self.waiting):
            frame = json.loads(raw.recv(WAIT))
            if "recovered" in frame:
                assert frame["recovered"] is True, frame
                self.waiting -= 1
                if not self.waiting:
                    self.since = frame["position"]
            elif "event" in frame:
                group, number = frame["group"], int(frame["position"].partition(":")[2])
                assert number > here.get(group, 0), f"{frame} is out of order or a double"
                here[group] = number
                if number > self.last.get(group, 0):
                    self.last[group] = number
                    self.apply(raw, group, frame["event"])
                if not self.waiting:
                    self.since = frame["position"]
            if left is not None and (left := left - 1) <= 0:
                raw.socket.shutdown(sockets.SHUT_RDWR)
                return

    def apply(self, raw, group: str, event: dict[str, Any]) -> None:
        state = self.state
        match event:
            case {"group_name": "jobs", "status": status, "unified_job_id": job}:
                state.jobs[job] = (status, moment(event.get("finished")))
                self.last_word = self.last_word or (job == self.api.last_job and status == "pending")
                family = "workflow" if event["type"] == "workflow_job" else event["type"]
                if (events := f"{family}_events-{job}") not in self.groups:
                    # A new job: its past, too, from where this client began.
                    self.groups.add(events)
                    self.ask(raw, self.base)
            case {"group_name": "jobs", "final_counter": final, "unified_job_id": job}:
                self.summaries[job, final] += 1
            case {"group_name": "workflow_events", "unified_job_id": job, "status": status}:
                state.nodes[job] = (event["workflow_job_id"], status)
            case {"group_name": "inventories", "inventory_id": inventory, "status": status}:
                state.inventories[inventory] = status
            case {"group_name": "schedules", "id": schedule}:
                answer = self.api.call("GET", f"/schedules/{schedule}/", None, (404,))
                if answer.status_code == 404:
                    state.schedules.pop(schedule, None)
                elif (row := answer.json())["name"] == self.api.name:  # not an earlier example's
                    state.schedules[schedule] = State.schedule(row)
            case {"counter": counter}:
                rows = state.events.setdefault(int(group.partition("-")[2]), {})
                rows[counter] = tuple(event[key] for key in EVENT_KEYS)
            case _:
                raise AssertionError(f"an event that nobody expects: {event}")


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    # What interleaves is never the same twice: there is nothing to shrink.
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(before=st.lists(changes, max_size=6), writers=writers, cuts=cuts)
def test_state_and_then_events_are_the_state_now(stack, before, writers, cuts):
    api = Api(stack)
    api.write([("create", "job"), ("create", "workflow_job"), ("new schedule",), *before])

    def write_all() -> None:
        with ThreadPoolExecutor(len(writers)) as pool:
            for done in [pool.submit(api.write, changes) for changes in writers]:
                done.result()
        api.last_word()

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write_all)
        reader = Reader(api, cuts)
        try:
            reader.run()
        finally:
            writing.result()  # a writer that failed says why no last word came
    now, _, _ = State.read(api)
    mine = set(now.jobs)
    reader.state.jobs = {job: what for job, what in reader.state.jobs.items() if job in mine}
    reader.state.nodes = {job: what for job, what in reader.state.nodes.items() if job in mine}
    reader.state.events = {job: rows for job, rows in reader.state.events.items() if job in mine}
    reader.state.inventories = {
        number: status for number, status in reader.state.inventories.items() if number in now.inventories
    }
    note(f"position {reader.base}, {len(mine)} jobs, connections cut after {cuts} frames")
    assert reader.state.shown() == now.shown()
    posted = Counter((job, final) for _, job, final in api.ends)
    late = Counter((job, final) for begun, job, final in api.ends if begun > reader.begun)
    told = Counter({key: count for key, count in reader.summaries.items() if key[0] in mine})
    assert not late - told, "a summary did not come"
    assert not told - posted, "a summary came twice"


@pytest.mark.skipif(not os.environ.get("CARILLON_CHAOS_WHOLE"), reason="a long one: `make chaos`")
def test_while_the_broker_is_killed(stack, container):
    """What the broker does not take waits in the outbox; what comes later does not overtake it."""
    api = Api(stack)
    for _ in range(12):
        api.create("job")
    api.create("inventory_update")
    api.new_schedule()
    reader = Reader(api, [9])
    over = threading.Event()

    def live(number: int) -> None:
        """Each takes jobs of its own through their lives, and writes events and schedules in between."""
        for place in range(number, len(api.jobs), 3):
            for status in ("pending", "waiting", "running", "successful"):
                api.status(place, status)
                api.events(place, 2)
                api.change_schedule(number)
                over.wait(0.3)

    broker = container("rabbitmq")
    with ThreadPoolExecutor(4) as pool:
        lives = [pool.submit(live, number) for number in range(3)]
        time.sleep(1)
        broker.kill()
        time.sleep(3)
        broker.start()
        broker.wait_until_healthy()
        for each in lives:
            each.result()
        api.last_word()
        reader.run()
    now, _, _ = State.read(api)
    assert {job: reader.state.jobs[job] for job in now.jobs} == now.jobs
    assert {job: reader.state.events[job] for job in now.jobs if now.events[job]} == {
        job: rows for job, rows in now.events.items() if rows
    }
    assert reader.state.schedules == now.schedules


def test_two_who_change_one_job_at_once(stack):
    """The last word that is told of a job is the last that is true of it."""
    api = Api(stack)
    for _ in range(40):
        api.create("job")
    reader = Reader(api, [])

    def race(job: int) -> None:
        together = threading.Barrier(2)

        def change(method: str, path: str, body: Any) -> None:
            together.wait(WAIT)
            api.call(method, path, body, (409,))

        with ThreadPoolExecutor(2) as pair:
            changes = (
                pair.submit(change, "PATCH", f"/jobs/{job}/", {"status": "running"}),
                pair.submit(change, "POST", f"/jobs/{job}/cancel/", None),
            )
            for each in changes:
                each.result()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(race, [job["id"] for job in api.jobs]))
    api.last_word()
    reader.run()
    now, _, _ = State.read(api)
    assert {job: reader.state.jobs[job] for job in now.jobs} == now.jobs
