"""docs/how-to/resumable-consumer.md and token-streams.md: the code that they show runs, and the change from
an ordinary consumer to a resumable one is as small as they say. What they show of JavaScript:
tests/browser/js/resumable.test.js."""

from __future__ import annotations

import asyncio
import difflib
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from channels.db import database_sync_to_async
from channels.layers import get_channel_layer
from django.urls import path

from carillon.events import position
from carillon.events.models import Head
from carillon.sockets.consumers import _routes
from tests.unit.support.sockets import Client, pump

pytestmark = pytest.mark.django_db(transaction=True)

PAGES = Path(__file__).parents[3] / "docs" / "how-to"
MOST = 20


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", (PAGES / page).read_text(), re.M | re.S)


def changed(before: str, after: str) -> int:
    """Lines that are not as they were; one in place of another counts once."""
    steps = difflib.SequenceMatcher(
        None, before.splitlines(), after.splitlines(), autojunk=False
    ).get_opcodes()
    return sum(max(b - a, d - c) for word, a, b, c, d in steps if word != "equal")


def served(settings, monkeypatch, route: str, code: str, **names) -> ModuleType:
    """A module with this code, whose consumer is at this route."""
    module = ModuleType("page_of_the_docs")
    module.__dict__.update(names)
    exec(compile(code, "docs", "exec"), module.__dict__)
    (consumer,) = [
        value
        for name, value in vars(module).items()
        if name.endswith("Consumer") and value.__module__ == module.__name__
    ]
    module.websocket_urlpatterns = [path(route, consumer.as_asgi())]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    settings.CARILLON = {**settings.CARILLON, "WEBSOCKET_URLCONF": module.__name__}
    _routes.cache_clear()
    return module


def test_the_change_is_small():
    pairs = [blocks("resumable-consumer.md", language) for language in ("python", "js")]
    count = sum(changed(before, after) for before, after in pairs)
    assert count == 16  # as the page says
    assert count <= MOST


@pytest.mark.parametrize("which", [0, 1])
async def test_the_chat_before_and_after(settings, monkeypatch, which):
    served(settings, monkeypatch, "websocket/chat/<room>/", blocks("resumable-consumer.md", "python")[which])
    ann, ben = Client("/websocket/chat/tower/"), Client("/websocket/chat/tower/")
    for client in (ann, ben):
        assert (await client.raw.connect(timeout=5))[0]
        if which:
            assert await client.frame() == {"position": "none:0"}
    await ann.say({"text": "the bells are up"})
    if which:
        await until_published()
        await pump()
    expected = {"text": "the bells are up"} | ({"position": "none:1"} if which else {})
    assert await ann.frame() == await ben.frame() == expected


async def until_published():
    async with asyncio.timeout(5):
        while not get_channel_layer().publisher.batches:
            await asyncio.sleep(0.005)


async def test_an_answer_that_is_read_from_the_log(settings, monkeypatch, people):
    shown = blocks("token-streams.md", "python")

    async def may_read(user, answer):
        return user.is_authenticated

    class Answer:
        pk = "a1"
        saved = False

        def save(self):
            self.saved = True

    module = served(settings, monkeypatch, "websocket/answers/<answer>/", shown[0], may_read=may_read)
    exec(shown[1], module.__dict__)
    module.pieces = lambda tokens, seconds: ["".join(tokens[place : place + 2]) for place in (0, 2)]
    answer = Answer()
    await database_sync_to_async(module.write)(answer, ["The ", "bells ", "are ", "up."])
    assert (answer.text, answer.done, answer.saved) == ("The bells are up.", True, True)
    await pump()
    token = await database_sync_to_async(people.token)(people.ann)
    whole = [
        {"at": 0, "piece": "The bells ", "position": "none:1"},
        {"at": 1, "piece": "are up.", "position": "none:2"},
        {"at": 2, "done": True, "position": "none:3"},
        {"recovered": True, "position": "none:3"},
    ]
    for since, frames in (("none:0", whole), ("none:1", whole[1:])):
        client = Client(f"/websocket/answers/a1/?token={token}&since={since}")
        assert (await client.raw.connect(timeout=5))[0]
        assert [await client.frame() for _ in frames] == frames
    assert await Client("/websocket/answers/a1/").raw.connect(timeout=5) == (False, 1000)


@pytest.mark.django_db
def test_where_an_answer_begins():
    assert (position(), since_of_an_answer()) == (None, "")
    Head.objects.create(epoch="e", number=7)
    assert (str(position()), since_of_an_answer()) == ("e:7", "e:7")


def since_of_an_answer() -> str:
    """What the page keeps of an answer that is asked for now."""
    kept: dict[str, str] = {}
    objects = SimpleNamespace(create=lambda question, since: kept.update(since=since))
    exec(
        blocks("token-streams.md", "python")[2],
        {"Answer": SimpleNamespace(objects=objects), "question": "Are the bells up?"},
    )
    return kept["since"]


async def test_an_answer_without_a_position_is_heard_from_now_on(settings, monkeypatch):
    async def may_read(user, answer):
        return True

    code = blocks("token-streams.md", "python")[0]
    served(settings, monkeypatch, "websocket/answers/<answer>/", code, may_read=may_read)
    client = Client("/websocket/answers/a1/?since=")
    assert (await client.raw.connect(timeout=5))[0]
    assert await client.frame() == {"position": "none:0"}
