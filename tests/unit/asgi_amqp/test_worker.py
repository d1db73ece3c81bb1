"""The worker: what it tries again, in which order, and what a stop leaves."""

import asyncio
import contextlib
import os
import signal

import pytest

from asgi_amqp import BrokerUnavailable, ChannelFull
from asgi_amqp.codec import decode
from asgi_amqp.worker import Worker
from tests.unit.asgi_amqp.links import until
from tests.unit.asgi_amqp.test_sessions import body, consuming, sent
from tests.unit.asgi_amqp.test_sessions_edges import GatedLink


class Handler:
    """Notes what it is given, and fails on the numbers in `failing`, once for each time they are there."""

    def __init__(self, *failing):
        self.failing = list(failing)
        self.given = []
        self.numbers = []

    async def __call__(self, message):
        self.given.append(dict(message))
        self.numbers.append(message["n"])
        number = message.pop("n")  # its own, it may
        message["job"] = object()
        if number in self.failing:
            self.failing.remove(number)
            raise RuntimeError("not yet")


def confirm(link):
    """The broker confirms what left."""
    for wire in link.wires:
        for _, _, tag in wire.published:
            if wire.callbacks.get("on_confirm"):
                wire.callbacks["on_confirm"](tag, False, True)


@contextlib.asynccontextmanager
async def working(layer, brokers, handler, *, retry=(0.001, 0.002), **options):
    """The worker, and the wire on which it consumes."""
    worker = Worker(layer, handler, "jobs", handle_signals=False, retry=retry, **options)
    running = asyncio.create_task(worker.run())
    try:
        yield worker, await consuming(brokers, "asgi.d.jobs")
    finally:
        worker.stop()
        await asyncio.wait_for(running, 10)


def out(brokers):
    """Events that left again, for the channel."""
    return [event for link in brokers.links for event in sent(link) if event[0] == "jobs"]


async def confirmed(brokers, wire, answer):
    """Confirm what leaves until the wire has heard `answer`."""

    def told():
        for link in brokers.links:
            confirm(link)
        return answer in wire.answers

    await until(told)


# Trying again


async def test_what_is_sent_again_is_what_came_and_not_what_the_handler_made_of_it(make, brokers):
    handler = Handler(2)
    async with working(make(durable=["jobs"]), brokers, handler) as (_, wire):
        wire.deliver(body("jobs", {"n": 1, "id": "a"}, {"n": 2, "id": "b"}), tag=1)
        await confirmed(brokers, wire, ("ack", 1))
    assert out(brokers) == [("jobs", {"n": 2, "id": "b"})]


async def test_the_others_of_a_batch_are_handled_once_though_what_failed_cannot_be_sent_again(make, brokers):
    layer, handler, refused = make(durable=["jobs"]), Handler(2, 3), []
    sender = layer.session().sender
    send = sender.send

    async def full(*arguments):
        refused.append(arguments)
        if len(refused) in (1, 3, 4):
            raise ChannelFull("the queue of channel 'jobs' is full")
        await send(*arguments)

    sender.send = full
    async with working(layer, brokers, handler) as (worker, wire):
        wire.deliver(body("jobs", {"n": 1}, {"n": 2}, {"n": 3}), tag=1)
        await confirmed(brokers, wire, ("ack", 1))
        assert worker.handled == 1
    assert handler.numbers == [1, 2, 3]
    assert out(brokers) == [("jobs", {"n": 2}), ("jobs", {"n": 3})]  # each once
    assert ("reject", 1, True) not in wire.answers


async def test_what_failed_in_a_batch_waits_outside_the_slot_before_it_is_sent_again(make, brokers):
    handler = Handler(1)
    async with working(make(durable=["jobs"]), brokers, handler, retry=(60, 60)) as (worker, wire):
        wire.deliver(body("jobs", {"n": 1}, {"n": 2}), tag=1)
        wire.deliver(body("jobs", {"n": 3}), tag=2)
        await until(lambda: ("ack", 2) in wire.answers)
        await asyncio.sleep(0.02)
        assert handler.numbers == [1, 2, 3]
        assert not out(brokers)
        worker.stop()  # what failed goes back alone, now
        await confirmed(brokers, wire, ("ack", 1))
    assert out(brokers) == [("jobs", {"n": 1})]
    assert ("reject", 1, True) not in wire.answers


