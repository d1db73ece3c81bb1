"""Workers and durable channels at the edges."""

import asyncio
import contextlib
import time

import pytest

from asgi_amqp import dead_letters
from asgi_amqp.worker import Worker
from tests.integration.asgi_amqp.broker import eventually
from tests.integration.asgi_amqp.stub import Stub, commands


@contextlib.asynccontextmanager
async def working(*arguments, **options):
    """A worker in the background that is stopped at the end."""
    worker = Worker(*arguments, handle_signals=False, **options)
    running = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        worker.stop()
        await asyncio.wait_for(running, 40)


@pytest.mark.parametrize("how", ["awaited", "raised", "inner"])
async def test_a_handler_that_awaits_something_cancelled_has_failed(make_layer, how):
    layer = make_layer(durable={"jobs": {"batch": 1}})
    handled = []

    async def handle(message):
        if message["number"] == 0 and not handled:
            handled.append("failed")
            if how == "raised":
                raise asyncio.CancelledError
            if how == "inner":
                asyncio.current_task().cancel()
                await asyncio.sleep(0)
            sleeping = asyncio.create_task(asyncio.sleep(60))
            await asyncio.sleep(0)
            sleeping.cancel()
            await sleeping
        handled.append(message["number"])

    async with working(layer, handle, "jobs", retry=(0.01, 0.1)) as worker:
        for number in range(3):
            await layer.send("jobs", {"type": "a", "number": number})
        await eventually(lambda: {0, 1, 2} <= set(handled), 20)
        assert worker.failed == 1
        assert worker.handled == 3


@pytest.mark.parametrize("batch", [1, 256])
async def test_what_fails_again_and_again_holds_up_nobody(make_layer, batch):
    layer = make_layer(durable={"jobs": {"batch": batch, "delivery_limit": 100}})
    handled, attempts = [], 0

    async def handle(message):
        nonlocal attempts
        if message["number"] == "poison":
            attempts += 1
            raise RuntimeError("always")
        handled.append(message["number"])

    async with working(layer, handle, "jobs", retry=(8.0, 30.0)):
        await layer.send("jobs", {"type": "a", "number": "poison"})
        await eventually(lambda: attempts)
        began = time.monotonic()
        await asyncio.gather(*(layer.send("jobs", {"type": "a", "number": n}) for n in range(50)))
        await eventually(lambda: len(handled) == 50)
        assert time.monotonic() - began < 6
        assert handled == list(range(50))
        await eventually(lambda: attempts >= 2)  # and it is tried again, after its pause
        assert time.monotonic() - began > 3


async def test_single_tries_an_event_of_a_batch_again_in_its_place_until_it_is_a_dead_letter(make_layer):
    layer = make_layer(durable={"jobs": {"single": True, "delivery_limit": 2}})
    handled, letters = [], []

    async def handle(message):
        handled.append(message["number"])
        if message.pop("number") in (3, 5, 9) and (handled[-1] == 5 or handled.count(handled[-1]) < 3):
            raise RuntimeError("not yet")

    await layer.send_many([("jobs", {"type": "a", "number": number}) for number in range(12)])
    async with working(layer, handle, "jobs", retry=(0.01, 0.02)) as worker:
        await eventually(lambda: 11 in handled)
        assert worker.failed == 2 + 3 + 2
    assert handled == [0, 1, 2, 3, 3, 3, 4, 5, 5, 5, 6, 7, 8, 9, 9, 9, 10, 11]
    await dead_letters.go_through(layer, "jobs", say=letters.append)
    assert [(each.reason, each.messages) for each in letters] == [
        ("delivery_limit", [{"type": "a", "number": 5}])
    ]
    assert (await dead_letters.depth(layer, "jobs")).messages == 0


