"""Sessions on links that a test answers for, at the moments when two things happen at once."""

import asyncio

import pytest
from aiormq import ChannelNotFoundEntity, ChannelPreconditionFailed

from asgi_amqp import AMQPChannelLayer, BrokerUnavailable, Topology, connection, declare_queue, stream
from asgi_amqp.event_stream import EventStream
from asgi_amqp.exceptions import ConfigurationError
from asgi_amqp.options import Durable
from asgi_amqp.worker import Worker
from tests.unit.asgi_amqp.links import Link, Wire, until
from tests.unit.asgi_amqp.test_sessions import body, consuming, publishing, sent


class Gated(Wire):
    """Begins and ends to consume when the gates of its link are open."""

    async def consume(self, queue, *, prefetch=0, **options):
        tag = await super().consume(queue, prefetch=prefetch, **options)
        await self.link.may_consume.wait()
        return tag

    async def cancel(self, tag):
        await super().cancel(tag)
        await self.link.may_cancel.wait()


class GatedLink(Link):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.may_consume, self.may_cancel = asyncio.Event(), asyncio.Event()
        self.may_consume.set()
        self.may_cancel.set()

    async def wire(self, *, passing=False, **callbacks):
        self.wires.append(Gated(self, callbacks))
        return self.wires[-1]


def consumed(link, queue):
    """The wires of a link on which a queue is consumed."""
    return [wire for wire in link.wires if queue in [name for name, _ in wire.consuming]]


# Sending


async def test_a_broker_that_is_blocked_while_a_queue_is_declared_is_waited_for(make, brokers):
    """No answer is no mistake of whoever sends: it is asked again, on the link that is kept."""
    layer = make()
    link = await publishing(layer, brokers)
    link.blocked = True
    link.passing.failing["queue_declare"] = TimeoutError()
    sending = asyncio.create_task(layer.send("jobs", {"n": 1}))
    await until(lambda: len(link.passing.named("queue_declare")) > 2)
    assert not sending.done()
    link.passing.failing.clear()
    await until(lambda: sent(link) == [("jobs", {"n": 1})])
    link.wires[0].callbacks["on_confirm"](1, False, True)
    await sending
    assert brokers.links == [link]


LIMIT = ChannelPreconditionFailed(
    "PRECONDITION_FAILED - cannot declare queue 'asgi.c.jobs': queue limit in vhost 'carillon' (0) is reached"
)


def refuse(link, *, there):
    """The broker makes no queue; whether those that are asked for are there already."""

    async def declare(name, *, passive=False, **options):
        link.passing.calls.append(("queue_declare", name))
        if not passive:
            raise LIMIT
        if not there:
            raise ChannelNotFoundEntity(f"NOT_FOUND - no queue '{name}' in vhost 'carillon'")

    link.passing.queue_declare = declare


@pytest.mark.parametrize("channel", ["jobs", "durable"])
async def test_a_broker_that_makes_no_more_queues_is_heard_in_its_own_words(make, brokers, caplog, channel):
    layer = make(durable=["durable"])
    for link in (await publishing(layer, brokers), await layer.session().receiver.supervisor.link(5)):
        refuse(link, there=False)
    with pytest.raises(ConfigurationError, match=r"cannot be declared: .*queue limit in vhost"):
        await layer.send(channel, {"n": 1})
    assert "exists with other options" not in caplog.text
    with pytest.raises(BrokerUnavailable, match=r"cannot be opened: .*queue limit in vhost"):
        await EventStream(layer, "log").open()


async def test_a_queue_that_exists_with_other_options_is_used_as_it_is_with_a_warning(make, brokers, caplog):
    link = await publishing(make(), brokers)
    refuse(link, there=True)
    topology = Topology("asgi", 60)
    await declare_queue(link, topology, topology.durable_queue("jobs", Durable()))
    await stream.declare(link, stream.Stream("asgi.s.log"))
    for name in ("asgi.d.jobs", "asgi.d.jobs.dead", "asgi.s.log"):
        assert f"Queue {name} exists with other options and is used as it is" in caplog.text
    assert link.passing.named("queue_bind") == [["asgi.d.jobs", "asgi", "d.jobs"]]


