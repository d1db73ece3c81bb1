"""`carillon dead-letters`: what could not be delivered is listed, shown, sent again and dropped."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import aio_pika
import pytest

from asgi_amqp import codec
from asgi_amqp.dead_letters import go_through
from carillon.relay.judge import MAX_TEXT, judge
from tests.integration.relay.queue_of_events import DEAD, URL, dead_letters, event, the_layer

pytestmark = pytest.mark.stack

DELIVERY_LIMIT = 20
"""RabbitMQ's own of a quorum queue that says nothing else."""


@pytest.fixture
def command(container) -> Callable[..., tuple[int, str, str]]:
    """`command("list")`: exit status, output and errors."""
    if not URL:
        pytest.skip("CARILLON_TEST_AMQP_URL names no broker")
    inside = container("uwsgi").id

    def run(*arguments: str, of: str = "dead-letters") -> tuple[int, str, str]:
        done = subprocess.run(
            ["docker", "exec", inside, "carillon", of, *arguments],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr

    return run


async def put(*messages: dict) -> None:
    """Onto the durable queue, as an emitter would."""
    async with the_layer() as layer:
        await layer.send_many([("notifications", message) for message in messages])


async def listed(command, count: int) -> list[list[str]]:
    """The lines of the list, in words, when there are so many."""
    async with asyncio.timeout(30):
        while True:
            status, output, _ = await asyncio.to_thread(command, "list")
            assert status == 0
            if len(lines := output.splitlines()) == count:
                return [line.split() for line in lines]


async def test_they_are_listed_shown_sent_again_and_dropped(stack, command):
    await dead_letters()
    poison = [{**event('{"n": 1}'), "group": "no group"}, event("no JSON"), {"group": "jobs-summary"}]
    await put(*poison)
    lines = await listed(command, 3)
    names = [line[0] for line in lines]
    assert poison[0]["id"].hex() in lines[0]
    assert " ".join(lines[1]).endswith("its payload is no JSON, or nested too deeply")
    status, output, _ = await asyncio.to_thread(command, "show", names[0])
    shown = json.loads(output)
    assert (status, shown["reason"]) == (0, "its group is no group's name")
    assert shown["messages"][0]["id"] == poison[0]["id"].hex()
    status, _, said = await asyncio.to_thread(command, "drop", names[1], "nonsense")
    assert (status, "no dead letter is called nonsense" in said) == (1, True)
    assert [line[0] for line in await listed(command, 2)] == [names[0], names[2]]
    # It is as bad as it was: it comes back, under the same name.
    assert (await asyncio.to_thread(command, "replay", names[0]))[0] == 0
    assert sorted(line[0] for line in await listed(command, 2)) == sorted([names[0], names[2]])
    assert (await asyncio.to_thread(command, "drop", "all"))[0] == 0
    assert await dead_letters() == []


async def test_one_that_is_sent_again_is_heard_once(stack, command):
    """As after a mend: what could not be delivered can be now. Its id tells that another has come through."""
    await dead_letters()
    late, known = event('{"n": 1}'), event('{"n": 0}')
    with stack.socket() as socket:
        socket.frame()
        socket.subscribe({"jobs": ["summary"]})
        await put(known)
        assert (await asyncio.to_thread(socket.frame))["n"] == 0
        connection = await aio_pika.connect(URL)
        async with connection:
            channel = await connection.channel()
            for message in (known, late):
                body = codec.encode_batch([codec.encode_target("an old reason") + codec.encode(message)])
                await channel.default_exchange.publish(aio_pika.Message(body), DEAD)
        assert [line[-1] for line in await listed(command, 2)] == ["reason", "reason"]
        assert (await asyncio.to_thread(command, "replay", "all"))[0] == 0
        await put(event('{"n": 2}'))
        assert [(await asyncio.to_thread(socket.frame))["n"] for _ in range(2)] == [1, 2]
    assert await dead_letters() == []


async def test_those_that_died_long_ago_are_pruned_and_no_other(stack, command):
    await dead_letters()
    old = datetime.now(UTC) - timedelta(days=31)
    connection = await aio_pika.connect(URL)
    async with connection:
        channel = await connection.channel()
        for number, time in enumerate([old, None, old]):
            body = codec.encode_batch([codec.encode_target("a reason") + codec.encode({"n": number})])
            await channel.default_exchange.publish(aio_pika.Message(body, timestamp=time), DEAD)
    await put({"group": "jobs-summary"})
    lines = await listed(command, 4)
    assert lines[0][1] == f"{old:%Y-%m-%d}"
    assert lines[1][1:4] == ["nobody", "knows", "when"]
    died = datetime.fromisoformat(" ".join(lines[3][1:3]))
    assert abs(datetime.now(UTC) - died) < timedelta(minutes=1)
    code, output, _ = await asyncio.to_thread(command, "--dry-run", of="prune")
    assert (code, output.splitlines()[-1].split(",")[0]) == (0, "dead letters: 2 would be deleted")
    code, output, _ = await asyncio.to_thread(command, of="prune")
    assert (code, output.splitlines()[-1].split(",")[0]) == (0, "dead letters: 2 deleted")
    assert [line[0] for line in await listed(command, 2)] == [lines[1][0], lines[3][0]]
    assert (await asyncio.to_thread(command, "drop", "all"))[0] == 0


async def test_looking_at_them_costs_none(stack):
    await dead_letters()
    await put({"group": "jobs-summary"})
    for _ in range(DELIVERY_LIMIT + 2):
        async with the_layer() as layer, asyncio.timeout(20):
            while len(await go_through(layer, "notifications")) != 1:
                await asyncio.sleep(0.1)
    assert len(await dead_letters()) == 1


async def test_there_is_a_most_of_them_and_the_oldest_go(stack):
    """The relay's queue takes what it is given, whatever lies there already."""
    await dead_letters()
    letters = judge(codec.encode_batch([codec.encode_target("") + codec.encode({"text": "x" * MAX_TEXT})]))[1]
    connection = await aio_pika.connect(URL)
    async with connection:
        channel = await connection.channel()
        for _ in range(70):
            await channel.default_exchange.publish(aio_pika.Message(letters[0][1]), DEAD)
    await put({"group": "the newest"})
    found: list[bytes] = []
    async with asyncio.timeout(30):
        while not (found and b"the newest" in found[-1]):
            found += await dead_letters()
    assert 50 < len(found) < 65
