"""The durable queue, whatever lies on it and however often a relay fails: what is accepted arrives, in order.

Its messages are put there by the channel layer itself: the API would not take such ones.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial

import aio_pika
import pytest
import requests

from tests.integration.relay.queue_of_events import GROUP, QUEUE, URL, dead_letters, event, the_layer

pytestmark = pytest.mark.stack

LOST_LINKS = 25
TIME = time.time_ns()


@pytest.fixture(autouse=True)
def _needs_the_broker():
    if not URL:
        pytest.skip("CARILLON_TEST_AMQP_URL names no broker")


async def numbers(socket, count: int) -> list[int]:
    """The first `count` numbers of this test's events."""
    return [(await asyncio.to_thread(socket.frame))["n"] for _ in range(count)]


@pytest.mark.parametrize(
    "poison",
    [
        event('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}"),
        {**event("{}"), "stamp": 2**70},
        {**event("{}"), "audience": 5},
        {**event("{}"), "audience": ["\ud800"]},
        {"group": GROUP},
    ],
    ids=["nested 100 000 deep", "a stamp beyond 64 bits", "no audience", "no text", "nothing in it"],
)
async def test_each_message_is_judged_alone(stack, poison):
    """One that cannot be read goes to the dead letters, and those around it to their subscribers, at once."""
    await dead_letters()
    with stack.socket() as socket:
        socket.frame()
        socket.subscribe({"jobs": ["summary"]})
        async with the_layer() as layer:
            begun = time.monotonic()
            await layer.send_many(
                [
                    ("notifications", message)
                    for message in (
                        *(event(f'{{"n": {n}}}') for n in range(5)),
                        poison,
                        *(event(f'{{"n": {n}}}') for n in range(5, 10)),
                    )
                ]
            )
        assert await numbers(socket, 10) == list(range(10))
        assert time.monotonic() - begun < 10
    assert len(await dead_letters()) == 1


async def test_a_link_that_is_lost_again_and_again_costs_no_event(stack, container):
    """Each lost link counts as a delivery of all that was in hand: more of them than any usual limit."""
    worker = container("runworker")
    worker.stop(12)
    await dead_letters()
    with stack.socket() as socket:
        socket.frame()
        socket.subscribe({"jobs": ["summary"]})
        async with the_layer() as layer:
            for n in range(11):
                await layer.send("notifications", event(f'{{"n": {n}}}'))
        for _ in range(LOST_LINKS):
            connection = await aio_pika.connect(URL)
            async with connection:
                channel = await connection.channel()
                queue = await channel.get_queue(QUEUE)
                taken = asyncio.Event()
                await queue.consume(partial(_note, taken))
                await asyncio.wait_for(taken.wait(), 10)
        worker.start()
        await asyncio.to_thread(worker.wait_until_healthy)
        assert await numbers(socket, 11) == list(range(11))
    assert await dead_letters() == []


async def _note(taken: asyncio.Event, _: object) -> None:
    taken.set()


def test_a_request_that_is_sent_again_under_its_key_is_heard_once(stack):
    with stack.socket() as socket:
        socket.frame()
        socket.subscribe({"jobs": ["summary"]})
        events = [{"group": GROUP, "payload": {"n": n}} for n in range(2)]
        for key in (f"once {TIME}", f"once {TIME}", f"another {TIME}"):
            answer = requests.post(
                f"{stack.url}/api/v2/notifications/",
                json=events,
                headers={
                    "Authorization": f"Bearer {stack.token}",
                    "Idempotency-Key": key,
                },
                verify=stack.ca,
                timeout=20,
            )
            assert answer.status_code == 202
        assert [socket.frame()["n"] for _ in range(4)] == [0, 1, 0, 1]
        stack.post("/notifications/", {"group": GROUP, "payload": {"n": 9}})
        assert socket.frame()["n"] == 9
