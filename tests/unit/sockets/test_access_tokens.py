"""Sockets and event streams by an issuer's access token: they live as long as it does, and no longer."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from datetime import datetime

import pytest
from asgiref.sync import sync_to_async
from asgiref.testing import ApplicationCommunicator
from channels.db import database_sync_to_async
from django.contrib.auth import get_user_model

from carillon.accounts import jwts, kept, tokens
from carillon.accounts.models import ExternalIdentity
from carillon.events import aemit_channel_notification
from carillon.sockets import protocol
from carillon.sockets.application import application
from carillon.sockets.sockets import SLICE, sockets
from tests.unit.sockets.test_version2 import Client2
from tests.unit.support.issuer import reply
from tests.unit.support.sockets import Client, pump
from tower.models import Job

pytestmark = pytest.mark.django_db(transaction=True)

LIVES = (1.5, 4.5)
"""Seconds of a token that is to end while it is used: the first that lets its client in on this machine."""


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setattr("carillon.sockets.presence.Presence._announce", lambda self: None)
    monkeypatch.setattr("carillon.sockets.presence.GATHER", 0)
    monkeypatch.setattr("carillon.sockets.session.GOODBYE_TIMEOUT", 0.1)


def user(name: str = "ilse"):
    return database_sync_to_async(get_user_model().objects.get)(username=name)


async def refused(code: int, reason: str, **options) -> None:
    client = Client(**options)
    frame = await client.open()
    assert reason in frame.pop("error")
    assert frame == {"accept": False, "user": None, "close": True}
    assert await client.close_code() == code


@pytest.mark.parametrize("way", ["url", "header", "cookie"])
async def test_where_a_token_of_ours_is_good(trusted, db, way):
    token = trusted.token()
    client = {
        "url": lambda: Client(token=token),
        "header": lambda: Client(authorization=f"Bearer {token}"),
        "cookie": lambda: Client(cookie=f"token={token}", origin="http://localhost:8043"),
    }[way]()
    frame = await client.open()
    assert frame == {"accept": True, "user": (await user()).pk}


async def test_a_page_of_another_origin_with_the_cookie(trusted, db):
    await refused(4403, "forbidden Origin", cookie=f"token={trusted.token()}", origin="https://evil.test")


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"aud": "another"}, "the token is for another audience"),
        ({"exp": 1}, "the token has expired"),
        ({"headers": {"kid": "nope"}}, "a key that its issuer does not have"),
        ({"filler": "x" * tokens.LONGEST}, "the token is longer than 8192 bytes"),
    ],
)
async def test_refusals(trusted, db, more, why):
    await refused(4401, why, token=trusted.token(**more))
    assert not await ExternalIdentity.objects.aexists()


async def test_one_that_may_not_read(trusted, db, settings):
    settings.CARILLON = {**settings.CARILLON, "JWT_SCOPE": "write"}
    await refused(4401, "no scope read", token=trusted.token())


async def test_an_issuer_that_is_away(trusted, db):
    trusted.answer = lambda request: reply(request, {}, 500)
    await refused(1013, "the token cannot be checked now: 127.0.0.1 answers with 500", token=trusted.token())


async def test_who_waits_for_an_issuer_holds_nobody_up(trusted, people):
    """The keys are fetched in a thread of their own, and the database's is free."""
    go_on = threading.Event()

    def slow(request):
        assert go_on.wait(30)
        reply(request, trusted.key_set())

    trusted.answer = slow
    waiting = [Client(token=trusted.token()) for _ in range(5)]
    opening = [asyncio.create_task(client.open()) for client in waiting]
    try:
        while not trusted.asked:
            await asyncio.sleep(0.01)
        ours = await database_sync_to_async(people.token)(people.ann)
        assert (await Client(token=ours).open())["accept"]
        assert not any(task.done() for task in opening)
    finally:
        go_on.set()
    assert [(await task)["accept"] for task in opening] == [True] * 5
    assert trusted.asked == ["/keys"], "for all of them"


@pytest.fixture
async def busy(monkeypatch) -> asyncio.Semaphore:
    """The turns of handshakes: one, which nobody has."""
    turns = asyncio.Semaphore(1)
    monkeypatch.setattr(sockets(), "_turns", turns)
    return turns