async def test_a_stop_while_events_of_a_batch_wait_sends_them_back_alone(make_layer):
    layer = make_layer(durable=["jobs"])
    handled = []

    async def handle(message):
        handled.append(message["number"])
        if handled.count(message["number"]) < 2 and message["number"] % 3 == 1:
            raise RuntimeError("not yet")

    await layer.send_many([("jobs", {"type": "a", "number": number}) for number in range(12)])
    async with working(layer, handle, "jobs", retry=(60.0, 60.0)):
        await eventually(lambda: 11 in handled)
    assert handled == list(range(12))
    async with working(layer, handle, "jobs"):
        await eventually(lambda: len(handled) >= 16)
    assert sorted(handled[12:]) == [1, 4, 7, 10]


async def test_what_was_never_read_has_not_failed(make_layer, broker):
    """Who receives now and then gives back what was fetched ahead: that is no attempt."""
    layer = make_layer(durable={"jobs": {"delivery_limit": 2, "batch": 1}})
    for number in range(20):
        await layer.send("jobs", {"type": "a", "number": number})
    got = []
    for _ in range(5):
        got.append((await asyncio.wait_for(layer.receive("jobs"), 20))["number"])
        await asyncio.sleep(1.5)  # longer than it is consumed for nobody
    while len(got) < 20:
        got.append((await asyncio.wait_for(layer.receive("jobs"), 10))["number"])
    assert sorted(got) == list(range(20))


async def test_a_failure_is_rejected_and_what_is_given_back_is_not(make_layer):
    """On the wire. RabbitMQ from 4.3 on counts a reject as an attempt, and a nack not."""
    async with Stub() as stub:
        layer = make_layer(url=stub.url, durable={"jobs": {"batch": 1}})
        attempts, release = [], asyncio.Event()

        async def handle(message):
            attempts.append(message["number"])
            if message["number"] == 0 and attempts.count(0) < 3:
                raise RuntimeError("not yet")
            if message["number"] == 1:
                await release.wait()

        def sent(method):
            return [value for _, value in stub.seen if isinstance(value, method)]

        async with working(layer, handle, "jobs", concurrency=4, retry=(0.01, 0.01)) as worker:
            await layer.send("jobs", {"type": "a", "number": 0})
            await eventually(lambda: attempts.count(0) == 3)
            assert len(sent(commands.Basic.Reject)) == 2
            assert all(each.requeue for each in sent(commands.Basic.Reject))
            assert not sent(commands.Basic.Nack)
            for _ in range(4):
                await layer.send("jobs", {"type": "a", "number": 1})
            await eventually(lambda: attempts.count(1) == 4)
            worker.stop()
            release.set()
        assert not sent(commands.Basic.Nack)  # what runs was finished, and nothing else was there

        async def slow(message):
            attempts.append(message["number"])
            await asyncio.sleep(3600)

        before = len(sent(commands.Basic.Reject))
        async with working(layer, slow, "jobs", concurrency=2, drain_timeout=0.1) as worker:
            for _ in range(4):
                await layer.send("jobs", {"type": "a", "number": 2})
            await eventually(lambda: attempts.count(2) == 2)
            worker.stop()
        # Either way of giving back will do, a nack or the end of the channel, but it is no failure.
        assert len(sent(commands.Basic.Reject)) == before
        assert all(each.requeue for each in sent(commands.Basic.Nack))
        assert len(stub.queues[f"{layer.prefix}.d.jobs"]) == 4


async def test_a_message_that_always_fails_ends_by_counts_of_rejects(make_layer):
    """What nobody can read is rejected for good, and not asked for again."""
    async with Stub() as stub:
        layer = make_layer(url=stub.url, durable=["jobs"])

        async def handle(message):
            pass

        async with working(layer, handle, "jobs") as worker:
            await layer.send("jobs", {"type": "a"})
            await eventually(lambda: worker.handled == 1)
            stub.publish("d.jobs", commands.Basic.Properties(), b"no msgpack")
            await eventually(lambda: layer.stats.lost["undecodable"] == 1)
            await layer.send("jobs", {"type": "a"})
            await eventually(lambda: worker.handled == 2)
        given_back = [
            value for _, value in stub.seen
            if isinstance(value, (commands.Basic.Reject, commands.Basic.Nack)) and value.requeue
        ]  # fmt: skip
        assert not given_back
