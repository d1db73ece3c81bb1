"""Durable channels and the worker: at least once, whatever happens."""

import asyncio
import os
import signal
import subprocess
import sys
from collections import Counter

import pytest

from asgi_amqp import BrokerUnavailable, ChannelFull, ConfigurationError
from asgi_amqp.dead_letters import depth
from asgi_amqp.worker import Worker
from tests.integration.asgi_amqp.broker import eventually


class Running:
    """A worker in the background that is stopped at the end."""

    def __init__(self, *arguments, **options):
        self.worker = Worker(*arguments, handle_signals=False, **options)

    async def __aenter__(self):
        self.task = asyncio.create_task(self.worker.run())
        return self.worker

    async def __aexit__(self, *_):
        self.worker.stop()
        await asyncio.wait_for(self.task, 40)


async def test_a_worker_handles_all_in_order_and_acknowledges(make_layer):
    layer = make_layer(durable=["jobs"])
    got = []

    async def handle(message):
        got.append(message["number"])

    async with Running(layer, handle, "jobs"):
        await asyncio.gather(*(layer.send("jobs", {"type": "a", "number": number}) for number in range(500)))
        await eventually(lambda: len(got) == 500)
    assert got == list(range(500))
    async with Running(layer, handle, "jobs"):
        await layer.send("jobs", {"type": "a", "number": 500})
        await eventually(lambda: len(got) == 501)
    assert got[-1] == 500


async def test_the_plain_receive_works_too(make_layer):
    layer = make_layer(durable=["jobs"])
    await asyncio.gather(*(layer.send("jobs", {"type": "a", "number": number}) for number in range(100)))
    got = [(await asyncio.wait_for(layer.receive("jobs"), 20))["number"] for _ in range(100)]
    assert got == list(range(100))


async def test_a_batch_that_nobody_reads_to_its_end_is_read_whole_by_others(make_layer, monkeypatch):
    monkeypatch.setattr("asgi_amqp.inbox.BEGUN", 0.5)
    first = make_layer(durable=["jobs"])
    second = make_layer(durable=["jobs"])
    # They gather while the queue is declared, and leave as one.
    await first.send_many([("jobs", {"type": "a", "number": number}) for number in range(3)])
    assert (await asyncio.wait_for(first.receive("jobs"), 20))["number"] == 0
    got = [(await asyncio.wait_for(second.receive("jobs"), 20))["number"] for _ in range(3)]
    assert got == [0, 1, 2]
    assert first.stats.reconnects == 0


@pytest.mark.parametrize("batch", [1, 256])  # each in a message of its own, and all in one
async def test_concurrency_is_what_was_asked_for(make_layer, batch):
    layer = make_layer(durable={"jobs": {"batch": batch}})
    running, most, done = 0, 0, 0

    async def handle(message):
        nonlocal running, most, done
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.02)
        running -= 1
        done += 1

    async with Running(layer, handle, "jobs", concurrency=4):
        await layer.send("jobs", {"type": "a"})
        await eventually(lambda: done == 1)  # all four are there and rest
        await layer.send_many([("jobs", {"type": "a"})] * 40)
        await eventually(lambda: done == 41)
    assert most == 4


async def test_a_failing_event_is_tried_again_alone(make_layer):
    layer = make_layer(durable=["jobs"])
    got = []

    async def handle(message):
        got.append(message["number"])
        if message["number"] == 7 and got.count(7) < 3:
            raise RuntimeError("not yet")

    async with Running(layer, handle, "jobs", retry=(0.01, 0.1)) as worker:
        await asyncio.gather(*(layer.send("jobs", {"type": "a", "number": number}) for number in range(50)))
        await eventually(lambda: got.count(7) == 3 and worker.handled == 50)
    assert sorted(set(got)) == list(range(50))
    assert len(got) == 52


