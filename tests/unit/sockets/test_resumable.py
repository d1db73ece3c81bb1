"""The resumable consumer: an ordinary consumer of Channels whose groups are in the log."""

from __future__ import annotations

import asyncio

import pytest
from channels.db import database_sync_to_async
from channels.layers import get_channel_layer
from django.core.exceptions import ImproperlyConfigured
from django.urls import path

from carillon.accounts.models import ApiToken
from carillon.consumers import (
    AsyncResumableJsonWebsocketConsumer,
    EventFrames,
    ResumableJsonWebsocketConsumer,
)
from carillon.events import access_changed, aemit_channel_notification
from carillon.fanout.station import StreamUnavailable, station
from carillon.metrics import names
from carillon.sockets.sockets import sockets
from tests.unit.support.sockets import Client, pump

pytestmark = pytest.mark.django_db(transaction=True)


class Chat(AsyncResumableJsonWebsocketConsumer):
    """A room. `banned`: names whom `connect()` turns away."""

    banned: set[str] = set()
    gone: list[int] = []
    gate: asyncio.Event | None = None

    async def connect(self):
        self.room = f"chat_{self.scope['url_route']['kwargs']['room']}"
        if self.scope["user"].username in self.banned:
            await self.subscribe(self.room)  # and yet it is to hear nothing
            await self.close()
            return
        await self.subscribe(self.room)
        await self.accept()

    async def disconnect(self, code):
        self.gone.append(code)

    async def receive_json(self, content, **kwargs):
        await self.emit(self.room, content)

    async def chat_message(self, event):
        if self.gate is not None:
            await self.gate.wait()
        await self.send_json({"text": event["text"]})

    async def chat_two(self, event):
        await self.send_json({"part": 1})
        await self.send_json({"part": 2})

    async def chat_bare(self, event):
        await self.send_json({"first": True})
        await self.send(text_data='["bare"]')

    async def chat_silent(self, event):
        """It concerns nobody here."""

    async def chat_last(self, event):
        await self.send_json({"bye": True})
        await self.close(4000)

    async def chat_list(self, event):
        await self.send_json([1, 2])


class SyncChat(ResumableJsonWebsocketConsumer):
    """The same, of the other kind."""

    def connect(self):
        self.room = f"chat_{self.scope['url_route']['kwargs']['room']}"
        self.subscribe(self.room)
        self.accept()

    def receive_json(self, content, **kwargs):
        self.emit(self.room, content)

    def chat_message(self, event):
        self.send_json({"text": event["text"]})

    def chat_two(self, event):
        self.send_json({"part": 1})
        self.send_json({"part": 2})

    def chat_bare(self, event):
        self.send_json({"first": True})
        self.send(text_data='["bare"]')

    def chat_last(self, event):
        self.send_json({"bye": True})
        self.close(4000)


class Late(Chat):
    async def receive_json(self, content, **kwargs):
        try:
            await self.subscribe("chat_other")
        except RuntimeError as error:
            await self.send_json({"error": str(error)})


class Misspelt(Chat):
    async def connect(self):
        await self.accept()
        try:
            await self.subscribe("!access")
        except ValueError as error:
            await self.send_json({"error": str(error)})


websocket_urlpatterns = [
    path("websocket/chat/<int:room>/", Chat.as_asgi()),
    path("websocket/sync/<int:room>/", SyncChat.as_asgi()),
    path("websocket/late/<int:room>/", Late.as_asgi()),
    path("websocket/misspelt/", Misspelt.as_asgi()),
]
KINDS = pytest.mark.parametrize("kind", ["chat", "sync"])


@pytest.fixture(autouse=True)
def _routes(settings, monkeypatch):
    Chat.gone.clear()
    monkeypatch.setattr(Chat, "banned", set())
    settings.CARILLON = {**settings.CARILLON, "WEBSOCKET_URLCONF": __name__}


async def join(kind="chat", token=None, since=None):
    """A client in room 7, and the first frame, which says where it is."""
    query = "&".join(f"{name}={value}" for name, value in (("token", token), ("since", since)) if value)
    client = Client(f"/websocket/{kind}/7/?{query}")
    return client, await client.open()


async def token_of(people, user):
    return await database_sync_to_async(people.token)(user)


async def tell(*payloads, group="chat_7", **more):
    for payload in payloads:
        await aemit_channel_notification(group, payload, **more)
    await pump()


def said(*texts):
    return [{"type": "chat.message", "text": text} for text in texts]


async def frames(client, count):
    return [await client.frame() for _ in range(count)]


async def change(function, *args, **kwargs):
    await database_sync_to_async(function)(*args, **kwargs)
    await pump()