async def test_a_queue_is_declared_on_the_next_link_where_the_first_went_meanwhile(make, brokers):
    """Given up by this side: the socket stands, and nothing but the cancelled call says that it has ended."""
    layer = make()
    link = await publishing(layer, brokers)
    link.passing.gate.clear()
    sending = asyncio.create_task(layer.send("q", {"n": 1}))
    await until(lambda: link.passing.named("queue_declare"))
    link.give_up("the broker ended a consumer")
    await until(lambda: len(brokers.links) == 2)
    await until(lambda: sent(brokers.links[1]) == [("q", {"n": 1})])
    brokers.links[1].wires[0].callbacks["on_confirm"](1, False, True)
    await sending


async def test_whoever_waits_for_a_call_on_a_link_that_goes_hears_that_and_is_not_cancelled(brokers):
    link = Link()
    link.passing.gate.clear()
    waiting = asyncio.create_task(link.attempt(lambda channel: channel.queue_declare("q")))
    await until(lambda: link.passing.calls)
    await link.close()
    with pytest.raises(BrokerUnavailable):
        await waiting


async def test_calls_whose_callers_went_away_still_count(brokers):
    """They run to their end, each with a channel: as many as the broker allows would soon be in use."""
    link = Link()
    link._attempts, at_once, most = asyncio.Semaphore(3), 0, 0
    gate = asyncio.Event()

    async def call(channel):
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await gate.wait()
        at_once -= 1

    async def opened(tap):
        return Wire(link, {})

    link._open = opened
    tasks = [asyncio.create_task(connection.Link.attempt(link, call)) for _ in range(3)]
    await until(lambda: at_once == 3)
    for task in tasks:
        task.cancel()
    late = [asyncio.create_task(connection.Link.attempt(link, call)) for _ in range(3)]
    await asyncio.sleep(0.01)
    gate.set()
    await asyncio.gather(*tasks, *late, return_exceptions=True)
    assert (most, at_once) == (3, 0)


async def test_a_close_that_has_begun_takes_nothing_more(make, brokers):
    layer = make()
    link = await publishing(layer, brokers)
    session = layer.session()
    closing = asyncio.create_task(session.close(0.0))
    await asyncio.sleep(0)
    assert session.sender._closed is not None
    with pytest.raises(BrokerUnavailable):
        await session.sender.send(layer.group_destination("g"), layer.encode({"n": 1}), 0.1)
    await closing
    assert sent(link) == []


async def test_a_closed_session_never_connects_again(make, brokers):
    layer = make(timeout=0.1)
    link = await publishing(layer, brokers)
    session = layer.session()
    await layer.close()
    for call in (
        session.sender.supervisor.link(0.1),
        session.receiver.supervisor.link(0.1),
        (await session.receiver.inbox(layer.destination("q").queue)).receive(),
    ):
        with pytest.raises(BrokerUnavailable):
            await call
    assert brokers.links == [link]


async def test_a_worker_that_starts_while_its_layer_is_closed_ends(make, brokers):
    brokers.found = [BrokerUnavailable("down")]
    layer = make()
    working = asyncio.create_task(Worker(layer, print, "jobs", handle_signals=False).run())
    await until(lambda: brokers.tried)
    await layer.close()
    brokers.found = [Link]
    with pytest.raises(BrokerUnavailable):
        await working
    assert brokers.links == []


async def test_who_hears_twice_what_ended_all_attempts_hears_it_each_for_himself(make, brokers):
    brokers.found = [ConfigurationError("wrong password")]
    layer = make()
    heard = []
    for _ in range(3):
        with pytest.raises(ConfigurationError) as caught:
            await layer.new_channel()
        heard.append(caught.value)
    assert len({id(error) for error in heard}) == 3  # a traceback grows with each who raises it


# Groups


async def test_a_join_that_fails_takes_no_later_one_away(make, brokers):
    layer = make()
    channel = await layer.new_channel()
    (link,) = brokers.links
    link.wires[0].channel.gate.clear()
    first = asyncio.create_task(layer.group_add("g", channel))
    await asyncio.sleep(0)
    await layer.group_discard("g", channel)
    second = asyncio.create_task(layer.group_add("g", channel))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    link.wires[0].channel.gate.set()
    await second
    assert list(layer.session().receiver.mailboxes.groups["g"]) == [channel]


