"""The project's own consumers: who gets in, as whom, and what ends their sockets."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta

import pytest
from channels.auth import AuthMiddlewareStack
from channels.db import database_sync_to_async
from channels.generic.websocket import AsyncJsonWebsocketConsumer, JsonWebsocketConsumer
from channels.layers import get_channel_layer
from django.db import InterfaceError, OperationalError
from django.urls import path
from django.utils import timezone

from carillon.accounts import sessions
from carillon.accounts.models import ApiToken
from carillon.fanout.station import station
from carillon.sockets import authentication
from carillon.sockets.sockets import sockets
from tests.unit.sockets.test_session import session_of
from tests.unit.support.sockets import Client, pump

pytestmark = pytest.mark.django_db(transaction=True)


class Mirror(AsyncJsonWebsocketConsumer):
    """Says who is there, and repeats what it hears."""

    gone: list[int] = []
    patient = True

    async def connect(self):
        await self.accept()
        await self.send_json({"user": self.scope["user"].pk, **self.scope["url_route"]["kwargs"]})

    async def receive_json(self, content, **kwargs):
        await self.send_json(content)
        if "look" in content:
            while not Slow.waiting.is_set():
                await asyncio.sleep(0.01)
            for asked in tuple(sockets()._by_outlet.values()):
                sockets().look(asked)

    async def disconnect(self, code):
        self.gone.append(code)
        await self.send_json({"too": "late"})
        while not self.patient:
            await asyncio.sleep(60)


class Slow(JsonWebsocketConsumer):
    """Its handler waits until a test lets it go on."""

    gate = threading.Event()
    waiting = threading.Event()

    def receive_json(self, content, **kwargs):
        self.waiting.set()
        self.send_json({"let_go": self.gate.wait(20)})


class Basket(JsonWebsocketConsumer):
    """What the session has, and one thing more."""

    def connect(self):
        self.accept()
        session = self.scope["session"]
        had = session.get("basket")
        session["basket"] = "bells"
        session.save()
        self.send_json({"user": self.scope["user"].username, "had": had})


websocket_urlpatterns = [
    path("websocket/basket/", Basket.as_asgi()),
    path("websocket/stack/basket/", AuthMiddlewareStack(Basket.as_asgi())),
    path("websocket/mirror/<int:room>/", Mirror.as_asgi()),
    path("websocket/slow/", Slow.as_asgi()),
    path("ws/mirror/<int:room>/", Mirror.as_asgi()),  # nginx sends what the project declares
]
ROOM = "/websocket/mirror/7/"


@pytest.fixture(autouse=True)
def _routes(settings):
    Mirror.gone.clear()
    Slow.gate.clear()
    Slow.waiting.clear()
    settings.CARILLON = {**settings.CARILLON, "WEBSOCKET_URLCONF": __name__}


async def open_one(people, user, **fields):
    client = Client(ROOM, token=await database_sync_to_async(people.token)(user, **fields))
    assert await client.open() == {"user": user.pk, "room": 7}
    return client


async def change(function, *args, **kwargs):
    """Do it, and give this process's sockets what the broker would bring them."""
    await database_sync_to_async(function)(*args, **kwargs)
    await pump()


async def refused(client, code):
    accepted, _ = await client.raw.connect(timeout=5)
    assert accepted
    assert await client.close_code() == code


async def test_a_consumer_gets_its_user_and_its_route(people):
    client = await open_one(people, people.ann)
    await client.say({"a": 1})
    assert await client.frame() == {"a": 1}
    await client.leave()


async def test_a_path_of_the_project_s_own_is_served_like_one_below_websocket(people):
    client = Client("/ws/mirror/7/", token=await database_sync_to_async(people.token)(people.ann))
    assert await client.open() == {"user": people.ann.pk, "room": 7}
    await refused(Client("/ws/mirror/7/", token="nonsense"), 4401)


async def test_nobody_is_anonymous():
    assert await Client(ROOM).open() == {"user": None, "room": 7}


async def test_what_is_presented_must_be_good(people):
    await refused(Client(ROOM, token="nonsense"), 4401)
    await refused(Client(ROOM, cookie="__Host-awx_sessionid=nonsense"), 4401)
    await refused(Client(ROOM, cookie="__Host-awx_sessionid=nonsense", origin="https://evil.example"), 4403)


async def test_sockets_of_a_user_have_a_number(people, settings):
    """Of all kinds together, and nobody has as many as there are."""
    settings.CARILLON = {**settings.CARILLON, "SOCKETS_PER_USER": 2}
    token = await database_sync_to_async(people.token)(people.ann)
    first = Client(ROOM, token=token)
    await first.open()
    await Client(token=token).open()
    await refused(Client(ROOM, token=token), 1013)
    assert (await Client(token=token).open())["accept"] is False
    for _ in range(3):
        await Client(ROOM).open()
    await first.leave()
    assert (await Client(ROOM, token=token).open())["user"] == people.ann.pk


@pytest.mark.parametrize("error", [OperationalError, InterfaceError])
async def test_no_database(people, monkeypatch, error):
    def away(handshake):
        raise error("away")

    monkeypatch.setattr(authentication, "authenticate", away)
    await refused(Client(ROOM, token="any"), 1013)


async def test_a_session_engine_that_fails_leaves_nobody_counted(people, monkeypatch):
    def broken(key):
        raise RuntimeError("no engine")

    token = await database_sync_to_async(people.token)(people.ann)
    monkeypatch.setattr(sessions, "store", lambda: broken)
    client = Client(ROOM, token=token)
    with pytest.raises(RuntimeError):
        await client.raw.connect()
    client.opened.remove(client)
    assert not sockets()._by_outlet