@KINDS
async def test_a_message_goes_to_all_with_its_position(kind):
    (ann, first), (ben, _) = await join(kind), await join(kind)
    assert first == {"position": "none:0"}
    await ann.say(said("hello")[0])
    while not get_channel_layer().publisher.batches:
        await asyncio.sleep(0.01)
    await pump()
    assert await ann.frame() == await ben.frame() == {"text": "hello", "position": "none:1"}


@KINDS
async def test_what_was_missed_comes_once_and_in_order(kind):
    client, _ = await join(kind)
    await tell(*said("a", "b"))
    assert (await frames(client, 2))[-1] == {"text": "b", "position": "none:2"}
    await client.leave()
    await tell(*said("c", "d"))
    await tell({"type": "chat.message", "text": "elsewhere"}, group="chat_8")
    client, first = await join(kind, since="none:2")
    await tell(*said("e"))
    assert [first, *await frames(client, 3)] == [
        {"text": "c", "position": "none:3"},
        {"text": "d", "position": "none:4"},
        {"recovered": True, "position": "none:5"},
        {"text": "e", "position": "none:6"},
    ]
    assert await client.is_silent()


async def test_nothing_missed_is_said_too():
    _, first = await join(since="none:0")
    assert first == {"recovered": True, "position": "none:0"}


@pytest.mark.parametrize(("since", "reason"), [("other:3", "epoch"), ("none:1", "retention")])
async def test_what_is_out_of_the_log_is_announced(since, reason):
    await tell(*said("a"))
    hub = station().hub
    hub.window.reset()
    hub.window.mark(3)
    hub.number = 3
    client, first = await join(since=since)
    assert first == {"recovered": False, "position": "none:3", "reason": reason}
    await tell(*said("b"))
    assert await client.frame() == {"text": "b", "position": "none:4"}


@pytest.mark.parametrize("since", ["nonsense", "none:-1", "none:1:2"])
@KINDS
async def test_a_position_that_is_none(kind, since):
    client = Client(f"/websocket/{kind}/7/?since={since}")
    assert (await client.raw.connect(timeout=5))[0]
    assert await client.close_code() == 1008


@KINDS
async def test_the_last_frame_of_an_event_has_its_position(kind):
    """A connection that breaks between the frames of one event has the event again."""
    client, _ = await join(kind)
    await tell({"type": "chat.two"}, {"type": "chat.bare"}, {"n": 1}, {"type": "chat.last"})
    assert await frames(client, 7) == [
        {"part": 1},
        {"part": 2, "position": "none:1"},
        {"first": True},
        ["bare"],
        {"position": "none:2"},
        {"n": 1, "position": "none:3"},
        {"bye": True, "position": "none:4"},
    ]
    assert await client.close_code() == 4000


async def test_an_event_of_which_nothing_is_sent():
    client, _ = await join()
    await tell({"type": "chat.silent"}, *said("a"))
    assert await client.frame() == {"text": "a", "position": "none:2"}


@pytest.mark.parametrize(
    "kind", ["close", "websocket.disconnect", "base_send", "_frames", "chat.nothing", "room", 7]
)
async def test_an_event_calls_no_method_but_the_consumers_own(kind):
    client, _ = await join()
    await tell({"type": kind, "code": 1000})
    with pytest.raises(ValueError, match="has no method of its own"):
        await client.raw.wait(timeout=5)


async def test_a_frame_that_has_no_place_for_a_position():
    client, _ = await join()
    await tell({"type": "chat.list"})
    with pytest.raises(TypeError, match="a dict"):
        await client.raw.wait(timeout=5)


async def test_an_audience(people):
    ann, _ = await join(token=await token_of(people, people.ann))
    nobody, _ = await join()
    await tell(*said("for ann"), audience={"users": [people.ann.pk]})
    await tell(*said("for all"))
    assert await ann.frame() == {"text": "for ann", "position": "none:1"}
    assert await ann.frame() == await nobody.frame() == {"text": "for all", "position": "none:2"}


async def test_a_slow_handler_costs_no_more_than_its_budget(settings, monkeypatch):
    """Its events wait in the window, and all of them come."""
    settings.CARILLON = {**settings.CARILLON, "SOCKET_BUFFER_BYTES": 4096}
    gate = asyncio.Event()
    monkeypatch.setattr(Chat, "gate", gate)
    client, _ = await join()
    (listener,) = station().hub.listeners()
    text = "x" * 1000
    for _ in range(100):
        await tell(*said(text))
    assert not listener.live
    assert listener.waiting <= 4096
    gate.set()
    assert [frame["position"] for frame in await frames(client, 100)] == [f"none:{n}" for n in range(1, 101)]