async def test_groups_that_nobody_could_join_leave_nothing_behind(make, brokers):
    layer = make(timeout=0.01)
    channel = await layer.new_channel()
    brokers.found = [BrokerUnavailable("down")]
    brokers.links[0].give_up("cut")
    receiver = layer.session().receiver
    await until(lambda: receiver._wire is None)
    for number in range(10):
        with pytest.raises(BrokerUnavailable):
            await layer.group_add(f"g{number}", channel)
    assert not receiver._joining
    assert not receiver._pending
    assert not receiver.mailboxes.groups


async def test_a_binding_that_is_cancelled_by_nobody_ends_the_link_and_who_waits_is_bound_on_the_next(
    make, brokers
):
    """aiormq throws CancelledError into a call as its connection goes."""
    layer = make()
    channel = await layer.new_channel()
    brokers.links[0].wires[0].channel.failing["queue_bind"] = asyncio.CancelledError()
    await layer.group_add("g", channel)
    assert [link.closed for link in brokers.links] == [True, False]


async def test_who_joins_is_not_kept_waiting_by_all_who_left(make, brokers, monkeypatch):
    monkeypatch.setattr("asgi_amqp.bindings.LINGER", 0.0)
    layer = make()
    channel = await layer.new_channel()
    wire = brokers.links[0].wires[0]
    for number in range(1000):
        await layer.group_add(f"g{number}", channel)
    wire.channel.gate.clear()
    for number in range(1000):
        await layer.group_discard(f"g{number}", channel)
    joining = asyncio.create_task(layer.group_add("late", channel))
    await until(lambda: wire.channel.named("queue_unbind"))
    wire.channel.gate.set()
    await joining
    calls = [(name, where[-1]) for name, *where in wire.channel.calls]
    assert [name for name, _ in calls[: calls.index(("queue_bind", "g.late"))]].count("queue_unbind") <= 100


# Receiving


async def test_a_reader_that_comes_while_an_inbox_goes_to_rest_is_heard(make, brokers, monkeypatch):
    monkeypatch.setattr("asgi_amqp.inbox.IDLE", 0.01)
    brokers.found = [GatedLink]
    layer = make(durable=["jobs"])
    receiving = asyncio.create_task(layer.receive("jobs"))
    wire = await consuming(brokers, "asgi.d.jobs")
    link = brokers.links[0]
    link.may_cancel.clear()
    wire.deliver(body("jobs", {"n": 1}), tag=1)
    assert await receiving == {"n": 1}
    await until(lambda: ("cancel", "tag-1") in wire.answers)
    receiving = asyncio.create_task(layer.receive("jobs"))
    await asyncio.sleep(0.01)
    link.may_cancel.set()
    await until(lambda: sum(len(each.consuming) for each in consumed(link, "asgi.d.jobs")) == 2)
    consumed(link, "asgi.d.jobs")[-1].deliver(body("jobs", {"n": 2}), tag=2)
    assert await receiving == {"n": 2}


async def test_an_inbox_that_rests_when_the_link_is_cut_fetches_nothing_for_nobody(
    make, brokers, monkeypatch
):
    monkeypatch.setattr("asgi_amqp.inbox.IDLE", 0.01)
    layer = make(durable=["jobs"])
    receiving = asyncio.create_task(layer.receive("jobs"))
    wire = await consuming(brokers, "asgi.d.jobs")
    wire.deliver(body("jobs", {"n": 1}, {"n": 2}), tag=1)  # begun: the second stays here to be read
    assert await receiving == {"n": 1}
    await until(lambda: ("cancel", "tag-1") in wire.answers)
    brokers.links[0].give_up("cut")
    await until(lambda: layer.session().receiver._wire not in (None, wire) and len(brokers.links) == 2)
    assert consumed(brokers.links[1], "asgi.d.jobs") == []
    receiving = asyncio.create_task(layer.receive("jobs"))
    await until(lambda: consumed(brokers.links[1], "asgi.d.jobs"))
    consumed(brokers.links[1], "asgi.d.jobs")[0].deliver(body("jobs", {"n": 2}), tag=1)
    assert await receiving == {"n": 2}


