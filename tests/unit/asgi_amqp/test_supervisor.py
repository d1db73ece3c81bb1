"""Supervisor: one link is kept open, and everybody who waits for it hears."""

import asyncio
from collections import deque
from dataclasses import replace

import pytest

from asgi_amqp import supervisor as module
from asgi_amqp.exceptions import BrokerUnavailable, ConfigurationError
from asgi_amqp.supervisor import Supervisor
from tests.unit.asgi_amqp.links import OPTIONS, Brokers, Link, until

DOWN = BrokerUnavailable("a:5672: down")


class Watched(Supervisor):
    def __init__(self, setup=None):
        self.set_up, self.losses, self.failures = [], [], []
        self.during = setup
        super().__init__(OPTIONS, self._prepare, lambda *loss: self.losses.append(loss), self.failures.append)
        self._targets = deque(OPTIONS.targets)

    async def _prepare(self, link):
        self.set_up.append(link)
        if self.during is not None:
            await self.during(link)


@pytest.fixture(autouse=True)
def brokers(monkeypatch):
    return Brokers(monkeypatch)


async def test_who_waits_for_a_link_gets_it_when_it_is_set_up(brokers):
    supervisor = Watched()
    link = await supervisor.link(5)
    assert (supervisor.set_up, supervisor.current) == ([link], link)
    assert await supervisor.link(0) is link
    assert brokers.tried == ["a"]
    await supervisor.close()
    assert link.closed
    assert supervisor.losses == [(link, "closed")]


async def test_those_who_wait_for_the_first_link_go_on_in_the_order_of_their_calls(brokers):
    gate = asyncio.Event()

    async def setup(link):
        await gate.wait()

    supervisor, order = Watched(setup), []

    async def wait(number):
        await supervisor.link(5)
        order.append(number)

    tasks = [asyncio.create_task(wait(number)) for number in range(100)]
    await until(lambda: supervisor.set_up)
    tasks[7].cancel()
    gate.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert order == [number for number in range(100) if number != 7]
    await supervisor.close()


async def test_hosts_are_tried_in_turn(brokers):
    brokers.found = [DOWN, DOWN, Link]
    supervisor = Watched()
    await supervisor.link(5)
    assert brokers.tried == ["a", "b", "c"]
    await supervisor.close()


async def test_a_link_that_is_lost_is_made_anew_at_the_same_host_and_set_up_again(brokers, monkeypatch):
    monkeypatch.setattr(module, "STEADY", 0)
    brokers.found = [DOWN, Link]
    supervisor = Watched()
    first = await supervisor.link(5)
    first.give_up("cut by a test")
    await until(lambda: supervisor.current not in (None, first))
    assert brokers.tried == ["a", "b", "b"]
    assert supervisor.losses == [(first, "cut by a test")]
    assert first.closed
    assert supervisor.reconnects == 1
    assert [link.generation for link in brokers.links] == [2, 3]
    assert supervisor.set_up == brokers.links
    await supervisor.close()


async def test_who_waits_in_vain_hears_the_last_problem(brokers):
    brokers.found = [DOWN]
    supervisor = Watched()
    with pytest.raises(BrokerUnavailable, match=r"within 0\.05 s: .*a:5672: down"):
        await supervisor.link(0.05)
    assert not supervisor._waiters
    await supervisor.close()


async def test_a_configuration_error_before_the_first_link_ends_the_attempts(brokers, monkeypatch):
    brokers.found = [ConfigurationError("wrong password")]
    supervisor = Watched()
    with pytest.raises(ConfigurationError, match="wrong password"):
        await supervisor.link(5)
    assert [str(error) for error in supervisor.failures] == ["wrong password"]
    tried = len(brokers.tried)
    with pytest.raises(ConfigurationError):
        await supervisor.link(5)
    assert len(brokers.tried) == tried  # the broker is not asked again so soon
    monkeypatch.setattr(module, "REPEAT", 0.0)
    brokers.found = [Link]
    await supervisor.link(5)
    await supervisor.close()


async def test_one_host_that_is_only_down_is_hope(brokers):
    refused = ConfigurationError("wrong password")
    brokers.found = [refused, DOWN, refused, Link]
    supervisor = Watched()
    await supervisor.link(5)
    assert not supervisor.failures
    await supervisor.close()


async def test_a_login_refused_during_a_reconnect_is_a_password_that_is_being_changed(brokers, monkeypatch):
    monkeypatch.setattr(module, "REPEAT", 0.001)
    supervisor = Watched()
    first = await supervisor.link(5)
    brokers.found = [*[ConfigurationError("wrong password")] * 6, Link]
    first.give_up("cut")
    await until(lambda: supervisor.current not in (None, first))
    assert not supervisor.failures
    await supervisor.close()


@pytest.mark.parametrize("error", [ConfigurationError("no permission"), KeyError("a hook"), OSError("reset")])
async def test_a_setup_that_fails_leaves_no_connection_behind(brokers, monkeypatch, error):
    monkeypatch.setattr(module, "REPEAT", 0.001)
    failing = [error] * 3

    async def setup(link):
        if failing:
            raise failing.pop()

    supervisor = Watched(setup)
    if isinstance(error, ConfigurationError):
        for _ in range(3):
            with pytest.raises(ConfigurationError):
                await supervisor.link(5)
            await asyncio.sleep(0.002)
    link = await supervisor.link(5)
    assert [each.closed for each in brokers.links] == [True, True, True, False]
    assert [each for each, _ in supervisor.losses] == brokers.links[:3]
    assert brokers.links[-1] is link
    await supervisor.close()


