"""Dead letters, on links that a test answers for: how far one pass goes."""

import asyncio
from collections import deque
from types import SimpleNamespace as N

import pytest

from asgi_amqp.codec import encode_batch, encode_target
from asgi_amqp.dead_letters import go_through
from tests.unit.asgi_amqp.links import Link
from tests.unit.asgi_amqp.test_sessions import body


class Letters(Link):
    """Its dead-letter queue holds `dead`; what is sent again dies at once, as with a worker that fails."""

    dead: deque[bytes] = deque()

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.passing.queue_declare = self.declare

    async def declare(self, name, **options):
        return N(message_count=len(self.dead), consumer_count=0)

    async def wire(self, **options):
        wire = await super().wire(**options)
        wire.channel.basic_get = self.get
        return wire

    async def get(self, queue, timeout):
        await asyncio.sleep(0)
        if not self.dead:
            return N(delivery_tag=None)
        properties = N(headers={}, timestamp=None)
        return N(delivery_tag=1, body=self.dead.popleft(), header=N(properties=properties))


@pytest.fixture
def replayed(make, brokers, monkeypatch):
    """A layer with three dead letters, and what is sent again."""
    monkeypatch.setattr(Letters, "dead", deque(body("jobs", {"n": number}) for number in range(3)))
    brokers.found = [Letters]
    sent = []

    def begin():
        layer = make(durable=["jobs"])

        async def send(destination, data, timeout):
            sent.append(data)
            Letters.dead.append(encode_batch([encode_target("jobs") + data]))

        layer.session().sender.send = send
        return layer, sent

    return begin


@pytest.mark.parametrize(("limit", "expected"), [(None, 3), (2, 2), (9, 3)])
async def test_what_is_replayed_and_dies_again_is_for_the_next_pass(replayed, limit, expected):
    layer, sent = replayed()
    async with asyncio.timeout(2):
        found = await go_through(layer, "jobs", "replay", limit=limit)
    assert (len(found), len(sent)) == (expected, expected)
    assert len(Letters.dead) == 3


async def test_a_pass_ends_where_others_have_taken_what_it_counted(replayed):
    layer, _ = replayed()
    found = await go_through(layer, "jobs", "drop", say=lambda letter: Letters.dead.clear())
    assert len(found) == 1
