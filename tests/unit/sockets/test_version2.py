"""Version 2 of the wire protocol, and Server-Sent Events: positions, resumes, refresh, rights that change."""

from __future__ import annotations

import asyncio
import json

import pytest
from asgiref.testing import ApplicationCommunicator
from channels.db import database_sync_to_async

from carillon.accounts.models import ApiToken
from carillon.events import aemit_channel_notification, heads
from carillon.events.models import Head
from carillon.fanout.station import station
from carillon.sockets.application import application
from carillon.sockets.asgi_outlet import AsgiOutlet
from tests.unit.support.sockets import Client, pump
from tower.models import Job

pytestmark = pytest.mark.django_db(transaction=True)


class Client2(Client):
    """A client that asks for version 2."""

    def __init__(self, token: str) -> None:
        super().__init__(token=token)
        self.raw.scope["subprotocols"] = ["something", "carillon.v2"]

    async def open(self):
        accepted, subprotocol = await self.raw.connect(timeout=5)
        assert (accepted, subprotocol) == (True, "carillon.v2")
        return await self.frame()

    async def resume(self, groups, since):
        """The frames up to and with the one that says how it went; without the answer to `groups`."""
        frames = [await self.subscribe(groups, since=since)]
        while "recovered" not in frames[-1]:
            frames.append(await self.frame())
        return frames[1:]


async def client_of(people, user):
    client = Client2(await database_sync_to_async(people.token)(user))
    return client, await client.open()


async def emit(group, *numbers, **more):
    for number in numbers:
        await aemit_channel_notification(group, {"n": number}, **more)
    await pump()


async def test_events_carry_their_position(people):
    client, accepted = await client_of(people, people.ann)
    assert accepted == {"accept": True, "user": people.ann.pk, "position": "none:0"}
    await client.subscribe({"jobs": ["summary"]})
    await emit("jobs-summary", 1, 2)
    assert [await client.frame(), await client.frame()] == [
        {"position": "none:1", "group": "jobs-summary", "event": {"n": 1}},
        {"position": "none:2", "group": "jobs-summary", "event": {"n": 2}},
    ]


async def test_version_1_sees_nothing_of_it(people):
    client = Client(token=await database_sync_to_async(people.token)(people.ann))
    assert await client.open() == {"accept": True, "user": people.ann.pk}
    await client.subscribe({"jobs": ["summary"]}, since="none:0")
    await emit("jobs-summary", 1)
    assert await client.frame() == {"n": 1}


async def test_a_resume(people):
    client, _ = await client_of(people, people.ann)
    await emit("jobs-summary", 1)
    await emit("jobs-status_changed", 2)
    await emit("jobs-summary", 3, audience={"users": [people.carl.pk]})
    await emit("jobs-summary", 4)
    missed = await client.resume({"jobs": ["summary"]}, "none:0")
    assert [frame.get("event") for frame in missed] == [{"n": 1}, {"n": 4}, None]
    assert missed[-1] == {"recovered": True, "position": "none:4"}
    await emit("jobs-summary", 5)
    assert (await client.frame())["position"] == "none:5"


async def test_a_group_that_joins_is_replayed_and_one_that_stays_is_not(people):
    client, _ = await client_of(people, people.ann)
    await client.subscribe({"jobs": ["summary"]})
    await emit("jobs-summary", 1)
    await emit("jobs-status_changed", 2)
    assert (await client.frame())["event"] == {"n": 1}
    missed = await client.resume({"jobs": ["summary", "status_changed"]}, "none:0")
    assert [frame.get("event") for frame in missed] == [{"n": 2}, None]


@pytest.mark.parametrize(("since", "reason"), [("other:1", "epoch"), ("none:9999", "ahead")])
async def test_what_cannot_be_recovered_is_said(people, monkeypatch, since, reason):
    monkeypatch.setattr("carillon.fanout.cursor.AHEAD", 0.1)
    client, _ = await client_of(people, people.ann)
    await emit("jobs-summary", 1)
    assert await client.resume({"jobs": ["summary"]}, since) == [
        {"recovered": False, "position": "none:1", "reason": reason}
    ]
    await emit("jobs-summary", 2)
    assert (await client.frame())["event"] == {"n": 2}


async def test_a_resume_asks_again_who_may_hear(people):
    job = await Job.objects.acreate(owner=people.ann, team=people.team, name="x")
    group = f"job_events-{job.pk}"
    await emit(group, 1)
    await database_sync_to_async(people.team.members.remove)(people.ben)
    client, _ = await client_of(people, people.ben)
    assert "access denied" in (await client.subscribe({"job_events": [job.pk]}, since="none:0"))["error"]
    assert (await client.frame())["groups_current"] == []
    assert (await client.frame())["recovered"] is True
    assert await client.is_silent()


