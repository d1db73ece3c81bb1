"""Streams on a link that a test answers for: what belongs to one attachment ends with it."""

import asyncio

import pytest
from aiormq import ChannelNotFoundEntity

from asgi_amqp import AMQPChannelLayer, BrokerUnavailable
from asgi_amqp.codec import encode, encode_batch, encode_target
from asgi_amqp.event_stream import EventStream, PositionGone
from asgi_amqp.position import Position
from asgi_amqp.stream import LAST, StreamReader, StreamWriter, exists, peek
from tests.unit.asgi_amqp.links import Brokers, Link, until
from tests.unit.asgi_amqp.test_sessions_edges import GatedLink, consumed


async def attached(writer):
    link = Link()
    await writer.attach(link)
    return link.wires[-1].callbacks["on_confirm"], link.wires[-1].callbacks["on_return"]


async def test_confirms_in_any_order_are_told_in_the_order_of_the_stream():
    writer = StreamWriter("s")
    confirm, _ = await attached(writer)
    futures = [writer.publish(b"x") for _ in range(4)]
    confirm(3, False, True)
    confirm(2, False, True)
    assert [future.done() for future in futures] == [False] * 4
    confirm(1, False, True)
    assert [future.done() for future in futures] == [True, True, True, False]
    confirm(4, True, True)
    assert futures[3].done()


async def test_a_confirm_of_the_link_before_confirms_nothing_on_the_next():
    writer = StreamWriter("s")
    confirm, _ = await attached(writer)
    for _ in range(3):
        writer.publish(b"x")
    confirm(3, False, True)  # before the first two
    writer.lost("cut")
    confirm, _ = await attached(writer)
    futures = [writer.publish(b"x") for _ in range(3)]
    confirm(2, True, True)
    assert [future.done() for future in futures] == [True, True, False]


async def test_a_confirm_of_what_came_back_confirms_nothing_later():
    """The broker confirms what it could give to no queue, after it has given it back."""
    writer = StreamWriter("s")
    confirm, give_back = await attached(writer)
    failed = [writer.publish(b"x") for _ in range(2)]
    confirm(1, False, True)
    give_back("2")
    confirm(2, False, True)
    assert [future.exception() is None for future in failed] == [True, False]
    late = confirm
    confirm, _ = await attached(writer)
    futures = [writer.publish(b"x") for _ in range(2)]
    late(1, True, True)
    assert not futures[0].done()
    confirm(1, False, True)
    assert [future.done() for future in futures] == [True, False]


async def test_what_was_handed_over_on_one_link_is_not_acknowledged_on_the_next():
    messages = []
    reader = StreamReader("s", 0, messages.extend, manual=True)
    first, second = Link(), Link()
    await reader.attach(first)
    first.wires[0].deliver(b"a", tag=7, headers={"x-stream-offset": 0})
    await until(lambda: messages)
    reader.detach()
    await reader.attach(second)
    first.wires[0].deliver(b"b", tag=8, headers={"x-stream-offset": 1})  # on its way when the link went
    reader.acknowledge()
    assert (first.wires[0].answers, second.wires[0].answers) == ([], [])
    second.wires[0].deliver(b"b", tag=1, headers={"x-stream-offset": 1})
    await until(lambda: len(messages) > 1)
    reader.acknowledge()
    assert second.wires[0].answers == [("ack", 1)]
    assert messages == [(0, b"a"), (1, b"b")]


async def test_a_broker_that_falls_silent_as_reading_begins_does_not_end_it(monkeypatch):
    brokers = Brokers(monkeypatch)
    layer = AMQPChannelLayer("amqp://broker.test", timeout=0.05)
    stream = EventStream(layer, "log")
    stream.epoch = "e"
    asked = []

    async def last():
        asked.append(1)
        raise BrokerUnavailable("silent")

    monkeypatch.setattr(stream, "last", last)
    reading = asyncio.ensure_future(anext(stream.read(Position("e", 0))))
    await until(lambda: asked)

    def wires():
        return [wire for link in brokers.links for wire in link.wires if ("asgi.s.log", 16) in wire.consuming]

    await until(lambda: len(wires()) > 1)
    event = encode_batch([encode_target("e") + encode({"n": n}) for n in range(2)])
    wires()[-1].deliver(event, headers={"x-stream-offset": 0})
    assert (await reading).message == {"n": 1}
    await layer.close()


GONE = "NOT_FOUND - no queue 's' in vhost 'carillon'"
DOWN = "NOT_FOUND - home node 'rabbit@broker3' of durable queue 's' in vhost 'carillon' is down"
"""What RabbitMQ 4.0 says of a stream whose own broker has not come back yet: the stream is there."""


async def test_a_stream_whose_broker_is_down_is_not_gone():
    link = Link()
    assert await exists(link, "s")
    link.passing.failing["queue_declare"] = ChannelNotFoundEntity(GONE)
    assert not await exists(link, "s")
    link.passing.failing["queue_declare"] = ChannelNotFoundEntity(DOWN)
    with pytest.raises(BrokerUnavailable, match="home node"):
        await exists(link, "s")


async def test_a_log_whose_broker_is_down_is_read_on_when_it_is_back(monkeypatch):
    Brokers(monkeypatch)
    layer = AMQPChannelLayer("amqp://broker.test", timeout=0.05)
    stream = EventStream(layer, "log")
    stream.epoch = "e"
    said = [DOWN, GONE]

    async def attach(reader, link):
        raise ChannelNotFoundEntity(said.pop(0))

    monkeypatch.setattr("asgi_amqp.event_stream.StreamReader.attach", attach)
    with pytest.raises(PositionGone):
        await anext(stream.read(Position("e", 0)))
    assert said == []
    await layer.close()


async def test_the_end_of_a_log_whose_broker_is_down_is_not_known(monkeypatch):
    Brokers(monkeypatch)
    layer = AMQPChannelLayer("amqp://broker.test", timeout=0.05)
    stream = EventStream(layer, "log")
    stream.epoch = "e"

    async def last_chunk(*arguments):
        raise ChannelNotFoundEntity(DOWN)

    monkeypatch.setattr("asgi_amqp.event_stream.last_chunk", last_chunk)
    with pytest.raises(BrokerUnavailable, match="home node"):
        await stream.last()
    assert stream.epoch == "e"
    await layer.close()


async def test_a_look_at_a_stream_that_is_given_up_leaves_no_consumer(monkeypatch):
    """It may consume all the same, and what nobody takes would gather for as long as the link lives."""
    brokers = Brokers(monkeypatch, GatedLink)
    layer = AMQPChannelLayer("amqp://broker.test")
    link = await layer.session().receiver.supervisor.link(5)
    link.may_consume.clear()
    looking = asyncio.create_task(peek(link, "s", LAST, 5))
    await until(lambda: consumed(link, "s"))
    looking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await looking
    (wire,) = consumed(link, "s")
    await until(lambda: wire.closed, 1)
    link.may_consume.set()
    wire.deliver(b"x", headers={"x-stream-offset": 0})
    assert brokers.links == [link]
    assert not link.lost.done()
    await layer.close()


async def test_who_gives_up_a_look_at_a_stream_does_not_wait_for_a_broker_that_is_silent():
    class Silent(GatedLink):
        async def wire(self, **options):
            wire = await super().wire(**options)
            wire.close = asyncio.Event().wait
            return wire

    link = Silent()
    link.may_consume.clear()
    looking = asyncio.create_task(peek(link, "s", LAST, 5))
    await until(lambda: consumed(link, "s"))
    looking.cancel()
    await asyncio.wait([looking], timeout=1)
    assert looking.cancelled()
    await link.close()
