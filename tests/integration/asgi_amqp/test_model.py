"""The layer against a model of it: lists and sets in memory. Two layers stand for two processes."""

import asyncio
import secrets
from collections import deque

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from asgi_amqp import AMQPChannelLayer

GROUPS = st.sampled_from(["g1", "g2", "g3"])
NORMAL = st.sampled_from(["normal1", "normal2"])
SENDERS = st.integers(0, 1)


class Machine(RuleBasedStateMachine):
    """One sender at a time, each settled before another takes over: the model's order is then the layer's."""

    url = ""
    channels = Bundle("channels")

    @initialize()
    def start(self):
        self.loop = asyncio.new_event_loop()
        prefix = f"m{secrets.token_hex(4)}"
        self.layers = [AMQPChannelLayer(self.url, prefix=prefix, capacity=1000, timeout=30) for _ in range(2)]
        self.owner, self.groups, self.expected = {}, {}, {}
        self.number = 0
        self.last = 0

    def run(self, coroutine):
        return self.loop.run_until_complete(asyncio.wait_for(coroutine, 40))

    def message(self):
        self.number += 1
        return {"type": "test", "number": self.number}

    def settle(self, sender):
        """Another sender takes over: what the last one sent must be with the broker."""

        async def flush():
            await self.layers[self.last].session().sender.flush(20)

        if sender != self.last:
            self.run(flush())
            self.last = sender

    @rule(target=channels, owner=SENDERS)
    def new_channel(self, owner):
        async def make():
            return await self.layers[owner].new_channel()

        name = self.run(make())
        self.owner[name], self.expected[name] = owner, deque()
        return name

    @rule(sender=SENDERS, channel=channels)
    def send(self, sender, channel):
        self.settle(sender)
        message = self.message()
        self.run(self.layers[sender].send(channel, message))
        self.expected[channel].append(message)

    @rule(sender=SENDERS, channel=NORMAL)
    def send_normal(self, sender, channel):
        message = self.message()
        self.run(self.layers[sender].send(channel, message))
        self.expected.setdefault(channel, deque()).append(message)

    @rule(caller=SENDERS, group=GROUPS, channel=channels)
    def group_add(self, caller, group, channel):
        self.settle(caller)
        self.run(self.layers[caller].group_add(group, channel))
        self.groups.setdefault(group, set()).add(channel)

    @rule(group=GROUPS, channel=channels)
    def group_discard(self, group, channel):
        for sender in (0, 1):
            self.settle(sender)
        self.settle(self.owner[channel])
        self.fence(channel)  # what was sent before must have arrived: leaving is not a message
        self.run(self.layers[self.owner[channel]].group_discard(group, channel))
        self.groups.get(group, set()).discard(channel)

    @rule(sender=SENDERS, group=GROUPS)
    def group_send(self, sender, group):
        self.settle(sender)
        message = self.message()
        self.run(self.layers[sender].group_send(group, message))
        for channel in self.groups.get(group, ()):
            self.expected[channel].append(message)

    @rule(channel=channels)
    def receive(self, channel):
        self.take(channel)

    @rule(channel=NORMAL)
    def receive_normal(self, channel):
        self.take(channel)

    @rule(channel=channels)
    def cancelled_receive(self, channel):
        """A receiver that gives up at once takes nothing with it."""
        if self.expected[channel]:
            return

        async def give_up():
            task = asyncio.create_task(self.layers[self.owner[channel]].receive(channel))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        self.run(give_up())

    def take(self, channel):
        expected = self.expected.get(channel)
        if expected:
            layer = self.layers[self.owner.get(channel, 0)]
            assert self.run(layer.receive(channel)) == expected.popleft()

    def fence(self, channel):
        while self.expected[channel]:
            self.take(channel)

    @invariant()
    def nothing_was_lost(self):
        if hasattr(self, "layers"):
            assert not any(layer.stats.lost for layer in self.layers)

    def teardown(self):
        if not hasattr(self, "layers"):
            return
        for channel in list(self.expected):
            self.fence(channel)
        for layer in self.layers:
            self.run(layer.close())
        self.loop.close()


def test_the_layer_does_what_its_model_does(broker):
    Machine.url = broker.url
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=12, stateful_step_count=30, deadline=None,
            suppress_health_check=list(HealthCheck), database=None,
        ),
    )  # fmt: skip