async def test_normal_channels_that_nobody_receives_on_any_more_are_forgotten(make, brokers, monkeypatch):
    monkeypatch.setattr("asgi_amqp.inbox.IDLE", 0.001)
    layer = make(expiry=0.01, durable=["jobs"])
    receiver = layer.session().receiver

    def swept():
        receiver._sweeper.cancel()
        receiver._sweep()
        return sorted(receiver._inboxes)

    staying = asyncio.create_task(layer.receive("staying"))
    for number in range(3):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await layer.receive(f"reply-{number}")
    returned = await receiver.inbox(layer.destination("jobs").queue)
    returned.box.put_first({"n": 1})  # for its next reader
    await until(lambda: swept() == ["asgi.c.staying", "asgi.d.jobs"])
    assert len(receiver.consumers) == 1
    assert await layer.receive("jobs") == {"n": 1}
    await until(lambda: swept() == ["asgi.c.staying"])
    (wire,) = [each for each in consumed(brokers.links[0], "asgi.c.staying") if not each.closed]
    wire.deliver(body("staying", {"n": 2}), tag=1)
    assert await staying == {"n": 2}


async def test_an_inbox_that_somebody_is_about_to_read_is_not_forgotten(make, brokers):
    """A reader in another loop has been given it, and comes in a moment."""
    layer = make()
    receiver, queue = layer.session().receiver, layer.destination("q").queue
    inbox = await receiver.inbox(queue)
    inbox.box.read_at -= 1000
    assert await receiver.inbox(queue) is inbox
    receiver._sweeper.cancel()
    receiver._sweep()
    assert list(receiver._inboxes) == ["asgi.c.q"]


async def test_a_message_whose_reader_in_another_loop_went_away_outlives_a_lost_link(make, brokers):
    """It has been acknowledged, and does not come again."""
    layer = make(durable=["jobs"])
    inbox = await layer.session().receiver.inbox(layer.destination("jobs").queue)
    receiving = asyncio.create_task(inbox.receive())
    wire = await consuming(brokers, "asgi.d.jobs")
    wire.deliver(body("jobs", {"n": 1}), tag=1)
    wire.deliver(body("jobs", {"n": 2}), tag=2)
    inbox.box.put_first(await receiving)  # as `fetch` does when who asked was cancelled meanwhile
    brokers.links[0].give_up("cut")
    await until(lambda: len(brokers.links) == 2 and consumed(brokers.links[1], "asgi.d.jobs"))
    assert wire.answers == [("ack", 1)]
    consumed(brokers.links[1], "asgi.d.jobs")[0].deliver(body("jobs", {"n": 2}), tag=1)
    async with asyncio.timeout(5):
        assert [await layer.receive("jobs") for _ in range(2)] == [{"n": 1}, {"n": 2}]


async def test_a_worker_that_drains_takes_nothing_new_from_the_next_link(make, brokers):
    layer = make(durable=["jobs"])
    finish, begun = asyncio.Event(), asyncio.Event()

    async def handler(message):
        begun.set()
        await finish.wait()

    worker = Worker(layer, handler, "jobs", handle_signals=False)
    working = asyncio.create_task(worker.run())
    wire = await consuming(brokers, "asgi.d.jobs")
    wire.deliver(body("jobs", {"type": "x"}), tag=1)
    await begun.wait()
    worker.stop()
    await until(lambda: ("cancel", "tag-1") in wire.answers)
    brokers.links[0].give_up("cut")
    await until(lambda: layer.session().receiver._wire is not None and len(brokers.links) == 2)
    assert consumed(brokers.links[1], "asgi.d.jobs") == []
    finish.set()
    await working


async def test_a_consumer_that_came_too_late_for_who_wanted_it_holds_nothing(make, brokers):
    brokers.found = [GatedLink]
    layer = make(durable=["jobs"], timeout=0.05)
    link = await layer.session().receiver.supervisor.link(5)
    link.may_consume.clear()
    with pytest.raises(BrokerUnavailable):
        await layer.receive("jobs")
    await until(lambda: all(wire.closed for wire in consumed(link, "asgi.d.jobs")))
    link.may_consume.set()