async def test_a_worker_that_stops_and_cannot_send_again_gives_the_batch_back(make, brokers):
    layer = make(durable=["jobs"])

    async def full(*_):
        raise ChannelFull("full")

    layer.session().sender.send = full
    async with working(layer, brokers, Handler(1), retry=(60, 60)) as (worker, wire):
        wire.deliver(body("jobs", {"n": 1}, {"n": 2}), tag=1)
        await until(lambda: worker._resting)
        worker.stop()
        await until(lambda: ("reject", 1, True) in wire.answers)


async def test_what_failed_in_a_batch_is_not_sent_again_where_the_batch_comes_again(make, brokers):
    handler = Handler(1)
    async with working(make(durable=["jobs"]), brokers, handler, retry=(0.05, 0.05)) as (worker, wire):
        wire.deliver(body("jobs", {"n": 1}, {"n": 2}), tag=1)
        await until(lambda: worker._resting)
        brokers.links[0].give_up("cut")
        await until(lambda: not worker._resting)
        await asyncio.sleep(0.1)
        assert not out(brokers)
        assert not worker._unfinished


# In order


async def test_single_tries_an_event_of_a_batch_again_before_those_that_follow(make, brokers):
    handler = Handler(1, 1, 3)
    async with working(make(durable={"jobs": {"single": True}}), brokers, handler) as (worker, wire):
        wire.deliver(body("jobs", {"n": 1, "id": "a"}, {"n": 2}, {"n": 3}), tag=1)
        await until(lambda: ("ack", 1) in wire.answers)
        assert (worker.handled, worker.failed) == (3, 3)
    assert handler.numbers == [1, 1, 1, 2, 3, 3]
    assert handler.given[1] == {"n": 1, "id": "a"}
    assert not out(brokers)


async def test_single_makes_a_dead_letter_of_what_always_fails_in_a_batch(make, brokers):
    handler = Handler(1, 1, 1, 1)
    layer = make(durable={"jobs": {"single": True, "delivery_limit": 2}})
    async with working(layer, brokers, handler) as (_, wire):
        wire.deliver(body("jobs", {"n": 1, "id": "a"}, {"n": 2}), tag=1)
        letters = []

        def written():
            letters[:] = [
                (each, *published)
                for link in brokers.links for each in link.wires for published in each.published
                if published[0] == ["asgi.d.jobs.dead"]
            ]  # fmt: skip
            return letters

        await until(written)
        assert handler.numbers == [1, 1, 1]
        letters[0][0].callbacks["on_confirm"](1, False, False)  # it cannot be written: once more
        await until(lambda: len(written()) == 2)
        assert handler.numbers == [1, 1, 1, 1]
        letters[1][0].callbacks["on_confirm"](1, False, True)
        await until(lambda: ("ack", 1) in wire.answers)
        assert list(decode(letters[1][2])) == [("delivery_limit", {"n": 1, "id": "a"})]
        assert all(each.closed for each, *_ in letters)
    assert handler.numbers == [1, 1, 1, 1, 2]


async def test_single_begins_nothing_behind_what_failed_when_it_stops(make, brokers):
    handler = Handler(2)
    layer = make(durable={"jobs": {"single": True}})
    async with working(layer, brokers, handler, retry=(60, 60)) as (worker, wire):
        wire.deliver(body("jobs", {"n": 1}, {"n": 2}, {"n": 3}), tag=1)
        await until(lambda: worker.failed)
        worker.stop()
        await until(lambda: ("reject", 1, True) in wire.answers)
    assert handler.numbers == [1, 2]


async def test_single_begins_nothing_behind_what_failed_when_the_link_is_lost(make, brokers):
    handler = Handler(1)
    layer = make(durable={"jobs": {"single": True}})
    async with working(layer, brokers, handler, retry=(0.03, 0.03)) as (worker, wire):
        wire.deliver(body("jobs", {"n": 1}, {"n": 2}), tag=1)
        await until(lambda: worker.failed)
        brokers.links[0].give_up("cut")
        await until(lambda: not worker._unfinished)
    assert handler.numbers == [1]