@pytest.mark.parametrize("since", ["", "x", 5, "none:-1", ["none:1"]])
async def test_a_since_that_is_none(people, since):
    client, _ = await client_of(people, people.ann)
    assert (await client.subscribe({"jobs": ["summary"]}, since=since))["error"].startswith("invalid message")


async def test_refresh(people):
    client, _ = await client_of(people, people.ann)
    old = await ApiToken.objects.filter(user=people.ann).aget()
    await client.say({"refresh": await database_sync_to_async(people.token)(people.ann)})
    assert await client.frame() == {"refreshed": True, "expires": None}
    await database_sync_to_async(old.delete)()
    await pump()
    assert await client.is_silent()
    for token in (await database_sync_to_async(people.token)(people.ben), "nonsense"):
        await client.say({"refresh": token})
        assert "refused" in (await client.frame())["error"]


async def test_a_process_that_lost_the_stream_says_so(people):
    client, _ = await client_of(people, people.ann)
    for heard in station().gaps:
        heard("retention")
    assert await client.frame() == {"recovered": False, "position": "none:0", "reason": "retention"}


async def test_what_follows_a_change_of_rights_is_judged_by_the_new_ones(people):
    """In one batch: an event, the change, another event."""
    job = await Job.objects.acreate(owner=people.ann, team=people.team, name="x")
    group = f"job_events-{job.pk}"
    ben, _ = await client_of(people, people.ben)
    ann, _ = await client_of(people, people.ann)
    for client in (ann, ben):
        await client.subscribe({"job_events": [job.pk]})
    await aemit_channel_notification(group, {"n": 1})
    job.team = None
    await job.asave()
    await aemit_channel_notification(group, {"n": 2})
    await pump()
    assert [(await ann.frame())["event"] for _ in range(2)] == [{"n": 1}, {"n": 2}]
    assert (await ben.frame())["event"] == {"n": 1}
    assert "access denied" in (await ben.frame())["error"]
    assert (await ben.frame())["groups_left"] == [group]
    assert await ben.is_silent()


async def test_a_job_that_moves_while_its_past_is_written(people, monkeypatch):
    """The group is not among the hub's yet: the change concerns the socket all the same."""
    job = await Job.objects.acreate(owner=people.ann, team=people.team, name="x")
    group = f"job_events-{job.pk}"
    await emit(group, 1)
    client, _ = await client_of(people, people.ben)
    asked = []

    def no_room(self):
        asked.append(self)
        return False

    monkeypatch.setattr(AsgiOutlet, "room", no_room)
    assert (await client.subscribe({"job_events": [job.pk]}, since="none:0"))["groups_joined"] == [group]
    while not asked:
        await asyncio.sleep(0)
    job.team = None
    await job.asave()
    await pump()
    assert "access denied" in (await client.frame())["error"]
    assert (await client.frame())["groups_left"] == [group]
    monkeypatch.undo()
    station().hub.feeder.ready(asked[0])
    assert (await client.frame())["recovered"] is True
    assert await client.is_silent()


@pytest.mark.parametrize("version", [1, 2])
async def test_a_reader_who_is_slower_than_the_events(people, version):
    """It falls behind, and gets everything once, in order."""
    if version == 2:
        client, _ = await client_of(people, people.ann)
    else:
        client = Client(token=await database_sync_to_async(people.token)(people.ann))
        await client.open()
    await client.subscribe({"jobs": ["summary"]})
    for start in range(0, 60, 20):
        for number in range(start, start + 20):
            await aemit_channel_notification("jobs-summary", {"n": number, "pad": "x" * 100_000})
        await pump()
    frames = [await client.frame() for _ in range(60)]
    assert [frame.get("event", frame)["n"] for frame in frames] == list(range(60))
    await emit("jobs-summary", 60)
    frame = await client.frame()
    assert frame.get("event", frame) == {"n": 60}


class Events:
    """A request for /events/."""

    def __init__(self, query: str, token: str | None, **headers: str) -> None:
        pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        if token is not None:
            pairs.append((b"authorization", f"Bearer {token}".encode()))
        self.raw = ApplicationCommunicator(
            application,
            {
                "type": "http",
                "method": "GET",
                "path": "/events/",
                "query_string": query.encode(),
                "headers": pairs,
            },
        )

    async def start(self):
        await self.raw.send_input({"type": "http.request", "body": b"", "more_body": False})
        return (await self.raw.receive_output(5))["status"]

    async def next(self):
        """(id, event, data) of the next event."""
        message = await self.raw.receive_output(5)
        fields = dict(line.split(": ", 1) for line in message["body"].decode().splitlines() if line)
        return fields.get("id"), fields.get("event"), json.loads(fields["data"])

    async def leave(self):
        await self.raw.send_input({"type": "http.disconnect"})
        await self.raw.wait(5)


