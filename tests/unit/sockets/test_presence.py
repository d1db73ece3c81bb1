"""Who is connected, who watches what, and what becomes of those whose process died."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from channels.db import database_sync_to_async
from django.contrib.auth import get_user_model
from django.db import DatabaseError, InterfaceError

from carillon.sockets import presence
from carillon.sockets.models import Connection, Process, Watch
from carillon.sockets.presence import connected
from tests.unit.support.sockets import Client, pump
from tower.models import Job

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr(presence, "GATHER", 0)
    monkeypatch.setattr(presence, "AGAIN", 0.05)


@pytest.fixture
async def here() -> presence.Presence:
    return presence.presence()


@database_sync_to_async
def seen_by(user, group: str | None = None) -> list[str]:
    return sorted(connection.user.username for connection in connected(user, group))


async def until(expected: list[str], user, group: str | None = None) -> None:
    async with asyncio.timeout(5):
        while await seen_by(user, group) != expected:
            await asyncio.sleep(0.01)


async def client_of(people, user, **options) -> Client:
    client = Client(token=await database_sync_to_async(people.token)(user), **options)
    assert (await client.open())["accept"] is True
    return client


async def test_who_sees_whom(people):
    clients = [await client_of(people, user) for user in (people.ann, people.ben, people.carl)]
    await until(["ann", "ben", "carl"], people.root)
    assert await seen_by(people.ann) == ["ann", "ben"]
    assert await seen_by(people.carl) == ["carl"]
    for client in clients:
        await client.leave()
    assert await seen_by(people.root) == []
    assert not await Process.objects.aexists()


async def test_who_watches_a_job(people):
    job = await Job.objects.acreate(name="x", owner=people.ann, team=people.team)
    group = f"job_events-{job.pk}"
    ann, ben = await client_of(people, people.ann), await client_of(people, people.ben)
    await ann.subscribe({"job_events": [job.pk]})
    await until(["ann"], people.root, group)
    await ben.subscribe({"job_events": [job.pk]})
    await until(["ann", "ben"], people.root, group)
    await ann.subscribe({"jobs": ["summary"]})
    await until(["ben"], people.root, group)
    assert await seen_by(people.root, "jobs-summary") == ["ann"]
    await ben.leave()
    await until([], people.root, group)


async def test_who_may_ask_who_watches(people):
    job = await Job.objects.acreate(name="x", owner=people.ann)

    @database_sync_to_async
    def ask(user, group):
        return people.client(user).get(f"/api/v2/connections/?group={group}").status_code

    assert await ask(people.ann, f"job_events-{job.pk}") == 200
    assert await ask(people.carl, f"job_events-{job.pk}") == 403
    assert await ask(people.ann, "nonsense") == 400


async def test_a_socket_s_address_and_client(people):
    client = await client_of(people, people.ann, user_agent="x" * 300)
    await until(["ann"], people.ann)
    row = await connected(people.ann).afirst()
    assert (row.address, row.client) == ("192.0.2.7", "x" * 200)
    await client.leave()


async def test_a_process_that_died_is_not_shown_and_goes(people, here):
    ghost = await Process.objects.acreate()
    row = await Connection.objects.acreate(process=ghost, user=people.ann)
    await Watch.objects.acreate(connection=row, group="jobs-summary")
    await until(["ann"], people.ann)
    await Process.objects.filter(id=ghost.id).aupdate(heartbeat=ghost.heartbeat - timedelta(minutes=1))
    assert await seen_by(people.ann) == []
    entry = here.join(people.ben.pk, "", "")
    async with asyncio.timeout(5):
        while await Process.objects.filter(id=ghost.id).aexists():
            await asyncio.sleep(0.01)
    assert not await Watch.objects.aexists()
    await here.leave(entry)


async def test_one_that_was_taken_for_dead_writes_itself_anew(people, here, monkeypatch):
    monkeypatch.setattr(presence, "HEARTBEAT", 0.05)
    entries = [here.join(user.pk, "", "") for user in (people.ann, people.ben)]
    here.watch(entries[0], ["jobs-summary"])
    await until(["ann"], people.root, "jobs-summary")
    await database_sync_to_async(Process.objects.all().delete)()
    await until(["ann", "ben"], people.root)
    assert await seen_by(people.root, "jobs-summary") == ["ann"]
    for entry in entries:
        await here.leave(entry)


@pytest.mark.parametrize("error", [DatabaseError, InterfaceError])
async def test_a_database_that_was_away(people, here, monkeypatch, error):
    kept = here.join(people.ann.pk, "", "")
    await until(["ann"], people.root)

    async def away(self, *arguments):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(presence.Presence, "_store", away)
        came = here.join(people.ben.pk, "", "")
        await here.leave(kept)  # heard of, although nothing could be written
        assert await seen_by(people.root) == ["ann"]
    await until(["ben"], people.root)
    await here.leave(came)


async def test_a_user_who_is_deleted_does_not_stop_the_others(people, here):
    gone = await database_sync_to_async(get_user_model().objects.create_user)("gone")
    number = gone.pk
    await gone.adelete()
    entries = [here.join(number, "", ""), here.join(people.ann.pk, "", "")]
    await until(["ann"], people.root)
    for entry in entries:
        await here.leave(entry)


async def test_more_sockets_than_a_batch(people, here, monkeypatch):
    monkeypatch.setattr(presence, "BATCH", 7)
    entries = [here.join(people.ann.pk, "", "") for _ in range(50)]
    for entry in entries:
        here.watch(entry, ["jobs-summary", "schedules-changed"])
    await until(["ann"] * 50, people.root, "jobs-summary")
    await asyncio.gather(*(here.leave(entry) for entry in entries))
    assert not await Watch.objects.aexists()


async def test_it_is_told(people):
    client = await client_of(people, people.ann)
    assert (await client.subscribe({"connections": ["changed"]}))["groups_current"] == ["connections-changed"]
    await client_of(people, people.ben)
    frame = None
    async with asyncio.timeout(5):
        while frame is None:
            await pump()
            if not await client.is_silent():
                frame = await client.frame()
    assert frame == {"group_name": "connections", "changed": True}


@pytest.fixture
def written(monkeypatch):
    """How many watches each transaction has stored."""
    counts = []
    store = vars(presence.Presence)["_store"]

    async def counted(self, rows, watches, changed, last):
        counts.append(len(watches))
        return await store(self, rows, watches, changed, last)

    monkeypatch.setattr(presence.Presence, "_store", counted)
    return counts


async def test_a_socket_that_changes_all_the_time_is_written_now_and_then(people, here, written, monkeypatch):
    """And is right in the end; one that comes or goes is written at once."""
    monkeypatch.setattr(presence, "APART", 0.5)
    client = await client_of(people, people.root)
    groups = ["status_changed", "summary"]
    for number in range(40):
        await client.subscribe({"jobs": [groups[number % 2]]})
        await until(["root"], people.root)
    await until(["root"], people.root, f"jobs-{groups[1]}")
    assert 1 <= len([count for count in written if count]) < 20
    await client.leave()
    await until([], people.root)


async def test_a_transaction_has_so_many_rows(people, here, written, monkeypatch):
    monkeypatch.setattr(presence, "ROWS", 3)
    monkeypatch.setattr(presence, "GATHER", 0.1)
    clients = [await client_of(people, people.root) for _ in range(5)]
    for client in clients:
        await client.subscribe({"jobs": ["status_changed", "summary"]})
    await until(["root"] * 5, people.root, "jobs-summary")
    assert max(written) <= 3