async def test_a_gap_that_says_nonsense_is_followed_by_the_next(make, brokers):
    layer = make(gap_type="gap")
    channel = await layer.new_channel()
    gaps = brokers.links[0].wires[1]
    with pytest.raises(AttributeError):
        gaps.deliver(b"", tag=1, headers={"x-death": ["nonsense"]})
    assert gaps.answers == [("ack", 1)]  # one at a time: unacknowledged, it would be the last
    gaps.deliver(b"", tag=2, headers={"x-death": [{"reason": "expired"}]})
    assert await layer.receive(channel) == {"type": "gap", "reason": "expired", "count": None}


async def test_a_worker_whose_queue_holds_what_is_no_message_goes_on(make, brokers):
    layer = make(durable=["jobs"])
    done = []

    async def handler(message):
        done.append(message["n"])

    worker = Worker(layer, handler, "jobs", handle_signals=False)
    working = asyncio.create_task(worker.run())
    wire = await consuming(brokers, "asgi.d.jobs")
    wire.deliver(b"\xdd\x00\x00\x00\x02\xa0\x05", tag=1)  # a batch of the number 5
    wire.deliver(body("jobs"), tag=2)  # a batch of nothing
    wire.deliver(body("jobs", {"n": 1}), tag=3)
    await until(lambda: done == [1])
    assert ("reject", 1, False) in wire.answers
    assert ("ack", 2) in wire.answers
    assert layer.stats.lost == {"undecodable": 1}
    worker.stop()
    await working


async def test_one_reader_that_fails_and_goes_away_takes_no_turn_from_another(make, brokers):
    layer = make()
    channel = await layer.new_channel()
    box = layer.session().receiver.box(channel)
    staying, going = (asyncio.create_task(layer.receive(channel)) for _ in range(2))
    await until(lambda: len(box.waiters) == 2)
    box.wake()
    box.fail(BrokerUnavailable("no"))
    going.cancel()
    await asyncio.gather(going, return_exceptions=True)
    assert box.woken == 0
    staying.cancel()
    await asyncio.gather(staying, return_exceptions=True)
    assert box.woken == 0


async def test_a_consumer_that_is_stopped_while_it_is_attached_consumes_nothing(make, brokers):
    class Slow(Link):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.passing.gate.clear()

    brokers.found = [Link, Slow]
    layer = make(durable=["jobs"])
    working = asyncio.create_task(Worker(layer, print, "jobs", handle_signals=False).run())
    await consuming(brokers, "asgi.d.jobs")
    brokers.links[0].give_up("cut")
    await until(lambda: len(brokers.links) == 2 and brokers.links[1].passing.named("queue_declare"))
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
    brokers.links[1].passing.gate.set()
    await until(lambda: layer.session().receiver._wire is not None)
    assert consumed(brokers.links[1], "asgi.d.jobs") == []


class Odd(BaseException):
    """As some libraries end their tasks."""


async def test_a_slot_outlives_whatever_a_handler_raises(make, brokers):
    layer = make(durable=["jobs"])
    done = []

    async def handler(message):
        if message["n"] == 1:
            raise Odd
        done.append(message["n"])

    worker = Worker(layer, handler, "jobs", handle_signals=False)
    working = asyncio.create_task(worker.run())
    wire = await consuming(brokers, "asgi.d.jobs")
    wire.deliver(body("jobs", {"n": 1}), tag=1)
    wire.deliver(body("jobs", {"n": 2}), tag=2)
    await until(lambda: done == [2])
    assert worker.failed == 1
    worker.stop()
    await working


async def test_what_runs_when_the_link_is_cut_may_finish_when_the_worker_stops(make, brokers):
    layer = make(durable=["jobs"])
    finish, begun = asyncio.Event(), asyncio.Event()

    async def handler(message):
        begun.set()
        await finish.wait()

    worker = Worker(layer, handler, "jobs", handle_signals=False)
    working = asyncio.create_task(worker.run())
    wire = await consuming(brokers, "asgi.d.jobs")
    wire.deliver(body("jobs", {"n": 1}, {"n": 2}), tag=1)  # the second comes again, here or elsewhere
    wire.deliver(body("jobs", {"n": 3}), tag=2)
    await begun.wait()
    brokers.links[0].give_up("cut")
    await until(lambda: len(brokers.links) == 2 and consumed(brokers.links[1], "asgi.d.jobs"))
    worker.stop()
    await until(lambda: ("cancel", "tag-1") in consumed(brokers.links[1], "asgi.d.jobs")[0].answers)
    await asyncio.sleep(0.01)
    finish.set()
    async with asyncio.timeout(5):
        await working
    assert worker.handled == 1


