"""The publisher for threads: what it counts, what it lets through, and what it leaves behind."""

import asyncio
import os
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from asgi_amqp import AMQPChannelLayer, BrokerUnavailable
from asgi_amqp.exceptions import ConfigurationError
from asgi_amqp.metrics import Stats
from asgi_amqp.sender import Sender
from asgi_amqp.tickets import ThreadTicket
from tests.unit.asgi_amqp.links import Brokers, Link
from tests.unit.asgi_amqp.test_sessions import sent


@pytest.fixture
def brokers(monkeypatch):
    return Brokers(monkeypatch)


def test_bytes_that_many_threads_put_are_counted_and_let_go_again(brokers, monkeypatch):
    layer = AMQPChannelLayer("amqp://broker.test")
    background = layer.publisher.background
    monkeypatch.setattr(background._sender, "submit", lambda *event: None)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def put():
        for _ in range(20_000):
            background.put(None, b"12345", None)

    threads = [threading.Thread(target=put) for _ in range(4)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    background.run(asyncio.sleep(0.01), 5)
    assert background.waiting_bytes == 0
    layer.publisher.close()


@pytest.mark.parametrize("lost", [0, 1])
async def test_a_flush_says_that_something_was_lost(lost):
    class Outbox:
        """Nothing is left at the second look."""

        looks = 0

        @property
        def idle(self):
            self.looks += 1
            if self.looks == 2 and lost:
                stats.lose("in_flight", lost)
            return self.looks == 2

    stats = Stats()
    stats.lose("expired", 3)  # before
    assert await Sender.flush(SimpleNamespace(outbox=Outbox(), stats=stats), 5) == (not lost)


def test_threads_wait_as_long_as_the_layer_s_own_calls(brokers):
    layer = AMQPChannelLayer("amqp://broker.test", durable=["jobs"], timeout=0.2)
    begun = time.monotonic()
    with pytest.raises(BrokerUnavailable):
        layer.publisher.send("jobs", {"n": 1})
    assert time.monotonic() - begun < 4
    layer.publisher.close(0.0)


def test_a_queue_that_withholds_its_confirms_leaves_room_for_what_needs_none(brokers):
    layer = AMQPChannelLayer("amqp://broker.test", buffer_bytes=10_000, durable=["jobs"])
    for _ in range(7):
        layer.publisher.send("jobs", {"x": bytes(1200)}, wait=False)
    with pytest.raises(BrokerUnavailable):
        layer.publisher.send("jobs", {"x": bytes(1200)}, 0.05, wait=False)
    layer.publisher.group_send("g", {"n": 1}, 1.0, wait=False)
    deadline = time.monotonic() + 5
    while ("g", {"n": 1}) not in sent(brokers.links[0]):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    layer.publisher.close(0.0)


def test_a_publisher_that_was_refused_and_is_full_says_why_and_tries_again(brokers, monkeypatch):
    brokers.found = [ConfigurationError("wrong password")]
    layer = AMQPChannelLayer("amqp://broker.test", buffer_bytes=10_000)

    def fill():
        for _ in range(100):
            layer.publisher.group_send("g", {"x": bytes(500)}, wait=False)

    begun = time.monotonic()
    for _ in range(2):  # the second is told what the first met
        with pytest.raises(ConfigurationError, match="wrong password"):
            fill()
    assert time.monotonic() - begun < 4
    assert len(brokers.tried) == 1
    brokers.found = [Link]
    monkeypatch.setattr("asgi_amqp.supervisor.REPEAT", 0)
    with pytest.raises(BrokerUnavailable, match="takes none"):  # this one answers nothing
        layer.publisher.group_send("g", {"n": 1}, 0.3, wait=False)
    assert sent(brokers.links[0])
    layer.publisher.close(0.0)


def test_a_publisher_that_was_closed_leaves_nothing_open(brokers):
    layer = AMQPChannelLayer("amqp://broker.test")
    layer.publisher.group_send("g", {"n": 1}, wait=False)
    layer.publisher.close(0.1)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        layer.publisher.group_send("g", {"n": 1}, wait=False)
        background = layer.publisher.background
        layer.publisher.close(0.1)
        assert background.loop.is_closed()
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_is_put_too_late_is_counted_or_its_thread_hears_it(brokers):
    layer = AMQPChannelLayer("amqp://broker.test")
    background = layer.publisher.background
    destination = layer.group_destination("g")
    layer.publisher.close(0.0)
    background.put(destination, b"x", None)
    assert layer.stats.lost == {"unsent": 1}
    ticket = ThreadTicket(1, time.monotonic() + 5)
    background.put(destination, b"x", ticket)
    begun = time.monotonic()
    with pytest.raises(BrokerUnavailable):
        ticket.wait()
    assert time.monotonic() - begun < 1


def test_an_error_of_many_threads_is_raised_for_each_on_its_own():
    error = ConfigurationError("wrong password")
    for _ in range(3):
        ticket = ThreadTicket(1, time.monotonic() + 5)
        ticket.give_up(error)
        with pytest.raises(ConfigurationError) as caught:
            ticket.wait()
        assert caught.value is not error


def test_a_thread_that_sees_its_events_settled_sees_the_error_of_the_last():
    class Watched(ThreadTicket):
        def __setattr__(self, name, value):
            super().__setattr__(name, value)
            if name == "left" and not value:
                with pytest.raises(BrokerUnavailable):
                    self.wait()  # the thread looks just now

    ticket = Watched(2, time.monotonic() + 5)
    ticket.settle()
    ticket.settle(BrokerUnavailable("refused"))
    assert ticket.done