async def test_what_always_fails_becomes_a_dead_letter_that_can_be_replayed(make_layer, broker):
    layer = make_layer(durable={"jobs": {"delivery_limit": 2}})
    tries, fail = [], True

    async def handle(message):
        tries.append(message["number"])
        if fail:
            raise RuntimeError("broken")

    def command(*arguments):
        env = dict(os.environ, ASGI_AMQP_URL=broker.url, ASGI_AMQP_PREFIX=layer.prefix, PYTHONPATH="src")
        env.pop("DJANGO_SETTINGS_MODULE", None)
        return subprocess.run(
            [sys.executable, "-m", "asgi_amqp", "dead-letters", "jobs", *arguments],
            env=env, capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    async with Running(layer, handle, "jobs", retry=(0.01, 0.02)):
        await layer.send("jobs", {"type": "a", "number": 42})
        await eventually(lambda: len(tries) == 3)
        for _ in range(50):
            shown = await asyncio.to_thread(command)
            if "1 dead letters kept" in shown.stderr:
                break
        assert '"number": 42' in shown.stdout
        assert '"reason": "delivery_limit"' in shown.stdout
        fail = False
        assert "1 dead letters replayed" in (await asyncio.to_thread(command, "--replay")).stderr
        await eventually(lambda: len(tries) == 4)
    assert "0 dead letters kept" in (await asyncio.to_thread(command)).stderr


@pytest.mark.parametrize(
    ("single", "others", "most"), [(False, 0, 3), (True, 0, 3), (False, 2, 4), (True, 2, 3)]
)
async def test_the_delivery_limit_counts_how_often_a_message_comes_back(make_layer, single, others, most):
    """What is sent again out of a batch is a new message: the try within the batch comes on top."""
    layer = make_layer(durable={"jobs": {"delivery_limit": 2, "single": single}})
    tries = Counter()

    async def handle(message):
        tries[message["number"]] += 1
        if message["number"] == 0:
            raise RuntimeError("broken")

    await layer.send_many([("jobs", {"type": "a", "number": number}) for number in range(1 + others)])
    async with Running(layer, handle, "jobs", retry=(0.01, 0.02)):
        for _ in range(200):
            if (await depth(layer, "jobs")).dead:
                break
            await asyncio.sleep(0.1)
    assert tries == {number: 1 if number else most for number in range(1 + others)}


async def test_a_full_durable_channel_refuses(make_layer):
    layer = make_layer(durable={"jobs": {"max_length": 5, "batch": 1}})

    async def fill():
        for _ in range(30):  # a quorum queue counts with a little delay
            await layer.send("jobs", {"type": "a"})

    with pytest.raises(ChannelFull, match="jobs"):
        await fill()
    assert layer.stats.refused >= 1


async def test_a_queue_without_a_leader_is_not_said_to_be_full(make_layer, broker):
    first = make_layer(durable=["jobs"])
    await first.send("jobs", {"type": "a"})
    assert await asyncio.wait_for(first.receive("jobs"), 20)
    server = f"{{'carillon_{first.prefix}.d.jobs', node()}}"
    await broker.do("ctl", "eval", f"ok = ra:stop_server(quorum_queues, {server}).")
    layer = make_layer(prefix=first.prefix, durable=["jobs"])
    with pytest.raises(BrokerUnavailable, match="'jobs', whose queue is not full: it has no leader"):
        await layer.send("jobs", {"type": "a"})
    assert layer.stats.refused == 1
    await broker.do("ctl", "eval", f"ok = ra:restart_server(quorum_queues, {server}).")
    await layer.send("jobs", {"type": "a", "number": 2})
    assert (await asyncio.wait_for(layer.receive("jobs"), 20))["number"] == 2


async def test_stop_finishes_what_runs_and_gives_back_the_rest(make_layer):
    layer = make_layer(durable={"jobs": {"batch": 1}})
    began, finished = [], []

    async def slow(message):
        began.append(message["number"])
        await asyncio.sleep(0.5)
        finished.append(message["number"])

    for number in range(6):
        await layer.send("jobs", {"type": "a", "number": number})
    async with Running(layer, slow, "jobs", concurrency=2) as worker:
        await eventually(lambda: len(began) == 2)
        worker.stop()
    assert finished == began == [0, 1]

    async def quick(message):
        finished.append(message["number"])

    async with Running(layer, quick, "jobs"):
        await eventually(lambda: len(finished) == 6)
    assert sorted(finished) == list(range(6))


async def test_the_drain_has_a_deadline(make_layer):
    layer = make_layer(durable=["jobs"])
    began = asyncio.Event()

    async def stuck(message):
        began.set()
        await asyncio.sleep(3600)

    await layer.send("jobs", {"type": "a"})
    async with Running(layer, stuck, "jobs", drain_timeout=0.3) as worker:
        await asyncio.wait_for(began.wait(), 20)
        worker.stop()  # leaving the block waits for its end, for 40 s
    assert (await asyncio.wait_for(layer.receive("jobs"), 20))["type"] == "a"  # it went back


WORKER = """
import asyncio, os, sys
from asgi_amqp import AMQPChannelLayer
from asgi_amqp.worker import Worker
async def main():
    durable = ["jobs", "results"]
    layer = AMQPChannelLayer(os.environ["URL"], prefix=os.environ["PREFIX"], durable=durable, timeout=20)
    async def handle(message):
        await asyncio.sleep(0.002)
        await layer.send("results", {"type": "done", "number": message["number"]})
    print("ready", flush=True)
    await Worker(layer, handle, "jobs", concurrency=4).run()
    await layer.close()
asyncio.run(main())
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_a_worker_that_dies_or_is_stopped_loses_nothing(make_layer, broker, how):
    layer = make_layer(durable=["jobs", "results"])
    await asyncio.gather(*(layer.send("jobs", {"type": "a", "number": number}) for number in range(300)))
    env = dict(os.environ, URL=broker.url, PREFIX=layer.prefix, PYTHONPATH="src")
    results = []

    async def count(message):
        results.append(message["number"])

    async with Running(layer, count, "results"):
        for last in (False, True):
            process = await asyncio.create_subprocess_exec(sys.executable, "-c", WORKER, env=env)
            target = 300 if last else 60
            await eventually(lambda: len(set(results)) >= target, 60)  # noqa: B023
            process.send_signal(signal.SIGTERM if last else how)
            code = await asyncio.wait_for(process.wait(), 30)
            assert code == (-signal.SIGKILL if how == signal.SIGKILL and not last else 0)
    assert set(results) == set(range(300))
    if how == signal.SIGTERM:
        assert len(results) == 300  # a worker that drains repeats nothing


async def test_other_options_than_the_queue_has_are_survived(make_layer, caplog):
    first, second = (
        make_layer(durable={"jobs": {"max_length": 5}}),
        make_layer(durable={"jobs": {"max_length": 6}}),
    )
    await first.send("jobs", {"type": "a"})
    await second.send("jobs", {"type": "b"})
    assert "exists with other options" in caplog.text
    assert [(await asyncio.wait_for(second.receive("jobs"), 20))["type"] for _ in range(2)] == ["a", "b"]


async def test_a_worker_wants_a_normal_channel(layer):
    with pytest.raises(ValueError, match="normal"):
        await Worker(layer, None, await layer.new_channel()).run()


async def test_a_worker_with_a_wrong_password_ends(make_layer, broker):
    layer = make_layer(url=broker.url_for("carillon", "wrong", "carillon"))
    with pytest.raises(ConfigurationError):
        await Worker(layer, None, "jobs").run()


async def test_many_sent_together_keep_their_order_and_report_the_first_failure(make_layer):
    layer = make_layer(durable=["d*"], capacity=2)
    await layer.send_many([(f"d{number % 2}", {"type": "a", "number": number}) for number in range(600)])
    for channel in (0, 1):
        got = [(await asyncio.wait_for(layer.receive(f"d{channel}"), 20))["number"] for _ in range(300)]
        assert got == list(range(channel, 600, 2))
    with pytest.raises(ChannelFull):
        await layer.send_many([("normal", {"type": "a", "number": number}) for number in range(5)])
    assert [(await asyncio.wait_for(layer.receive("normal"), 20))["number"] for _ in range(2)] == [0, 1]
