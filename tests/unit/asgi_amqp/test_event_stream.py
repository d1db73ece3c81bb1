"""An event stream on links that a test answers for: its reader."""

import asyncio

import pytest
from asgiref.sync import async_to_sync

from asgi_amqp import BrokerUnavailable, Position, event_stream
from asgi_amqp.codec import NOTHING, decode, encode, encode_batch, encode_target
from asgi_amqp.event_stream import EventStream, PositionGone
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
NONSENSE = [
    b"what others write",
    encode_batch([b"\x07" + encode({})]),
    encode_batch([encode_target("x") + b"\x07"]),
]


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
        ([FIRST_EVENT, *NONSENSE], []),
        ([FOUNDED["two"], *NONSENSE], [*NONSENSE, FOUNDED["one"]]),
        (NONSENSE, [*NONSENSE, FOUNDED["one"]]),
    ],
)
async def test_the_first_who_founded_a_log_gave_it_its_epoch(make, monkeypatch, newest, first):
    def answering(records):
        async def answer(*_):
            sound = [record for record in records if record not in NONSENSE]
            others = [(number, record) for number, record in enumerate(NONSENSE) if record in records]
            return others + ([(9, encode_batch(sound))] if sound else [])

        return answer

    class Link:
        async def attempt(self, call):
            pass

    monkeypatch.setattr(event_stream, "declare", answering([]))
    monkeypatch.setattr(event_stream, "last_chunk", answering(newest))
    monkeypatch.setattr(event_stream, "peek", answering(first))
    assert await EventStream(make(), "log")._open(Link()) == "one"


async def test_a_log_that_holds_nothing_but_what_others_wrote_is_founded(make, monkeypatch):
    log = [(0, NONSENSE[0]), (2, NONSENSE[1])]

    async def declare(*_):
        pass

    async def last_chunk(*_):
        return log[-1:]

    async def peek(link, name, start, timeout, most):
        return [each for each in log if each[0] >= start][:1]

    class Link:
        async def attempt(self, call):
            pass

    async def append(epoch, events, timeout):
        log.append((log[-1][0] + 1, encode_batch(events)))

    stream = EventStream(make(), "log")
    monkeypatch.setattr(event_stream, "declare", declare)
    monkeypatch.setattr(event_stream, "last_chunk", last_chunk)
    monkeypatch.setattr(event_stream, "peek", peek)
    monkeypatch.setattr(stream, "_append", append)
    epoch = await asyncio.wait_for(stream._open(Link()), 5)
    assert [epoch for epoch, _ in decode(log[2][1])] == [epoch]
    assert len(log) == 3


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


async def skipped(make, brokers):
    """A reader that has read two messages and is given the fifth: the wire on which it looks."""
    events, waiting, wire = await begun(make, brokers)
    for offset in (0, 1, 4):
        wire.deliver(body("ep", {"n": offset}, {"n": offset}), headers={"x-stream-offset": offset})
    assert [(await waiting).position.number] + [(await anext(events)).position.number for _ in range(2)] == [
        1, 4096, 4097,
    ]  # fmt: skip
    waiting = asyncio.create_task(anext(events))
    await until(lambda: len(reading(brokers)) == 2)
    assert not waiting.done()
    return events, waiting, reading(brokers)[1]


@pytest.mark.parametrize("first", [3, 4])
async def test_a_slow_reader_that_retention_has_overtaken_hears_of_it(make, brokers, first):
    _, waiting, look = await skipped(make, brokers)
    look.deliver(body("ep", {}), headers={"x-stream-offset": first})
    with pytest.raises(PositionGone, match=rf"ep:4097: what follows .* begins at ep:{first * 4096}"):
        await asyncio.wait_for(waiting, 5)


async def test_offsets_that_the_broker_took_for_itself_are_no_gap(make, brokers):
    events, waiting, look = await skipped(make, brokers)
    look.deliver(body("ep", {}), headers={"x-stream-offset": 2})
    assert (await asyncio.wait_for(waiting, 5)).position.number == 4 * 4096
    assert (await asyncio.wait_for(anext(events), 5)).position.number == 4 * 4096 + 1
    await events.aclose()


async def test_a_reader_whose_link_goes_while_it_looks_compares_anew(make, brokers):
    _, waiting, _ = await skipped(make, brokers)
    brokers.links[0].give_up("cut")
    for wire in reading(brokers):
        wire.channel.closing.set_result(None)
    await until(lambda: len(brokers.links) > 1 and len(reading(brokers)) == 3)
    reading(brokers)[2].deliver(body("ep", {}), headers={"x-stream-offset": 4})
    with pytest.raises(PositionGone, match="has left the log"):
        await asyncio.wait_for(waiting, 5)


async def test_what_others_wrote_into_a_log_is_counted_and_passed_over(make, brokers):
    layer = make()
    events, waiting, wire = await begun(lambda: layer, brokers)
    bodies = [FOUNDED["one"], *NONSENSE, encode_batch([]), body("ep", {"n": 1}), NONSENSE[0]]
    for offset, each in enumerate(bodies):
        wire.deliver(each, headers={"x-stream-offset": offset})
    assert await asyncio.wait_for(waiting, 5) == (Position("ep", 5 * 4096), {"n": 1})
    waiting = asyncio.create_task(anext(events))
    await until(lambda: layer.stats.lost["undecodable"] == 5)
    brokers.links[0].give_up("cut")
    wire.channel.closing.set_result(None)
    await until(lambda: len(reading(brokers)) == 2)
    for offset, each in ((6, NONSENSE[0]), (7, body("ep", {"n": 2}))):  # from where it was, which it knows
        reading(brokers)[1].deliver(each, headers={"x-stream-offset": offset})
    assert await asyncio.wait_for(waiting, 5) == (Position("ep", 7 * 4096), {"n": 2})
    assert layer.stats.lost["undecodable"] == 5
    await events.aclose()


@pytest.mark.parametrize("newest", [*NONSENSE, encode_batch([])])
async def test_the_end_of_a_log_is_known_though_somebody_else_wrote_it(make, brokers, monkeypatch, newest):
    stream = EventStream(make(), "log")
    stream.epoch = "ep"

    async def last_chunk(*_):
        return [(6, body("ep", {})), (7, newest)]

    monkeypatch.setattr(event_stream, "last_chunk", last_chunk)
    assert await stream.last() == Position("ep", 7 * 4096)


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
