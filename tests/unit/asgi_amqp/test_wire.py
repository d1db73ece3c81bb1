"""A real wire on a link that notes what is written."""

import asyncio
import struct
from types import SimpleNamespace

import pytest

from asgi_amqp.connection import Link
from asgi_amqp.transport import ACK, NACK, REJECT
from tests.unit.asgi_amqp.links import OPTIONS, Channel


class Connection:
    """aiormq's, with channels that a test answers for."""

    connection_tune = SimpleNamespace(frame_max=131072, channel_max=0)

    def __init__(self, noted):
        self.closing = asyncio.get_running_loop().create_future()
        self.noted = noted
        self.gate = asyncio.Event()
        self.gate.set()
        self.channels = []

    async def channel(self, number, publisher_confirms):
        await self.gate.wait()
        channel = Channel()
        channel.number, channel.is_closed = number, False
        channel.close = self._close
        self.channels.append(channel)
        return channel

    async def _close(self):
        self.noted.append("channel closed")

    async def close(self):
        self.noted.append("closed")


class Socket:
    def __init__(self, noted):
        self.noted = noted

    def write(self, data):
        """Answers to deliveries, as (method, tag, bits)."""
        for start in range(0, len(data), 21):
            method, tag, bits = struct.unpack_from(">IQB", data, start + 7)
            self.noted.append((method, tag, bits))

    def get_extra_info(self, name):
        return SimpleNamespace(shutdown=lambda how: None)

    def abort(self):
        pass


@pytest.fixture
def noted():
    return []


@pytest.fixture
async def link(noted):
    transport = SimpleNamespace(plain=False, taps=None, socket=Socket(noted), blocked=False, closed="")
    return Link(OPTIONS.targets[0], 1, Connection(noted), SimpleNamespace(transport=transport), False)


@pytest.fixture
async def wire(link):
    """With five deliveries."""
    wire = await link.wire(on_delivery=lambda delivery: None)
    for tag in range(1, 6):
        wire.opened(tag)
    return wire


async def test_acknowledgements_of_one_turn_are_one_frame(wire, noted):
    for tag in (1, 2, 3):
        wire.ack(tag)
    assert noted == []
    await asyncio.sleep(0)
    assert noted == [(ACK, 3, 1)]
    wire.ack(5)
    await asyncio.sleep(0)
    assert noted[1:] == [(ACK, 5, 0)]


@pytest.mark.parametrize(
    "answer", [lambda wire: wire.reject(1, requeue=True), lambda wire: wire.give_back(1)]
)
async def test_what_was_answered_otherwise_holds_no_frame_up(wire, noted, answer):
    answer(wire)
    wire.ack(2)
    wire.ack(3)
    await asyncio.sleep(0)
    assert noted[0] in [(REJECT, 1, 1), (NACK, 1, 2)]
    assert noted[1:] == [(ACK, 3, 1)]


async def test_a_wire_that_is_closed_says_first_what_was_acknowledged(wire, noted):
    wire.ack(1)
    await wire.close()
    assert noted == [(ACK, 1, 0), "channel closed"]


async def test_a_link_that_is_closed_says_first_what_was_acknowledged(link, wire, noted):
    wire.ack(1)
    await link.close()
    assert noted == [(ACK, 1, 0), "closed"]


async def test_who_no_longer_waits_for_a_wire_leaves_no_channel_open(link, noted):
    link._connection.gate.clear()
    waiting = asyncio.create_task(link.wire())
    await asyncio.sleep(0.01)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    link._connection.gate.set()
    await asyncio.sleep(0.01)
    assert noted == ["channel closed"]


async def test_who_is_cancelled_as_the_wire_comes_leaves_no_channel_open(link, noted):
    waiting = asyncio.create_task(link.wire())
    while not link._connection.channels:
        await asyncio.sleep(0)
    while any(not task.done() for task in link._tasks):
        await asyncio.sleep(0)
    assert not waiting.done()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await asyncio.sleep(0.01)
    assert waiting.cancelled()
    assert noted == ["channel closed"]


@pytest.mark.parametrize("passing", [True, False])
async def test_the_end_of_a_consumer_is_that_of_the_link_unless_the_wire_is_passing(link, passing):
    await link.wire(passing=passing)
    for heard in list(link._connection.channels[0].on_consumer_cancel_callbacks):
        heard(SimpleNamespace(consumer_tag="c"))
    assert link.lost.done() != passing


async def test_a_consumer_that_ended_before_its_wire_was_kept_ends_the_link(link):
    """The broker's word may come in the turn in which it agreed to the consumer."""
    wire = await link.wire(passing=True)
    for heard in list(link._connection.channels[0].on_consumer_cancel_callbacks):
        heard(SimpleNamespace(consumer_tag="c"))
    assert not link.lost.done()
    link.keep(wire)
    assert "ended a consumer" in link.lost.result()
