"""What one loop has done in another, and when either has ended."""

import asyncio
import threading
import time

import pytest

from asgi_amqp.exceptions import BrokerUnavailable
from asgi_amqp.loops import fetch, run_in
from asgi_amqp.mailboxes import Mailbox, Parcel

pytestmark = pytest.mark.filterwarnings("error")  # a coroutine that nobody awaited


async def nothing():
    return {}


async def test_a_loop_that_is_closed_is_said_to_have_ended():
    ended = asyncio.new_event_loop()
    ended.close()
    with pytest.raises(BrokerUnavailable, match="has ended"):
        await run_in(ended, nothing)
    box = Mailbox("c", 1, None, time.monotonic())
    with pytest.raises(BrokerUnavailable, match="has ended"):
        await fetch(ended, box, nothing)


class Home:
    """Of a mailbox that nothing is lost from."""

    drop_oldest = False

    def release(self, parcel, box):
        """It has been read."""


class Elsewhere:
    """A loop in a thread of its own, with a mailbox that holds what `put` is given."""

    def __enter__(self):
        self.loop = asyncio.new_event_loop()
        self.box = Mailbox("c", 100, Home(), 0.0)
        self.begun, self.cancelled = threading.Event(), threading.Event()
        self.may_take = threading.Event()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    async def take(self):
        self.begun.set()
        try:
            while (message := self.box.take(0.0)) is None:
                await asyncio.sleep(0.001)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        self.may_take.wait(5)  # it holds up this loop alone
        return message

    def put(self, *messages):
        self.loop.call_soon_threadsafe(self.box.put, Parcel(0, 9.0, None), list(messages), 0.0)

    def fetch(self):
        return fetch(self.loop, self.box, self.take)

    async def count(self):
        return self.box.count


async def test_what_is_taken_in_another_loop_comes_here():
    with Elsewhere() as there:
        there.may_take.set()
        there.put({"n": 1}, {"n": 2})
        assert [await there.fetch(), await there.fetch()] == [{"n": 1}, {"n": 2}]


async def test_what_goes_wrong_in_another_loop_is_raised_here():
    async def fail():
        raise BrokerUnavailable("the layer was closed")

    with Elsewhere() as there, pytest.raises(BrokerUnavailable, match="was closed"):
        await fetch(there.loop, there.box, fail)


async def test_who_goes_away_while_another_loop_waits_ends_the_waiting():
    with Elsewhere() as there:
        receiving = asyncio.create_task(there.fetch())
        assert await asyncio.to_thread(there.begun.wait, 5)
        receiving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await receiving
        assert await asyncio.to_thread(there.cancelled.wait, 5)


@pytest.mark.parametrize("when", ["before it is handed over", "after that"])
async def test_a_message_whose_reader_goes_away_as_it_is_taken_in_another_loop_stays(when):
    with Elsewhere() as there:
        there.put({"n": 1})
        receiving = asyncio.create_task(there.fetch())
        assert await asyncio.to_thread(there.begun.wait, 5)
        if when == "after that":
            there.may_take.set()
            asyncio.run_coroutine_threadsafe(there.count(), there.loop).result(5)  # without a turn of ours
            time.sleep(0.01)
        receiving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await receiving
        there.may_take.set()
        async with asyncio.timeout(5):
            while await run_in(there.loop, there.count) != 1:
                await asyncio.sleep(0.001)
        assert await there.fetch() == {"n": 1}


def test_a_message_whose_reader_is_in_a_loop_that_has_ended_stays():
    async def wait(there):
        asyncio.get_running_loop().create_task(there.fetch())
        assert await asyncio.to_thread(there.begun.wait, 5)

    with Elsewhere() as there:
        ended = asyncio.new_event_loop()
        ended.run_until_complete(wait(there))
        ended.run_until_complete(ended.shutdown_default_executor())
        ended.close()
        there.put({"n": 1})
        there.may_take.set()
        for _ in range(3):
            found = asyncio.run_coroutine_threadsafe(there.count(), there.loop).result(5)
            time.sleep(0.02)
        assert found == 1


@pytest.mark.parametrize("what", ["a message", "anything"])
async def test_what_somebody_cancels_in_another_loop_is_said_to_have_ended(what):
    """As a framework that cancels all tasks of its loop: who waits here has not been cancelled."""
    with Elsewhere() as there:
        call = there.fetch() if what == "a message" else run_in(there.loop, there.take)
        waiting = asyncio.create_task(call)
        assert await asyncio.to_thread(there.begun.wait, 5)
        there.loop.call_soon_threadsafe(lambda: [task.cancel() for task in asyncio.all_tasks(there.loop)])
        await asyncio.wait([waiting], timeout=2)
        assert waiting.done()
        assert not waiting.cancelled()
        with pytest.raises(BrokerUnavailable, match="has ended"):
            await waiting