async def test_who_waits_for_an_issuer_takes_no_turn(trusted, people, busy):
    """A token whose key id was made up is enough to wait for one."""
    go_on = threading.Event()

    def slow(request):
        assert go_on.wait(30)
        reply(request, trusted.key_set())

    trusted.answer = slow
    opening = asyncio.create_task(Client(token=trusted.token(headers={"kid": "made-up"})).open())
    try:
        while not trusted.asked:
            await asyncio.sleep(0.01)
        ours = await database_sync_to_async(people.token)(people.ann)
        assert (await asyncio.wait_for(Client(token=ours).open(), 5))["accept"]
        assert not opening.done()
    finally:
        go_on.set()
    assert "key that its issuer does not have" in (await opening)["error"]


async def test_the_sockets_are_gone_through_once_however_many_waited_for_the_keys(trusted, db, monkeypatch):
    looks = []
    monkeypatch.setattr(sockets(), "_keys_answered", looks.append)
    opened = await asyncio.gather(*(Client(token=trusted.token()).open() for _ in range(5)))
    assert all(frame["accept"] for frame in opened)
    assert len(looks) == 1


async def test_the_signatures_of_many_are_checked_some_at_a_time(trusted, monkeypatch):
    """They all have waited for the same answer."""
    turn, checks = 0, Counter()

    async def count():
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    def check(self, token):
        checks[turn] += 1
        return token

    monkeypatch.setattr(jwts.Trust, "check", check)
    counting = asyncio.create_task(count())
    await asyncio.gather(*(sockets()._claims("a.b.c") for _ in range(4 * SLICE)))
    counting.cancel()
    assert (sum(checks.values()), max(checks.values())) == (4 * SLICE, SLICE)


async def test_a_key_that_is_withdrawn_before_its_turn(trusted, db, busy, monkeypatch):
    now = time.monotonic()
    keys = jwts.access().keys
    monkeypatch.setattr(keys.kept, "_clock", lambda: now)
    await sync_to_async(keys.kept.wait)()
    await busy.acquire()
    client = Client(token=trusted.token("a"))
    opening = asyncio.create_task(client.open())
    while not busy._waiters:
        await asyncio.sleep(0.01)
    del trusted.kinds["a"]
    now += kept.AGAIN
    await sync_to_async(keys.kept.wait)()
    busy.release()
    assert "key that its issuer has withdrawn" in (await opening)["error"]
    assert await client.close_code() == protocol.UNAUTHENTICATED


async def test_a_socket_ends_with_its_token(trusted, db):
    for life in LIVES:
        client = Client(token=trusted.token(exp=time.time() + life))
        if (await client.open())["accept"]:
            break
    assert await client.frame() == {"error": "the session or token has ended: log in again"}
    assert await client.close_code() == protocol.UNAUTHENTICATED


async def test_a_socket_ends_with_its_user(trusted, db):
    client = Client(token=trusted.token())
    await client.open()
    ilse = await user()
    ilse.is_active = False
    await sync_to_async(ilse.save)()
    await pump()
    assert await client.frame() == {"error": "the session or token has ended: log in again"}
    assert await client.close_code() == protocol.UNAUTHENTICATED


async def test_a_socket_ends_when_the_account_is_no_longer_linked(trusted, db):
    client = Client(token=trusted.token())
    await client.open()
    await sync_to_async(lambda: ExternalIdentity.objects.get().delete())()
    await pump()
    await client.frame()
    assert await client.close_code() == protocol.UNAUTHENTICATED


async def test_a_socket_ends_when_its_key_is_withdrawn(trusted, db, monkeypatch):
    """As soon as it is heard that the issuer has it no more: at the next look, or with the next new key."""
    now = time.monotonic()
    monkeypatch.setattr(jwts.access().keys.kept, "_clock", lambda: now)
    client, other = Client(token=trusted.token("a")), Client(token=trusted.token("b"))
    await client.open()
    await other.open()
    del trusted.kinds["a"]
    trusted.kinds["new"] = ("RSA", 1)
    now += kept.AGAIN
    assert (await Client(token=trusted.token("new")).open())["accept"]
    assert await client.frame() == {"error": "the session or token has ended: log in again"}
    assert await client.close_code() == protocol.UNAUTHENTICATED
    await pump()
    assert await other.is_silent()