@pytest.mark.parametrize(
    "where", ["/websocket/mirror/", "/websocket/mirror/x/", "/websocket//", "/ws/", "/else"]
)
async def test_a_path_of_nobody(where):
    accepted, _ = await Client(where).raw.connect(timeout=5)
    assert not accepted


async def test_a_token_that_is_revoked(people):
    client, other = await open_one(people, people.ann), await open_one(people, people.ben)
    await change(lambda: [token.delete() for token in ApiToken.objects.filter(user=people.ann)])
    assert await client.close_code() == 4401
    assert await other.is_silent()


@pytest.mark.parametrize("patient", [True, False])
async def test_a_consumer_hears_that_its_socket_was_ended(people, monkeypatch, patient):
    """Its disconnect() runs, and what it says then goes nowhere; one that does not end is cancelled."""
    monkeypatch.setattr(Mirror, "patient", patient)
    monkeypatch.setattr("carillon.sockets.consumers.DISCONNECT_SECONDS", 5 if patient else 0.1)
    client = await open_one(people, people.ann)
    await change(lambda: [token.delete() for token in ApiToken.objects.filter(user=people.ann)])
    assert await client.close_code() == 4401
    await asyncio.wait_for(client.raw._future, 4)
    assert Mirror.gone == [4401]
    assert await client.is_silent()


async def test_a_token_that_expires(people):
    client = await open_one(people, people.ann, expires=timezone.now() + timedelta(seconds=0.5))
    assert await client.close_code() == 4401


async def test_rights_that_change(people):
    """The consumer decided by what was true when it connected: it is asked again."""
    client, other = await open_one(people, people.ann), await open_one(people, people.carl)
    await change(people.team.members.remove, people.ann)
    assert await client.close_code() == 1012
    assert await other.is_silent()


async def test_a_look_that_finds_nothing_new(people):
    client = await open_one(people, people.ann)
    await change(people.ann.save)
    await client.say({"still": "here"})
    assert await client.frame() == {"still": "here"}


async def test_a_database_that_is_away_when_rights_change(people, monkeypatch):
    client = await open_one(people, people.ann)

    def away(identities):
        raise OperationalError("away")

    monkeypatch.setattr(authentication, "revalidate_each", away)
    await change(people.team.members.remove, people.ann)
    assert await client.close_code() == 1013


@pytest.mark.parametrize("error", [OperationalError, InterfaceError])
async def test_a_database_that_is_away_at_a_look(people, monkeypatch, error):
    """Without a change it is no reason to leave: it is looked at again soon."""
    client = await open_one(people, people.ann)
    (consumer,) = sockets()._by_outlet.values()
    real = authentication.revalidate_each

    def away(identities):
        raise error("away")

    monkeypatch.setattr("carillon.sockets.consumers.RECHECK_SOON", 0.05)
    monkeypatch.setattr(authentication, "revalidate_each", away)
    sockets().look(consumer)
    assert await client.is_silent()
    await database_sync_to_async(lambda: ApiToken.objects.all().delete())()
    monkeypatch.setattr(authentication, "revalidate_each", real)
    assert await client.close_code() == 4401


async def test_a_word_that_was_missed_may_have_been_of_its_rights(people):
    """A consumer without groups misses no event; it is looked at."""
    client, other = await open_one(people, people.ann), await open_one(people, people.ben)
    await database_sync_to_async(lambda: ApiToken.objects.filter(user=people.ann).delete())()
    get_channel_layer().publisher.batches.clear()  # nobody here hears of it
    for told in station().gaps:
        told("retention")
    assert await client.close_code() == 4401
    assert await other.is_silent()


async def test_the_server_stops(people):
    """Cancelled without a word of our own: the server has said goodbye already."""
    client = await open_one(people, people.ann)
    client.raw._future.cancel()
    with pytest.raises(asyncio.CancelledError):
        await client.raw._future


async def test_a_slow_handler_delays_no_login(people, settings):
    """Nor does it delay the question who is still what, even where a consumer of the same thread has it
    asked."""
    settings.CARILLON = {**settings.CARILLON, "CONSUMER_THREADS": 1}
    slow, other = Client("/websocket/slow/"), await open_one(people, people.ben)
    assert (await slow.raw.connect(timeout=5))[0]
    try:
        await other.say({"look": True})
        assert await other.frame() == {"look": True}
        await slow.say({})
        async with asyncio.timeout(5):
            while not sockets().rights.waiting:
                await asyncio.sleep(0)
            while sockets().rights.waiting:
                await asyncio.sleep(0.01)
        token = await asyncio.to_thread(people.token, people.ann)
        await Client(ROOM, token=token).raw.send_input({"type": "websocket.connect"})
        async with asyncio.timeout(5):
            while people.ann.pk not in sockets()._by_user:  # logged in; its consumer waits for the thread
                await asyncio.sleep(0.01)
        assert await slow.is_silent()
    finally:
        Slow.gate.set()
    assert await slow.frame() == {"let_go": True}


@pytest.mark.parametrize("where", ["/websocket/basket/", "/websocket/stack/basket/"])
async def test_the_session_is_in_the_scope(people, where):
    """Of who was let in by it; not of a cookie beside a token, which any page may have sent along."""
    session, _ = await database_sync_to_async(session_of)(people.ann)
    cookie = f"__Host-awx_sessionid={session}"
    for had in (None, "bells"):
        assert await Client(where, cookie=cookie).open() == {"user": "ann", "had": had}
    token = await database_sync_to_async(people.token)(people.ben)
    assert await Client(where, token=token, cookie=cookie).open() == {"user": "ben", "had": None}
    assert await Client(where).open() == {"user": "", "had": None}