async def test_a_link_that_is_closed_is_not_one_that_was_lost(make, brokers):
    layer = make()
    await layer.new_channel()
    await publishing(layer, brokers)
    await layer.close()
    assert layer.stats.reconnects == 0


async def test_a_loop_that_ends_as_it_is_closed_keeps_no_other_from_closing(make, brokers):
    layer = make()
    link = await publishing(layer, brokers)
    ended = layer.session()

    class Ending:
        loop = ended.loop

        async def close(self):
            raise BrokerUnavailable("the event loop that was to do this has ended")

    layer._sessions = {Running(): Ending(), ended.loop: ended}
    await layer.close()
    assert link.closed


class Running:
    def is_running(self):
        return True


# Loops that ended


def test_channels_of_loops_that_ended_are_forgotten(brokers):
    layer = AMQPChannelLayer("amqp://broker.test")

    async def use():
        await layer.new_channel()

    for _ in range(5):
        asyncio.run(use())
    assert len(layer._homes) <= 1


async def test_two_threads_may_find_the_same_loop_that_ended(make, brokers):
    layer = make()

    class Ended:
        def is_closed(self):
            layer._sessions.pop(self, None)  # as another thread does just then
            return True

    layer._sessions[Ended()] = None
    assert layer.session().living


async def test_a_channel_whose_batch_was_read_to_its_end_after_a_rest_is_forgotten(
    make, brokers, monkeypatch
):
    monkeypatch.setattr("asgi_amqp.inbox.IDLE", 0.01)
    layer = make(expiry=0.05, durable=["jobs"])
    receiver = layer.session().receiver
    inbox = await receiver.inbox(layer.destination("jobs").queue)
    receiving = asyncio.create_task(layer.receive("jobs"))
    wire = await consuming(brokers, "asgi.d.jobs")
    wire.deliver(body("jobs", {"n": 1}, {"n": 2}), tag=1)
    assert (await receiving)["n"] == 1
    await until(lambda: inbox._consumer is not None and inbox._consumer.paused and inbox._starting is None)
    assert (await layer.receive("jobs"))["n"] == 2
    await until(lambda: inbox.idle)
    assert wire.closed


async def test_a_batch_that_nobody_reads_to_its_end_goes_back_to_others(make, brokers, monkeypatch):
    """Held for ever, it would cost the link when the broker's consumer_timeout is over."""
    monkeypatch.setattr("asgi_amqp.inbox.IDLE", 0.01)
    monkeypatch.setattr("asgi_amqp.inbox.BEGUN", 0.05, raising=False)
    layer = make(durable=["jobs"])
    receiver = layer.session().receiver
    inbox = await receiver.inbox(layer.destination("jobs").queue)
    receiving = asyncio.create_task(layer.receive("jobs"))
    wire = await consuming(brokers, "asgi.d.jobs")
    batch = body("jobs", {"n": 1}, {"n": 2}, {"n": 3})
    wire.deliver(batch, tag=1)
    assert (await receiving)["n"] == 1
    await until(lambda: wire.closed)
    assert [answer for answer in wire.answers if answer[0] != "cancel"] == [("nack", 1)]
    assert inbox.idle
    assert receiver.consumers == set()
    receiving = asyncio.create_task(layer.receive("jobs"))
    await until(lambda: len(consumed(brokers.links[0], "asgi.d.jobs")) == 2)
    consumed(brokers.links[0], "asgi.d.jobs")[-1].deliver(batch, tag=1)
    assert [await receiving, await layer.receive("jobs"), await layer.receive("jobs")] == [
        {"n": number} for number in (1, 2, 3)
    ]