async def test_a_host_that_answers_and_is_of_no_use_is_left_for_the_next(brokers):
    failing = [OSError("no copy of the stream")]

    async def setup(link):
        if failing:
            raise failing.pop()

    supervisor = Watched(setup)
    await supervisor.link(5)
    assert brokers.tried == ["a", "b"]
    await supervisor.close()


async def test_a_link_that_is_lost_during_its_setup_is_none(brokers):
    cut = []

    async def setup(link):
        if not cut:
            cut.append(link)
            link.give_up("cut during setup")

    supervisor = Watched(setup)
    link = await supervisor.link(5)
    assert link is not cut[0]
    assert cut[0].closed
    await supervisor.close()


async def test_a_close_reaches_everyone_who_waits_for_a_link(brokers):
    brokers.found = [DOWN]
    supervisor = Watched()
    tasks = [asyncio.create_task(supervisor.link(60)) for _ in range(3)]
    await until(lambda: len(supervisor._waiters) == 3)
    await supervisor.close(BrokerUnavailable("the layer was closed"))
    errors = await asyncio.gather(*tasks, return_exceptions=True)
    assert [str(error) for error in errors] == ["the layer was closed"] * 3


async def test_a_cancelled_wait_disturbs_nobody(brokers):
    gate = asyncio.Event()

    async def setup(link):
        await gate.wait()

    supervisor = Watched(setup)
    waiting = asyncio.create_task(supervisor.link(5))
    for _ in range(40):
        task = asyncio.create_task(supervisor.link(5))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    gate.set()
    assert await waiting is brokers.links[0]
    assert len(brokers.links) == 1
    await supervisor.close()


async def test_what_is_abandoned_is_cut_and_opens_nothing_again(brokers):
    supervisor = Watched()
    link = await supervisor.link(5)
    supervisor.abandon(BrokerUnavailable("the layer was closed"))
    assert link.closed
    link.give_up("reset")
    await until(lambda: not supervisor.trying)
    assert brokers.links == [link]
    with pytest.raises(BrokerUnavailable, match="the layer was closed"):
        await supervisor.link(5)
    await supervisor.close()


async def test_a_link_that_is_lost_while_it_is_set_up_is_not_waited_for(brokers):
    """What the setup waits for is on the link: it will not come."""
    forever = asyncio.Event()

    async def setup(link):
        if link.generation == 1:
            await forever.wait()

    supervisor = Watched(setup)
    supervisor.start()
    await until(lambda: supervisor.set_up)
    first = supervisor.set_up[0]
    first.give_up("cut by a test")
    link = await supervisor.link(2)
    assert link is not first
    assert first.closed
    assert supervisor.losses == [(first, "a:5672: cut by a test")]
    await supervisor.close()


async def test_a_setup_of_many_steps_has_its_deadline_for_each(brokers, monkeypatch):
    async def setup(link):
        for _ in range(8):
            await asyncio.sleep(0.05)
            link.steps += 1

    supervisor = Watched(setup)
    supervisor.options = replace(OPTIONS, connect_timeout=0.06)  # twice that, for a step
    link = await supervisor.link(5)
    assert brokers.links == [link]
    await supervisor.close()


async def test_a_step_of_a_setup_that_does_not_end_costs_the_link(brokers):
    async def setup(link):
        link.steps += 1
        if link.generation == 1:
            await asyncio.Event().wait()

    supervisor = Watched(setup)
    supervisor.options = replace(OPTIONS, connect_timeout=0.02)
    assert await supervisor.link(5) is brokers.links[1]
    assert brokers.links[0].closed
    assert supervisor.losses == [(brokers.links[0], "no answer in time")]
    await supervisor.close()


async def test_a_link_that_is_lost_in_its_setup_leaves_no_error_behind(brokers, caplog):
    """Its loss and the end of the setup may come in one turn."""

    async def setup(link):
        if link.generation < 3:
            link.give_up("cut by a test")
            raise BrokerUnavailable("cut by a test")

    supervisor = Watched(setup)
    assert await supervisor.link(5) is brokers.links[2]
    await supervisor.close()
    assert "Exception in callback" not in caplog.text


async def test_a_broker_that_throws_out_who_has_come_is_asked_again_after_a_pause(brokers, monkeypatch):
    """As where a queue cannot be consumed: it would be asked a thousand times a second."""
    monkeypatch.setattr(module, "RETRY_FIRST", 0.05)
    monkeypatch.setattr(module, "RETRY_MOST", 0.05)

    class ThrowsOut(Link):
        async def watch(self, heartbeat):
            self.give_up("thrown out")
            return await super().watch(heartbeat)

    brokers.found = [ThrowsOut]
    supervisor = Watched()
    supervisor.start()
    await asyncio.sleep(0.5)
    await supervisor.close()
    assert 3 <= len(brokers.tried) <= 25
    assert brokers.tried[:3] == ["a", "b", "c"]


async def test_a_setup_that_is_cancelled_by_nobody_is_a_connection_that_goes(brokers):
    """aiormq throws CancelledError into the calls that wait as it ends a connection that is silent."""
    going = [asyncio.CancelledError(), asyncio.CancelledError()]

    async def setup(link):
        if going:
            raise going.pop()

    supervisor = Watched(setup)
    link = await supervisor.link(2)
    assert link is brokers.links[2]
    assert [each.closed for each in brokers.links] == [True, True, False]
    assert supervisor.losses == [(each, "the connection is going") for each in brokers.links[:2]]
    await supervisor.close()


async def test_a_close_during_the_setup_is_one(brokers):
    gate = asyncio.Event()

    async def setup(link):
        await gate.wait()

    supervisor = Watched(setup)
    supervisor.start()
    await until(lambda: supervisor.set_up)
    await asyncio.wait_for(supervisor.close(), 2)
    assert not supervisor.trying
    assert supervisor.losses == [(brokers.links[0], "closed")]
