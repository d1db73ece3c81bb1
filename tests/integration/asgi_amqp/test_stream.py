"""Event streams on a real broker: positions, tailing, replay, and every way in which a position is lost."""

import asyncio
import contextlib
from dataclasses import replace

import pytest
from aiormq.exceptions import ChannelPreconditionFailed
from asgiref.sync import async_to_sync

from asgi_amqp import stream
from asgi_amqp.event_stream import EventStream, PositionGone
from asgi_amqp.exceptions import BrokerUnavailable
from asgi_amqp.options import Options, Target
from asgi_amqp.position import Position
from asgi_amqp.supervisor import Supervisor
from tests.integration.asgi_amqp.broker import eventually


def event(number, **more):
    return {"type": "a", "number": number, **more}


async def collect(log, count, since=None):
    """The first `count` events of a reader."""
    events = []
    async with asyncio.timeout(60), contextlib.aclosing(log.read(since)) as reader:
        async for each in reader:
            events.append(each)
            if len(events) == count:
                return events


def numbers(events):
    return [each.message["number"] for each in events]


async def test_every_event_has_a_position_and_can_be_read_on_from(make_layer):
    log = EventStream(make_layer(), "log")
    start = await log.last()
    await log.publish_many([event(number) for number in range(300)])
    await log.publish(event(300))
    events = await collect(log, 301, start)
    assert numbers(events) == list(range(301))
    offsets = [each.position.number for each in events]
    assert offsets == sorted(set(offsets))
    assert await log.last() == events[-1].position
    for index in (0, 7, 299):  # in the middle of a batch too
        since = Position.parse(str(events[index].position))
        assert await collect(log, 300 - index, since) == events[index + 1 :]


async def test_a_log_is_written_and_asked_from_synchronous_code(make_layer):
    log = EventStream(make_layer(), "log")
    start = await asyncio.to_thread(async_to_sync(log.last))
    for number in range(3):
        await asyncio.to_thread(async_to_sync(log.publish), event(number))
    assert numbers(await collect(EventStream(make_layer(), "log"), 3, start)) == [0, 1, 2]
    assert await asyncio.to_thread(async_to_sync(log.last)) > start


async def test_a_tail_begins_with_what_comes_next(make_layer):
    log = EventStream(make_layer(), "log")
    await log.publish_many([event(0), event(1)])
    heard = []

    async def tail():
        async for each in log.read():
            heard.append(each.message["number"])

    task = asyncio.create_task(tail())
    number = 100
    while not heard:  # until the tail has begun
        number += 1
        await log.publish(event(number))
        await asyncio.sleep(0.02)
    await log.publish_many([event(each) for each in range(200, 210)])
    await eventually(lambda: heard[-1] == 209)
    assert heard[-10:] == list(range(200, 210))
    assert heard[0] > 100
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_all_who_open_a_log_at_once_agree_on_its_epoch(make_layer):
    logs = [EventStream(make_layer(), "log") for _ in range(4)]
    assert len({*await asyncio.gather(*(log.open() for log in logs))}) == 1
    await asyncio.gather(*(log.publish(event(number)) for number, log in enumerate(logs)))
    late = EventStream(make_layer(), "log")
    events = await collect(late, 4, Position(logs[0].epoch, 0))
    assert sorted(numbers(events)) == [0, 1, 2, 3]


async def test_a_log_that_is_deleted_begins_anew_and_old_positions_say_so(make_layer, broker):
    layer = make_layer()
    log, other = EventStream(layer, "log"), EventStream(make_layer(), "log")
    await log.publish_many([event(number) for number in range(10)])
    old = await log.last()
    await other.open()
    tail = log.read(old)
    await log.publish(event(10))
    assert (await anext(tail)).message["number"] == 10  # it reads
    tail = asyncio.create_task(anext(tail))
    await broker.do("ctl", "delete_queue", "--vhost", "carillon", f"{layer.prefix}.s.log")
    with pytest.raises(PositionGone):
        await asyncio.wait_for(tail, 60)
    await log.publish(event(20))
    assert log.epoch != old.epoch
    await other.publish(event(21))  # it had not noticed
    assert other.epoch == log.epoch
    with pytest.raises(PositionGone, match="began anew"):
        await collect(other, 1, old)
    assert numbers(await collect(other, 2, Position(log.epoch, 0))) == [20, 21]


async def test_what_retention_has_dropped_is_never_called_whole(make_layer):
    log = EventStream(make_layer(), "log", max_bytes=200_000, segment_bytes=50_000)
    await log.publish(event(-1))
    first = await log.last()

    async def read_for_a_second():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1), contextlib.aclosing(log.read(first)) as reader:
                async for _ in reader:
                    pass

    async def write_and_read():
        for number in range(400):
            await log.publish_many([event(number, text="x" * 10_000) for _ in range(10)])
            if number % 20 == 19:
                await read_for_a_second()

    with pytest.raises(PositionGone, match="has left the log"):
        await write_and_read()
    kept = await log.last()
    await log.publish(event(1))
    assert numbers(await collect(log, 1, kept)) == [1]