async def test_who_goes_on_reading_a_batch_slowly_reads_each_of_it_once(make, brokers, monkeypatch):
    monkeypatch.setattr("asgi_amqp.inbox.IDLE", 0.01)
    layer = make(durable=["jobs"])
    inbox = await layer.session().receiver.inbox(layer.destination("jobs").queue)
    receiving = asyncio.create_task(layer.receive("jobs"))
    wire = await consuming(brokers, "asgi.d.jobs")
    wire.deliver(body("jobs", *({"n": number} for number in range(4))), tag=1)
    assert (await receiving)["n"] == 0
    now = asyncio.get_running_loop().time
    for number in (1, 2):
        await until(lambda: inbox._timer is not None and inbox._timer.when() > now() + 60)
        look = inbox._timer
        assert (await layer.receive("jobs"))["n"] == number
        assert look.cancelled()
    assert ("nack", 1) not in wire.answers
    assert (await layer.receive("jobs"))["n"] == 3
    await until(lambda: wire.closed)
    assert [answer for answer in wire.answers if answer[0] != "cancel"] == [("ack", 1)]


async def test_a_reader_that_comes_in_the_turn_in_which_an_inbox_goes_to_rest_is_heard(make, brokers):
    layer = make(durable=["jobs"])
    inbox = await layer.session().receiver.inbox(layer.destination("jobs").queue)
    receiving = asyncio.create_task(layer.receive("jobs"))
    wire = await consuming(brokers, "asgi.d.jobs")
    wire.deliver(body("jobs", {"n": 1}), tag=1)
    assert await receiving == {"n": 1}
    receiving = asyncio.create_task(layer.receive("jobs"))  # it runs before what the timer begins
    inbox._stop_if_idle()
    await until(lambda: sum(len(each.consuming) for each in consumed(brokers.links[0], "asgi.d.jobs")) == 2)
    consumed(brokers.links[0], "asgi.d.jobs")[-1].deliver(body("jobs", {"n": 2}), tag=2)
    assert await receiving == {"n": 2}


async def test_who_takes_a_channel_out_of_a_group_that_it_is_not_in_starts_nothing(make):
    layer = make()
    await layer.group_discard("g", "jobs")
    assert layer.publisher.running is None


class Cut(Link):
    """Its loop hears of an abort when it runs again."""

    def abort(self):
        super().abort()
        if not self.lost.done():
            self.lost.get_loop().call_soon_threadsafe(self.give_up, "reset by a test")


def test_a_loop_that_pauses_while_its_layer_is_closed_hears_it_when_it_goes_on(brokers):
    """Between two calls of run_until_complete it does not run, and has not ended."""
    brokers.found = [Cut]
    layer = AMQPChannelLayer("amqp://broker.test")
    loop = asyncio.new_event_loop()
    channel = loop.run_until_complete(layer.new_channel())
    loop.run_until_complete(layer.send(channel, {"n": 1}))
    session = layer._sessions[loop]
    reading = loop.create_task(session.receiver.receive(session.receiver.box(channel)))
    waiting = loop.create_task(layer.send("jobs", {"n": 2}))
    loop.run_until_complete(asyncio.sleep(0.01))
    links = list(brokers.links)
    assert len(links) == 2
    asyncio.run(layer.close())
    for task in (reading, waiting):
        with pytest.raises(BrokerUnavailable, match="closed"):
            loop.run_until_complete(asyncio.wait_for(task, 5))
    loop.run_until_complete(asyncio.sleep(0.05))
    assert brokers.links == links
    assert all(link.closed for link in links)
    assert not asyncio.all_tasks(loop)
    loop.close()


def test_a_loop_that_has_ended_is_left_as_it_is_when_its_layer_is_closed(brokers):
    layer = AMQPChannelLayer("amqp://broker.test")
    asyncio.run(layer.new_channel())
    (session,) = layer._sessions.values()
    asyncio.run(layer.close())
    assert not session.living
    assert session.receiver.supervisor.hopeless is not None


async def test_a_reader_from_another_loop_is_not_deaf_where_its_channel_is_swept_meanwhile(make, brokers):
    """It finds the mailbox in one turn of its loop, and waits there in another."""
    layer = make()
    channel = await layer.new_channel()
    receiver = layer.session().receiver
    receiver.box(channel).read_at -= 61  # nobody has read for longer than the expiry
    box = await receiver.open(channel)
    receiver._sweeper.cancel()
    receiver._sweep()
    reading = asyncio.create_task(receiver.receive(box))
    await asyncio.sleep(0)
    brokers.links[0].wires[0].deliver(body(channel, {"n": 1}))
    assert (await asyncio.wait_for(reading, 2))["n"] == 1
