"""`carillon dead-letters`: how a letter is told."""

import json

import pytest

from asgi_amqp.codec import encode, encode_batch, encode_target
from asgi_amqp.dead_letters import letter_of
from carillon.relay import dead_letters


@pytest.fixture
def told(monkeypatch, capsys):
    """`await told("show", body)`: what is printed of a letter."""

    async def tell(what, body):
        async def go_through(layer, channel, what, names, say):
            say(letter_of(body, {}))

        monkeypatch.setattr(dead_letters.dead_letters, "go_through", go_through)
        await dead_letters.go_through(what, None)
        return capsys.readouterr().out

    return tell


async def test_keys_that_are_no_text_are_shown(told):
    shown = await told("show", encode_batch([encode_target("why") + encode({"of": [{b"key": b"\xff"}]})]))
    assert json.loads(shown)["messages"] == [{"of": [{"b'key'": "ff"}]}]


async def test_what_cannot_be_replayed_is_said_to_stay(told):
    assert "is no event, and stays" in await told("replay", b"nonsense")
    assert "stays" not in await told("list", b"nonsense")
    assert "stays" not in await told("replay", encode_batch([encode_target("why") + encode({})]))