async def test_a_slow_reader_that_retention_overtakes_hears_of_it(make_layer):
    """It is attached all the time: the broker moves it on to the first segment that is left."""
    limits = {"max_bytes": 2_000_000, "segment_bytes": 500_000}
    log, writer = EventStream(make_layer(), "log", **limits), EventStream(make_layer(), "log", **limits)
    start = await log.last()
    await writer.publish(event(0))
    reader = log.read(start)
    last = (await anext(reader)).message["number"]
    sent, oldest, supervisor = 1, 0, log._layer.session().receiver.supervisor
    while oldest < 200:  # it has 16 in hand, and the sockets hold a few more
        await writer.publish_many([event(sent + number, text="x" * 20_000) for number in range(50)])
        sent += 50
        oldest, _ = await stream.first_from(await supervisor.link(20), log._stream.name, 0)

    async def read_on():
        nonlocal last
        async for each in reader:
            assert each.message["number"] == last + 1
            last += 1

    with pytest.raises(PositionGone, match="what follows has left the log"):
        await asyncio.wait_for(read_on(), 60)
    assert last < sent - 1


async def test_what_others_write_into_a_log_stops_nobody(make_layer):
    log, fresh = EventStream(make_layer(), "log"), EventStream(make_layer(), "log")
    start = await log.last()
    name, supervisor = log._stream.name, log._layer.session().receiver.supervisor
    for number, nonsense in enumerate([b"nonsense", b"\x92\x07\x80"]):
        link = await supervisor.link(20)
        await link.attempt(lambda channel: channel.basic_publish(nonsense, routing_key=name))  # noqa: B023
        if number == 0:
            await log.publish(event(0))
    end = await log.last()
    assert await fresh.open() == start.epoch
    await fresh.publish(event(1))
    assert numbers(await collect(fresh, 2, start)) == [0, 1]
    assert numbers(await collect(fresh, 1, end)) == [1]
    assert fresh._layer.stats.lost["undecodable"] == 2


async def test_a_position_beyond_the_end_is_refused(make_layer):
    log = EventStream(make_layer(timeout=5.0), "log")
    await log.publish(event(0))
    end = await log.last()
    with pytest.raises(PositionGone, match="beyond the end"):
        await collect(log, 1, Position(end.epoch, end.number + 2**20))
    with pytest.raises(PositionGone, match="began anew"):
        await collect(log, 1, Position("another", 0))


async def test_a_reader_goes_on_where_it_was_when_connections_are_cut(make_layer, broker):
    reader = make_layer()
    log, writer = EventStream(reader, "log"), EventStream(make_layer(), "log")
    start = await log.last()
    heard, sent = [], 0

    async def tail():
        async for each in log.read(start):
            heard.append((each.position.number, each.message["number"]))

    task = asyncio.create_task(tail())
    for turn in range(3):
        while sent < 200 * (turn + 1):
            await writer.publish_many([event(sent), event(sent + 1)], 60)
            sent += 2
        await eventually(lambda: len(heard) > 10)
        await broker.do("close_connections")
        await eventually(lambda: reader.stats.reconnects > turn)  # noqa: B023
    await eventually(lambda: heard[-1][1] == sent - 1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert [offset for offset, _ in heard] == sorted({offset for offset, _ in heard})
    seen = [number for _, number in heard]
    # A publisher that was cut off may have repeated a batch: nothing is missing, and nothing is out of order.
    assert set(seen) == set(range(sent))
    assert [number for index, number in enumerate(seen) if number not in seen[:index]] == list(range(sent))


async def test_the_end_is_the_end_of_a_chunk_however_many_messages_it_holds(broker):
    """The broker gives a reader at "last" a whole chunk, in as many pieces as the socket likes."""
    options = Options((Target.parse(broker.url),), "test")
    attached = asyncio.Event()
    writer = stream.StreamWriter("end-of-chunk")

    async def attach(link):
        await stream.declare(link, stream.Stream(writer.name))
        await writer.attach(link)
        attached.set()

    supervisor = Supervisor(options, attach, lambda link, reason: writer.lost(reason))
    try:
        link = await supervisor.link(20)
        assert await stream.end_of(link, writer.name) == -1
        for total in (1, 2000):
            done = [writer.publish(b"x" * 3000) for _ in range(total)]
            await asyncio.gather(*done)
        assert await stream.end_of(link, writer.name) == 2000
        assert await stream.first_from(link, writer.name, 1500) == (1500, 3000)
        await link.attempt(lambda channel: channel.queue_delete(writer.name))
        assert not await stream.exists(link, writer.name)
    finally:
        await supervisor.close()


async def test_a_broker_that_answers_and_is_of_no_use_is_passed_by(broker):
    """As one that has no copy of the stream, because it joined the cluster later."""
    there = Target.parse(broker.url)
    options = Options((there, replace(there, host="localhost")), "test")
    useless = []

    async def attach(link):
        useless.append(link.target.host)
        if link.target.host == useless[0]:
            raise BrokerUnavailable("no copy here")

    supervisor = Supervisor(options, attach, lambda link, reason: None)
    try:
        link = await supervisor.link(20)
        assert link.target.host != useless[0]
    finally:
        await supervisor.close()


async def test_a_reader_on_a_broker_without_a_copy_hears_of_it(layer, monkeypatch):
    log = EventStream(layer, "events")
    await log.publish(event(1))

    async def refused(self, link):
        raise ChannelPreconditionFailed("queue 'events' does not have a running replica on the local node")

    monkeypatch.setattr(stream.StreamReader, "attach", refused)
    with pytest.raises(BrokerUnavailable, match=r"cannot be read: .*does not have a running replica"):
        await collect(log, 1, Position(log.epoch, 0))
    with pytest.raises(BrokerUnavailable, match=r"cannot be read: .*does not have a running replica"):
        await collect(log, 1)