async def test_a_quiet_clients_position_moves_on(settings):
    settings.CARILLON = {**settings.CARILLON, "SSE_COMMENT_SECONDS": 0.05}
    client, _ = await join()
    await tell({"n": 1}, group="elsewhere")
    while (frame := await client.frame()) != {"position": "none:1"}:
        assert frame == {"position": "none:0"}
    assert await client.is_silent()


async def test_a_token_that_is_revoked(people):
    """What follows the word is not heard, whoever is asked meanwhile."""
    client, _ = await join(token=await token_of(people, people.ann))
    other, _ = await join()
    await database_sync_to_async(lambda: [token.delete() for token in ApiToken.objects.all()])()
    await tell(*said("secret"))
    assert await client.close_code() == 4401
    assert await other.frame() == {"text": "secret", "position": "none:2"}
    await asyncio.wait_for(client.raw._future, 5)
    assert Chat.gone == [4401]
    assert len(station().hub.members(b"chat_7")) == 1


@pytest.mark.parametrize("word", ["user", "group"])
async def test_connect_decides_anew_when_rights_change(people, monkeypatch, word):
    token = await token_of(people, people.ann)
    client, first = await join(token=token)
    monkeypatch.setattr(Chat, "banned", {"ann"})
    about = {"user_ids": [people.ann.pk]} if word == "user" else {"groups": ["chat_7"]}
    await database_sync_to_async(access_changed)(**about)
    await tell(*said("secret"))
    assert await client.close_code() == 1012
    await asyncio.wait_for(client.raw._future, 5)
    again = Client(f"/websocket/chat/7/?token={token}&since={first['position']}")
    assert await again.raw.connect(timeout=5) == (False, 1000)
    assert not station().hub.members(b"chat_7")


async def test_a_group_of_which_rights_change_while_connect_decides(people, monkeypatch):
    """The word finds nobody in the group yet: whoever comes is asked about once more."""

    async def connect(self):
        await self.subscribe("chat_7")
        await database_sync_to_async(access_changed)(groups=["chat_7"])
        await pump()
        await self.accept()

    monkeypatch.setattr(Chat, "connect", connect)
    client = Client(f"/websocket/chat/7/?token={await token_of(people, people.ann)}")
    assert (await client.raw.connect(timeout=5))[0]
    assert await client.close_code() == 1012


async def test_a_word_that_concerns_others(people):
    client, _ = await join(token=await token_of(people, people.ann))
    await change(access_changed, [people.ben.pk], ["chat_8"])
    await tell(*said("a"))
    assert (await client.frame())["text"] == "a"


async def test_a_process_that_lost_its_place_sends_its_clients_to_ask():
    client, _ = await join()
    plain = Client("/websocket/misspelt/")
    await plain.open()
    for told in station().gaps:
        told("retention")
    assert await client.close_code() == 1012
    assert await plain.is_silent()


async def test_no_stream_yet(monkeypatch):
    async def ready(self, timeout):
        raise StreamUnavailable("not yet")

    monkeypatch.setattr(type(station()), "ready", ready)
    client = Client("/websocket/chat/7/")
    assert (await client.raw.connect(timeout=5))[0]
    assert await client.close_code() == 1013


async def test_a_group_that_is_subscribed_too_late():
    client, _ = await join("late")
    await client.say({})
    assert "in connect()" in (await client.frame())["error"]


async def test_a_groups_name_of_the_systems_own():
    assert "no group's name" in (await Client("/websocket/misspelt/").open())["error"]


async def test_resumes_are_counted_and_first_visits_are_not():
    def counted():
        return [names.RESUMES.labels(each)._value.get() for each in ("recovered", "epoch")]

    before = counted()
    await join()
    for since, place in (("none:0", 0), ("other:1", 1)):
        await join(since=since)
        before[place] += 1
        assert counted() == before


async def test_who_leaves_is_forgotten():
    client, _ = await join()
    assert station().hub.members(b"chat_7")
    await client.leave()
    assert not station().hub.members(b"chat_7")
    assert not sockets()._by_outlet


async def test_another_application():
    consumer = Chat()
    consumer.scope = {"query_string": b""}
    with pytest.raises(ImproperlyConfigured, match="WEBSOCKET_URLCONF"):
        await consumer.websocket_connect({"type": "websocket.connect"})


def test_frames_of_one_event():
    frames = EventFrames("e:1")
    assert frames.end() == []
    assert frames.put({"a": 1}) == []
    assert frames.bare() == [{"a": 1}]
    assert frames.put({"b": 2}) == []
    assert frames.end() == [{"b": 2, "position": "e:1"}]
    assert frames.end() == []