async def test_a_worker_whose_layer_was_closed_opens_nothing_again(make, brokers):
    gate, tries = asyncio.Event(), []

    async def handler(message):
        tries.append(message)
        if len(tries) > 1:
            await gate.wait()
        raise RuntimeError("always")

    layer = make(durable={"jobs": {"single": True, "delivery_limit": 1}})
    worker = Worker(layer, handler, "jobs", handle_signals=False, retry=(0.001, 0.002))
    running = asyncio.create_task(worker.run())
    wire = await consuming(brokers, "asgi.d.jobs")
    wire.deliver(body("jobs", {"n": 1}, {"n": 2}), tag=1)
    await until(lambda: len(tries) == 2)
    links = len(brokers.links)
    await layer.close()
    gate.set()  # it would be a dead letter now
    with pytest.raises(BrokerUnavailable):
        await running
    assert len(brokers.links) == links
    assert not layer._sessions


# Stopping


@pytest.mark.parametrize("how", ["stop", "cancel"])
async def test_a_worker_that_stops_begins_nothing_more_and_gives_back_what_came(make, brokers, how):
    brokers.found = [GatedLink]
    layer, handler = make(durable=["jobs"]), Handler()
    worker = Worker(layer, handler, "jobs", handle_signals=False)
    running = asyncio.create_task(worker.run())
    wire = await consuming(brokers, "asgi.d.jobs")
    wire.link.may_cancel.clear()  # the broker's answer takes its time
    wire.deliver(body("jobs", {"n": 1}), tag=1)
    wire.deliver(body("jobs", {"n": 2}), tag=2)
    await until(lambda: ("ack", 2) in wire.answers)
    wire.deliver(body("jobs", {"n": 3}), tag=3)  # no slot has seen it
    running.cancel() if how == "cancel" else worker.stop()
    await until(lambda: ("cancel", "tag-1") in wire.answers)
    wire.deliver(body("jobs", {"n": 4}, {"n": 5}), tag=4)
    await asyncio.sleep(0.02)
    assert handler.numbers in ([1, 2], [1, 2, 3])  # the slot's turn may have come before the stop's
    assert ("nack", 4) not in wire.answers  # it would come here again
    wire.link.may_cancel.set()
    await until(lambda: ("nack", 4) in wire.answers)
    await asyncio.gather(running, return_exceptions=True)
    assert ("nack", 3) in wire.answers or ("ack", 3) in wire.answers
    assert 4 not in handler.numbers
    assert running.cancelled() == (how == "cancel")


@pytest.mark.parametrize("how", ["stop", "cancel"])
async def test_a_drain_ends_in_time_though_the_broker_does_not_answer(make, brokers, how, monkeypatch):
    monkeypatch.setattr("asgi_amqp.worker.GOODBYE", 0.05)
    brokers.found = [GatedLink]
    layer, begun = make(durable=["jobs"]), asyncio.Event()

    async def handler(message):
        begun.set()
        await asyncio.sleep(60)

    worker = Worker(layer, handler, "jobs", handle_signals=False, drain_timeout=0.05)
    running = asyncio.create_task(worker.run())
    wire = await consuming(brokers, "asgi.d.jobs")
    wire.link.may_cancel.clear()
    close, closing = wire.close, []

    async def closes():
        closing.append(wire)
        await asyncio.sleep(60)

    wire.close = closes
    wire.deliver(body("jobs", {"n": 1}), tag=1)
    await begun.wait()
    running.cancel() if how == "cancel" else worker.stop()
    async with asyncio.timeout(5):
        await asyncio.wait([running])
    assert closing == [wire]  # what was not acknowledged goes back
    assert wire.answers == [("cancel", "tag-1")]
    assert running.cancelled() == (how == "cancel")
    wire.close = close
    wire.link.may_cancel.set()