async def test_server_sent_events(people):
    token = await database_sync_to_async(people.token)(people.ann)
    await emit("jobs-summary", 1, 2)
    stream = Events("groups=jobs:summary,status_changed&since=none:0", token, last_event_id="none:1")
    assert await stream.start() == 200
    assert await stream.next() == (None, "accept", {"user": people.ann.pk, "position": "none:2"})
    assert (await stream.next())[1] == "groups"
    assert await stream.next() == ("none:2", "jobs-summary", {"n": 2})
    assert await stream.next() == ("none:2", "recovered", {"position": "none:2"})
    await emit("jobs-status_changed", 3)
    assert await stream.next() == ("none:3", "jobs-status_changed", {"n": 3})
    await stream.leave()
    assert not station().hub.listeners()


async def test_a_stream_that_is_cut_before_its_first_event_misses_none(people):
    token = await database_sync_to_async(people.token)(people.ann)
    await emit("jobs-summary", 1)
    stream = Events("groups=jobs:summary", token)
    assert await stream.start() == 200
    at, name, data = await stream.next()
    assert (at, name, data["position"]) == ("none:1", "accept", "none:1")
    await stream.leave()
    await emit("jobs-summary", 2)
    stream = Events("groups=jobs:summary", token, last_event_id=at)  # as an EventSource comes back
    assert await stream.start() == 200
    assert [(await stream.next())[1] for _ in range(2)] == ["accept", "groups"]
    assert (await stream.next())[1:] == ("jobs-summary", {"n": 2})
    await stream.leave()


async def test_a_comment_moves_the_position_of_a_stream_that_is_level_alone(people, settings):
    settings.CARILLON = {**settings.CARILLON, "SSE_COMMENT_SECONDS": 0.05}
    stream = Events("groups=jobs:summary", await database_sync_to_async(people.token)(people.ann))
    assert await stream.start() == 200
    for _ in range(2):
        await stream.next()
    assert (await stream.raw.receive_output(5))["body"] == b"id: none:0\n: still here\n\n"
    hub = station().hub
    (outlet,) = hub.listeners()
    outlet.hold(hub.position)
    await emit("jobs-summary", 1)
    found = [(await stream.raw.receive_output(5))["body"] for _ in range(3)]
    assert found[-1] == b": still here\n\n"
    assert b"id: none:1" not in b"".join(found)
    outlet.release()
    hub.feeder.ready(outlet)
    while (body := (await stream.raw.receive_output(5))["body"]) == b": still here\n\n":
        pass
    assert body.startswith(b"id: none:1\nevent: jobs-summary")
    await stream.leave()


async def test_a_stream_ends_with_its_token(people):
    token = await database_sync_to_async(people.token)(people.ann)
    stream = Events("groups=jobs:summary", token)
    assert await stream.start() == 200
    await stream.next()
    await stream.next()
    await database_sync_to_async(lambda: ApiToken.objects.get(user=people.ann).delete())()
    await pump()
    assert (await stream.next())[1] == "error_message"
    assert (await stream.raw.receive_output(5)) == {
        "type": "http.response.body",
        "body": b"",
        "more_body": False,
    }


@pytest.mark.parametrize(
    ("query", "status"),
    [("", 400), ("groups=", 400), ("groups=jobs:summary&since=x", 400), ("groups=jobs:summary", 401)],
)
async def test_streams_that_do_not_begin(db, query, status):
    assert await Events(query, None).start() == status


def test_answers_of_the_api_say_where_to_go_on(people):
    client = people.client(people.ann)
    assert "X-Carillon-Position" not in client.get("/api/v2/jobs/")
    Head.objects.create(epoch="abc", number=4096)
    heads.forget()
    assert client.get("/api/v2/jobs/")["X-Carillon-Position"] == "abc:4096"
    # Also below the path that a proxy in front shows us at.
    assert client.get("/api/v2/jobs/", SCRIPT_NAME="/bells")["X-Carillon-Position"] == "abc:4096"
    assert "X-Carillon-Position" not in client.get("/api/v2/ping/")
    assert "X-Carillon-Position" not in client.post("/api/v2/jobs/", {"name": "x"}, format="json")


def test_a_project_s_own_pages_say_so_below_the_paths_that_it_names(people, settings):
    client = people.client(people.ann)
    Head.objects.create(epoch="abc", number=4096)
    heads.forget()
    assert "X-Carillon-Position" not in client.get("/api/")
    settings.CARILLON = {**settings.CARILLON, "POSITION_PREFIXES": ("/api/",)}
    answer = client.get("/api/")
    assert answer["X-Carillon-Position"] == str(answer.wsgi_request.position) == "abc:4096"
