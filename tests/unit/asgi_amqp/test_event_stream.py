"""An event stream on links that a test answers for: its reader."""

import asyncio

import pytest
from asgiref.sync import async_to_sync

from asgi_amqp import BrokerUnavailable, Position, event_stream
from asgi_amqp.codec import NOTHING, encode, encode_batch, encode_target
from asgi_amqp.event_stream import EventStream
from asgi_amqp.worker import Worker
from tests.unit.asgi_amqp.links import until
from tests.unit.asgi_amqp.test_sessions import body


def reading(brokers):
    """The wires on which the log is read."""
    return [
        wire
        for link in brokers.links for wire in link.wires
        if any(queue == "asgi.s.log" for queue, _ in wire.consuming)
    ]  # fmt: skip


def read(layer):
    """A reader that waits for what follows the first position, without asking for the epoch."""
    stream = EventStream(layer, "log")
    stream.epoch = "ep"
    return asyncio.create_task(anext(stream.read(Position("ep", 0))))


@pytest.mark.parametrize("told", ["by the broker", "by nobody"])
async def test_a_reader_of_a_layer_that_was_closed_ends_and_opens_nothing_again(make, brokers, told):
    layer = make(timeout=0.2)
    waiting = read(layer)
    await until(lambda: reading(brokers))
    links, (wire,) = list(brokers.links), reading(brokers)
    await layer.close()
    if told == "by the broker":
        wire.channel.closing.set_result(None)  # as aiormq does when a channel ends
    with pytest.raises(BrokerUnavailable, match="closed"):
        await asyncio.wait_for(waiting, 5)
    assert brokers.links == links
    assert not layer._sessions


async def test_a_reader_that_waits_for_a_connection_hears_that_its_layer_was_closed(make, brokers):
    layer = make()
    brokers.found = [BrokerUnavailable("down")]
    waiting = read(layer)
    await until(lambda: brokers.tried)
    await layer.close()
    with pytest.raises(BrokerUnavailable, match="closed"):
        await asyncio.wait_for(waiting, 5)
    assert not layer._sessions


FOUNDED = {name: encode_target(name) + NOTHING for name in ("one", "two")}
FIRST_EVENT = encode_target("one") + encode({"n": 1})


@pytest.mark.parametrize(
    ("newest", "first"),
    [
        ([FOUNDED["one"]], [FOUNDED["one"]]),
        ([FOUNDED["two"]], [FOUNDED["one"]]),
        ([FOUNDED["two"]], [FOUNDED["one"], FOUNDED["two"]]),
        (
            [FOUNDED["one"], FIRST_EVENT, FOUNDED["two"]],
            [],
        ),  # it was found empty before
        ([FIRST_EVENT], []),
    ],
)
async def test_the_first_who_founded_a_log_gave_it_its_epoch(make, monkeypatch, newest, first):
    def answering(records):
        async def answer(*_):
            return [(0, encode_batch(records))] if records else []

        return answer

    class Link:
        async def attempt(self, call):
            pass

    monkeypatch.setattr(event_stream, "declare", answering([]))
    monkeypatch.setattr(event_stream, "last_chunk", answering(newest))
    monkeypatch.setattr(event_stream, "peek", answering(first))
    assert await EventStream(make(), "log")._open(Link()) == "one"


async def test_a_log_is_written_from_synchronous_code(make, brokers):
    """The links belong to another loop than that of the call, whose deadline nobody would keep."""
    stream = EventStream(make(timeout=0.3), "log")
    stream.epoch = "ep"
    with pytest.raises(BrokerUnavailable):
        await asyncio.wait_for(asyncio.to_thread(async_to_sync(stream.publish), {"n": 1}), 10)


async def test_what_goes_on_needs_a_loop_that_does(make, brokers):
    async def handle(message):
        pass

    async def read():
        await anext(EventStream(layer, "log").read())

    layer = make(timeout=0.3)
    for call in (read, Worker(layer, handle, "jobs").run):
        with pytest.raises(RuntimeError, match="use this in a loop that lasts"):
            await asyncio.wait_for(asyncio.to_thread(async_to_sync(call)), 10)


async def begun(make, brokers):
    """A reader that waits for its first event, and the wire that it reads on."""
    stream = EventStream(make(), "log")
    stream.epoch = "ep"
    events = stream.read(Position("ep", 0))
    waiting = asyncio.create_task(anext(events))
    await until(lambda: reading(brokers))
    (wire,) = reading(brokers)
    return events, waiting, wire


async def test_a_reader_has_few_batches_in_hand_until_it_has_read_them(make, brokers):
    events, waiting, wire = await begun(make, brokers)
    assert wire.consuming == [("asgi.s.log", 16)]
    for offset in range(3):
        batch = body("ep", {"n": offset}, {"n": offset})
        wire.deliver(batch, tag=offset + 1, headers={"x-stream-offset": offset})
        await asyncio.sleep(0)  # each in a turn of its own
    got = [(await waiting).position.number] + [(await anext(events)).position.number for _ in range(4)]
    assert got == [1, 4096, 4097, 8192, 8193]
    assert wire.answers == []
    waiting = asyncio.create_task(anext(events))
    await until(lambda: wire.answers == [("ack", 3)])
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


async def test_a_slow_reader_has_no_more_in_hand_than_the_prefetch(make, brokers):
    """The broker sends what the prefetch allows, each message in a turn of its own."""
    events, waiting, wire = await begun(make, brokers)
    sent = 0

    async def broker():
        nonlocal sent
        while True:
            acknowledged = max((tag for how, tag, *_ in wire.answers if how == "ack"), default=0)
            if sent - acknowledged < 16:
                headers = {"x-stream-offset": sent}
                sent += 1
                wire.deliver(body("ep", {"n": sent}), tag=sent, headers=headers)
            await asyncio.sleep(0)

    sending = asyncio.create_task(broker())
    async with asyncio.timeout(20):
        await waiting
        for read in range(2, 50):
            await asyncio.sleep(0.001)
            await anext(events)
            assert sent - read <= 17
    sending.cancel()
    await events.aclose()


@pytest.mark.parametrize(("broker", "said"), [("down", "is down"), ("silent", "does not answer")])
async def test_the_deadline_of_an_event_holds_though_its_log_is_not_open_yet(make, brokers, broker, said):
    layer = make(timeout=60)
    stream = EventStream(layer, "log")
    if broker == "down":
        brokers.found = [BrokerUnavailable("it is down")]
    else:
        link = await layer.session().receiver.supervisor.link(5)
        link.passing.gate.clear()
    with pytest.raises(BrokerUnavailable, match=rf"log .* 0\.05 s: .*{said}"):
        await asyncio.wait_for(stream.publish({"n": 1}, timeout=0.05), 5)
    assert not stream._opening.locked()