async def test_what_rests_when_a_worker_stops_goes_back_to_others_and_not_to_itself(make, brokers):
    brokers.found = [GatedLink]
    async with working(make(durable=["jobs"]), brokers, Handler(1), retry=(60, 60)) as (worker, wire):
        wire.deliver(body("jobs", {"n": 1}), tag=1)
        await until(lambda: wire.consuming[1:])  # it rests, and takes up no room
        wire.link.may_cancel.clear()
        worker.stop()
        await until(lambda: ("cancel", "tag-2") in wire.answers)
        await asyncio.sleep(0.02)
        assert ("reject", 1, True) not in wire.answers
        wire.link.may_cancel.set()
        await until(lambda: ("reject", 1, True) in wire.answers)


async def test_a_worker_that_was_stopped_before_it_ran_begins_nothing(make, brokers):
    layer, handler = make(durable=["jobs"]), Handler()
    worker = Worker(layer, handler, "jobs", handle_signals=False)
    brokers.found = [GatedLink]
    link = await layer.session().receiver.supervisor.link(5)
    link.may_consume.clear()
    worker.stop()
    running = asyncio.create_task(worker.run())
    wire = await consuming(brokers, "asgi.d.jobs")
    wire.deliver(body("jobs", {"n": 1}), tag=1)
    link.may_consume.set()
    await asyncio.wait_for(running, 5)
    assert not handler.numbers
    assert ("nack", 1) in wire.answers


async def test_a_batch_that_has_begun_is_finished_when_the_worker_stops(make, brokers):
    numbers, go_on = [], asyncio.Event()

    async def handler(message):
        numbers.append(message["n"])
        await go_on.wait()

    async with working(make(durable=["jobs"]), brokers, handler) as (worker, wire):
        wire.deliver(body("jobs", {"n": 1}, {"n": 2}), tag=1)
        wire.deliver(body("jobs", {"n": 3}), tag=2)
        await until(lambda: numbers)
        worker.stop()
        await until(lambda: ("nack", 2) in wire.answers)
        go_on.set()
        await until(lambda: ("ack", 1) in wire.answers)
    assert numbers == [1, 2]


async def test_single_keeps_the_order_whatever_concurrency_says(make, brokers):
    layer, handler = make(durable={"jobs": {"single": True}}), Handler(1, 1)
    async with working(layer, brokers, handler, concurrency=2) as (_, wire):
        assert wire.consuming == [("asgi.d.jobs", 1)]
        wire.deliver(body("jobs", {"n": 1}, {"n": 2}, {"n": 3}), tag=1)
        await until(lambda: ("ack", 1) in wire.answers)
    assert handler.numbers == [1, 1, 1, 2, 3]


async def test_a_worker_ends_though_a_handler_swallows_its_cancellation(make, brokers):
    begun = asyncio.Event()

    async def handler(message):
        begun.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)

    layer = make(durable=["jobs"])
    async with working(layer, brokers, handler, drain_timeout=0.05) as (worker, wire):
        wire.deliver(body("jobs", {"n": 1}), tag=1)
        await begun.wait()
        worker.stop()
        async with asyncio.timeout(1):
            await until(lambda: ("ack", 1) in wire.answers)


async def test_a_signal_stops_all_workers_of_a_loop_and_the_next_disturbs_none_that_drains(make, brokers):
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def handler(message):
        begun.set()
        await go_on.wait()

    layer = make(durable=["jobs", "mails"])
    jobs, _ = workers = [Worker(layer, handler, channel) for channel in ("jobs", "mails")]
    running = [asyncio.create_task(worker.run()) for worker in workers]
    try:
        wire = await consuming(brokers, "asgi.d.jobs")
        await consuming(brokers, "asgi.d.mails")
        wire.deliver(body("jobs", {"n": 1}), tag=1)
        await begun.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(running[1], 5)
        assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL  # else the next ends the process
        os.kill(os.getpid(), signal.SIGTERM)
        await until(lambda: jobs._stopping.is_set())
        assert not running[0].done()
        go_on.set()
        await asyncio.wait_for(running[0], 5)
        assert ("ack", 1) in wire.answers
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        for worker in workers:
            worker.stop()
        go_on.set()
        await asyncio.gather(*running, return_exceptions=True)