async def test_the_keys_are_looked_at_though_nobody_comes(trusted, db, settings, monkeypatch):
    settings.CARILLON = {**settings.CARILLON, "RECHECK_SECONDS": 0.1}
    now = time.monotonic()
    monkeypatch.setattr(jwts.access().keys.kept, "_clock", lambda: now)
    client = Client(token=trusted.token())
    await client.open()
    del trusted.kinds["a"]
    now += kept.FRESH
    try:
        await client.frame()
    except TimeoutError:  # seen once in some hundred runs, on a machine that had much else to do
        pytest.fail(f"its issuer was asked {trusted.asked}: {jwts.access().keys.kept.problem!r}")
    assert await client.close_code() == protocol.UNAUTHENTICATED
    assert len(trusted.asked) == 2


async def test_it_hears_as_what_its_user_is_now(trusted, people):
    client = Client(token=trusted.token())
    await client.open()
    job = await Job.objects.acreate(owner=people.ann, team=people.team, name="a job")
    groups = {"job_events": [job.pk]}
    assert "access denied" in (await client.subscribe(groups))["error"]
    await client.frame()
    ilse = await user()
    await sync_to_async(people.team.members.add)(ilse)
    await pump()
    assert (await client.subscribe(groups))["groups_joined"] == [f"job_events-{job.pk}"]
    await aemit_channel_notification(f"job_events-{job.pk}", {"n": 1})
    await pump()
    assert await client.frame() == {"n": 1}


async def test_refresh_goes_on_with_the_next_token(trusted, db):
    client = Client2(trusted.token())
    assert (await client.open())["accept"]
    exp = int(time.time()) + 1000
    await client.say({"refresh": trusted.token(exp=exp, filler="x" * 3000)})
    frame = await client.frame()
    assert frame.pop("refreshed")
    assert datetime.fromisoformat(frame["expires"]).timestamp() == exp
    identity = next(iter(sockets()._by_outlet.values())).identity
    assert identity.expires.timestamp() == exp
    for wrong in (trusted.token(sub="another"), trusted.token(aud="another"), "a.b.c", "x" * 9000):
        await client.say({"refresh": wrong})
        assert (await client.frame())["error"].startswith(("refresh refused", 'invalid message: "refresh"'))


async def test_refresh_while_the_issuer_is_away(trusted, db, monkeypatch):
    now = time.monotonic()
    monkeypatch.setattr(jwts.access().keys.kept, "_clock", lambda: now)
    client = Client2(trusted.token())
    await client.open()
    trusted.answer = lambda request: reply(request, {}, 500)
    now += kept.AGAIN
    await client.say({"refresh": trusted.token(headers={"kid": "new"})})
    assert "cannot be checked now: 127.0.0.1 answers with 500" in (await client.frame())["error"]


@pytest.mark.parametrize(("answer", "status"), [(None, 200), (500, 503)])
async def test_event_streams(trusted, db, answer, status):
    if answer:
        trusted.answer = lambda request: reply(request, {}, answer)
    for life in LIVES:
        client = await stream(trusted.token(exp=time.time() + life))
        if (await client.receive_output(5))["status"] == status:
            break
    said = b""
    while (message := await client.receive_output(30)).get("more_body"):
        said += message["body"]
    if status == 200:
        assert b"the session or token has ended: log in again" in said
    else:
        assert "127.0.0.1 answers with 500" in json.loads(message["body"])["detail"]
    await client.send_input({"type": "http.disconnect"})
    await client.wait(5)


async def stream(token: str) -> ApplicationCommunicator:
    scope = {
        "type": "http",
        "path": "/events/",
        "method": "GET",
        "headers": [(b"authorization", f"Bearer {token}".encode())],
        "query_string": b"groups=schedules:changed",
        "client": ["192.0.2.7", 1234],
    }
    client = ApplicationCommunicator(application, scope)
    await client.send_input({"type": "http.request", "body": b""})
    return client


async def test_many_first_sockets_at_once_are_one_user(trusted, db):
    mine = [Client(token=trusted.token(jti=str(number))) for number in range(20)]
    frames = await asyncio.gather(*(client.open() for client in mine))
    assert all(frame["accept"] for frame in frames)
    assert await get_user_model().objects.acount() == 1
