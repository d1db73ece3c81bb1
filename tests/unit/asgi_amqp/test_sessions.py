"""A layer on links that a test answers for: who sends and who receives, cancelled, cut off and closed."""

import asyncio
import threading
import time

import pytest
from aiormq import AMQPError
from pamqp.commands import Basic

from asgi_amqp import BrokerUnavailable, ChannelFull, MessageTooLarge
from asgi_amqp.codec import decode, encode, encode_batch, encode_target
from asgi_amqp.exceptions import ConfigurationError
from asgi_amqp.sender import Forward
from asgi_amqp.transport import Delivery
from asgi_amqp.worker import Worker
from tests.unit.asgi_amqp.links import Link, until


def sent(link):
    """Events that left on the wires of a publishing link, in the order of the wires."""
    return [
        (target, message)
        for wire in link.wires
        for _, body, _ in wire.published
        for target, message in decode(body)
    ]


def settle(link):
    """The broker confirms all that left, and answers."""
    confirming, plain = link.wires
    for _, _, tag in confirming.published:
        confirming.callbacks["on_confirm"](tag, False, True)
    plain.callbacks["on_answer"]()


def body(channel, *messages):
    return encode_batch([encode_target(channel) + encode(message) for message in messages])


async def publishing(layer, brokers):
    link = await layer.session().sender.supervisor.link(5)
    await until(lambda: layer.session().sender._link is link)
    return link


async def consuming(brokers, queue):
    """The wire on which a queue is consumed, once it is."""

    def found():
        return [wire for link in brokers.links for wire in link.wires if (queue, 1) in wire.consuming]

    await until(found)
    return found()[0]


# Sending


async def test_senders_that_wait_for_the_first_connection_leave_in_the_order_of_their_calls(make, brokers):
    layer = make()
    await asyncio.gather(*(layer.group_send("g", {"n": number}) for number in range(100)))
    await until(lambda: len(sent(brokers.links[0])) == 100)
    assert [message["n"] for _, message in sent(brokers.links[0])] == list(range(100))


async def test_what_is_larger_than_a_limit_never_leaves(make, brokers):
    layer = make(max_message_bytes=1000)
    link = await publishing(layer, brokers)
    for call in (layer.group_send("g", {"x": bytes(1000)}), layer.send("q", {"x": bytes(1000)})):
        with pytest.raises(MessageTooLarge):
            await call
    assert sent(link) == []


async def test_a_broker_that_takes_less_than_we_thought_is_believed_and_is_asked_once(make, brokers):
    layer = make()
    link = await publishing(layer, brokers)
    sending = asyncio.create_task(layer.send("q", {"x": bytes(2000)}))
    await until(lambda: sent(link))
    link.give_up("406 PRECONDITION_FAILED - message size 2021 is larger than configured max size 1000")
    with pytest.raises(MessageTooLarge, match="at most 1000 bytes"):
        await sending
    again = await publishing(layer, brokers)
    assert again is not link
    with pytest.raises(MessageTooLarge):
        await layer.send("q", {"x": bytes(2000)})
    await layer.group_send("g", {"x": 1})
    await until(lambda: sent(again))
    assert sent(again) == [("g", {"x": 1})]


async def test_a_close_settles_everyone_who_sends(make, brokers):
    layer = make(buffer_bytes=1000)
    link = await publishing(layer, brokers)
    waiting = [asyncio.create_task(layer.send("q", {"x": bytes(300)})) for _ in range(5)]
    await until(lambda: sent(link))
    await layer.close()
    errors = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(error, BrokerUnavailable) for error in errors)


async def test_room_of_a_channel_of_this_very_process_is_given_back_when_the_link_is_cut(make, brokers):
    layer = make(capacity=2)
    channel = await layer.new_channel()
    link = await publishing(layer, brokers)
    for _ in range(2):
        await layer.send(channel, {"type": "x"})
    with pytest.raises(ChannelFull):
        await layer.send(channel, {"type": "x"})
    link.give_up("cut")
    await until(lambda: layer.stats.reconnects == 1)
    await layer.send(channel, {"type": "x"})


async def test_a_send_that_fails_after_the_link_was_cut_gives_its_room_back_once(make, brokers):
    layer = make(capacity=2, timeout=0.2)
    channel = await layer.new_channel()
    box = layer.session().receiver.box(channel)
    brokers.found = [BrokerUnavailable("down")]
    sending = asyncio.create_task(layer.send(channel, {"type": "x"}))
    await until(lambda: box.arriving == 1)
    layer.session()._lost()
    with pytest.raises(BrokerUnavailable):
        await sending
    assert box.arriving == 0


async def test_forwarding_to_normal_channels_is_bounded_like_all(make, brokers):
    layer = make(buffer_bytes=10_000)
    sender = layer.session().sender
    forward = Forward("jobs", sender, layer.destination("jobs"), 5.0)
    for _ in range(100):
        forward.put(None, [{"x": bytes(1000)}], 0.0)
        assert sender.outbox.buffered <= 10_000
    assert 90 <= layer.stats.lost["overflow"] <= 93


async def test_a_queue_that_withholds_its_confirms_stops_no_group_send(make, brokers):
    """Who waits for room that confirmed events have used up does not stand before the others."""
    layer = make(buffer_bytes=10_000, durable=["jobs"])
    link = await publishing(layer, brokers)
    jobs = [asyncio.create_task(layer.send("jobs", {"x": bytes(4000)})) for _ in range(4)]
    await until(lambda: layer.session().sender._queues[True])
    async with asyncio.timeout(1):
        await layer.group_send("g", {"x": 1})
    await until(lambda: ("g", {"x": 1}) in sent(link))
    for job in jobs:
        job.cancel()
    await asyncio.gather(*jobs, return_exceptions=True)


@pytest.mark.parametrize("name", ["chat_" + "\u0966" * 90, "\u0663", "room\n", "r\u00e4ume"])
async def test_a_name_that_amqp_has_no_room_for_costs_nobody_the_link(make, brokers, name):
    """Channels' own check takes digits of all scripts: 95 of them are more than 255 bytes."""
    layer = make()
    link = await publishing(layer, brokers)
    channel = await layer.new_channel()
    for call in (layer.group_add(name, channel), layer.group_send(name, {}), layer.send(name, {}),
                 layer.group_discard(name, channel), layer.send(f"x!{name}", {})):  # fmt: skip
        with pytest.raises(TypeError, match="ASCII"):
            await call
    for send in (layer.publisher.group_send, layer.publisher.send):
        with pytest.raises(TypeError, match="ASCII"):
            await asyncio.to_thread(send, name, {})
    await layer.group_add("g", channel)
    assert not link.lost.done()
    assert layer.stats.reconnects == 0


async def test_an_event_that_cannot_be_written_costs_the_link_and_no_tag(make, brokers, monkeypatch):
    """The outbox has counted it, the broker has not: confirms would be for others from then on."""
    layer = make(durable=["jobs"])
    link = await publishing(layer, brokers)
    real, broken = link.wires[0].publish, []

    def publish(exchange, keys, body, tag=0, **options):
        if not broken:
            broken.append(tag)
            raise ValueError("too long")
        return real(exchange, keys, body, tag, **options)

    link.wires[0].publish = publish
    job = asyncio.create_task(layer.send("jobs", {"n": 1}))
    await until(lambda: len(brokers.links) == 2 and ("jobs", {"n": 1}) in sent(brokers.links[1]))
    assert "could not be written: ValueError('too long')" in link.lost.result()
    settle(brokers.links[1])
    await job


async def test_who_waits_for_room_first_has_one_deadline_for_both(make, brokers):
    layer = make(buffer_bytes=10_000, durable=["jobs"], timeout=1.5)
    link = await publishing(layer, brokers)
    jobs = [asyncio.create_task(layer.send("jobs", {"x": bytes(4900)})) for _ in range(2)]
    await until(lambda: len(sent(link)) == 2)
    began = time.monotonic()
    late = asyncio.create_task(layer.send("jobs", {"x": bytes(4900)}))
    await asyncio.sleep(1)
    settle(link)  # now there is room
    await asyncio.gather(*jobs)
    with pytest.raises(BrokerUnavailable, match="not confirmed in time"):
        await late
    assert time.monotonic() - began < 2.2


async def test_who_waits_for_the_connection_and_another_process_has_one_deadline_for_both(make, brokers):
    brokers.found = [BrokerUnavailable("down")]
    layer = make(timeout=1.5)
    began = time.monotonic()
    joining = asyncio.create_task(layer.group_add("g", "specific.other!channel"))
    await asyncio.sleep(1)
    brokers.found = [Link]
    with pytest.raises(BrokerUnavailable, match="has it ended"):
        await joining
    assert time.monotonic() - began < 2.2


async def test_a_reader_that_is_thrown_away_is_woken_for_nothing(make, brokers):
    layer = make(capacity=5)
    channel = await layer.new_channel()
    reading = layer.receive(channel)
    reading.send(None)
    reading.close()
    box = layer._homes[channel][0]
    assert not box.waiters
    receiver = layer.session().receiver
    receiver._take_in(Delivery(body(channel, *({"n": n} for n in range(50))), 1, False, Basic.Properties()))
    assert box.count == 5
    assert [(await layer.receive(channel))["n"] for _ in range(5)] == list(range(5))


async def test_who_is_cancelled_takes_up_no_room(make, brokers):
    brokers.found = [BrokerUnavailable("down")]
    layer = make(durable=["jobs"])
    sender = layer.session().sender
    jobs = [asyncio.create_task(layer.send("jobs", {"x": bytes(4000)})) for _ in range(4)]
    await until(lambda: sender.outbox.buffered > 16_000)
    for job in jobs[1:]:
        job.cancel()
    async with asyncio.timeout(1):
        await until(lambda: sender.outbox.buffered < 8_000)
    assert sender.outbox.buffered > 4_000
    jobs[0].cancel()
    await asyncio.gather(*jobs, return_exceptions=True)


async def test_who_waits_for_room_hears_that_there_will_be_no_connection(make, brokers, monkeypatch):
    brokers.found = [BrokerUnavailable("down")]
    layer = make(buffer_bytes=10_000)
    sender, destination = layer.session().sender, layer.group_destination("g")
    while not sender.outbox.full(destination):
        sender.submit(destination, layer.encode({"x": bytes(500)}), None)
    waiting = [asyncio.create_task(layer.group_send("g", {"n": n})) for n in range(3)]
    await until(lambda: len(sender._queues[False]) == 3)
    brokers.found = [ConfigurationError("wrong password")]
    async with asyncio.timeout(2):
        for each in (*waiting, layer.group_send("g", {"n": 3})):
            with pytest.raises(ConfigurationError, match="wrong password"):
                await each
    brokers.found = [Link]
    monkeypatch.setattr("asgi_amqp.supervisor.REPEAT", 0)
    sending = asyncio.create_task(layer.group_send("g", {"n": 4}))
    await until(lambda: any("ask" in wire.answers for link in brokers.links for wire in link.wires))
    settle(brokers.links[0])
    await sending
    await until(lambda: ("g", {"n": 4}) in sent(brokers.links[0]))


# Groups


async def test_a_cancelled_group_add_disturbs_nobody(make, brokers):
    layer = make()
    channels = [await layer.new_channel() for _ in range(2)]
    (link,) = brokers.links
    link.wires[0].channel.gate.clear()
    staying = asyncio.create_task(layer.group_add("g", channels[0]))
    for _ in range(40):
        task = asyncio.create_task(layer.group_add("g", channels[1]))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert not staying.done()
    link.wires[0].channel.gate.set()
    await staying
    assert not link.lost.done()
    assert list(layer.session().receiver.mailboxes.groups["g"]) == [channels[0]]
    assert len([call for call in link.wires[0].channel.named("queue_bind") if call[2] == "g.g"]) == 1


async def test_a_repeated_group_add_that_fails_leaves_the_membership(make, brokers):
    layer = make(timeout=0.05)
    channel = await layer.new_channel()
    await layer.group_add("g", channel)
    (link,) = brokers.links
    brokers.found = [BrokerUnavailable("down")]
    link.give_up("cut")
    await until(lambda: not layer.session().receiver._bindings.bound)
    with pytest.raises(BrokerUnavailable):
        await layer.group_add("g", channel)
    assert list(layer.session().receiver.mailboxes.groups["g"]) == [channel]
    brokers.found = [Link]
    await until(lambda: layer.session().receiver._bindings.bound)
    layer.session().receiver._wire.deliver(body("g", {"n": 1}))
    assert await layer.receive(channel) == {"n": 1}


async def test_a_first_group_add_that_fails_leaves_no_membership(make, brokers):
    layer = make(timeout=0.05)
    channel = await layer.new_channel()
    (link,) = brokers.links
    link.wires[0].channel.gate.clear()
    with pytest.raises(BrokerUnavailable):
        await layer.group_add("g", channel)
    assert layer.session().receiver.mailboxes.groups == {}
    link.wires[0].channel.gate.set()


async def test_who_leaves_and_joins_while_the_group_is_unbound_hears_it(make, brokers, monkeypatch):
    monkeypatch.setattr("asgi_amqp.bindings.LINGER", 0.01)
    layer = make()
    channel = await layer.new_channel()
    await layer.group_add("g", channel)
    wire = brokers.links[0].wires[0]
    wire.channel.gate.clear()
    await layer.group_discard("g", channel)
    await until(lambda: wire.channel.named("queue_unbind"))
    joining = asyncio.create_task(layer.group_add("g", channel))
    await asyncio.sleep(0)
    assert not joining.done()
    wire.channel.gate.set()
    await joining
    binds = [name for name, *arguments in wire.channel.calls if "bind" in name and arguments[2] == "g.g"]
    assert binds == ["queue_bind", "queue_unbind", "queue_bind"]


async def test_a_normal_channel_is_a_member_of_a_group_once_whichever_loop_says_so(make, brokers):
    layer = make()
    other = asyncio.new_event_loop()
    thread = threading.Thread(target=other.run_forever)
    thread.start()

    def there(call):
        return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(call, other))

    def members():
        groups = [session.receiver.mailboxes.groups for session in layer._all()]
        return [member for each in groups for member in each.get("g", ())]

    await there(layer.group_add("g", "jobs"))
    await layer.group_add("g", "jobs")
    assert members() == ["jobs"]
    for session in layer._all():  # one group_send reaches the queue of each
        deliver = session.receiver.mailboxes.deliver
        session.loop.call_soon_threadsafe(deliver, [("g", {"n": 1})], 10, time.monotonic())
    await until(lambda: [event for link in brokers.links for event in sent(link)] == [("jobs", {"n": 1})])
    await layer.group_discard("g", "jobs")  # from another loop than it came from
    assert members() == []
    await layer.close()
    other.call_soon_threadsafe(other.stop)
    await asyncio.to_thread(thread.join)
    other.close()


async def test_a_normal_channel_stays_in_its_groups_when_the_loop_that_added_it_ends(make, brokers):
    layer = make()
    await asyncio.to_thread(asyncio.run, layer.group_add("g", "jobs"))
    layer.session()  # sweeps those of loops that ended
    assert list(layer.publisher.background.session.receiver.mailboxes.groups) == ["g"]
    await layer.group_discard("g", "jobs")
    assert not layer.publisher.background.session.receiver.mailboxes.groups


# Receiving


async def test_a_close_settles_everyone_who_receives(make, brokers):
    layer = make()
    channel = await layer.new_channel()
    receiving = [asyncio.create_task(layer.receive(name)) for name in (channel, channel, "normal")]
    await until(lambda: len(layer.session().receiver.box(channel).waiters) == 2)
    await layer.close()
    errors = await asyncio.gather(*receiving, return_exceptions=True)
    assert all(isinstance(error, BrokerUnavailable) for error in errors)
    with pytest.raises((BrokerUnavailable, ValueError)):
        await layer.receive(channel)


async def test_what_is_prefetched_of_a_durable_channel_and_not_begun_goes_back_untried(
    make, brokers, monkeypatch
):
    monkeypatch.setattr("asgi_amqp.inbox.IDLE", 0.01)
    layer = make(durable=["jobs"])
    receiving = asyncio.create_task(layer.receive("jobs"))
    wire = await consuming(brokers, "asgi.d.jobs")
    assert wire.consuming[0] == ("asgi.d.jobs", 1)  # each that is fetched ahead may count as tried
    wire.deliver(body("jobs", {"n": 1}), tag=1)
    wire.deliver(body("jobs", {"n": 2}), tag=2)
    assert await receiving == {"n": 1}
    await until(lambda: ("nack", 2) in wire.answers)
    assert ("ack", 1) in wire.answers
    assert not [answer for answer in wire.answers if answer[0] == "reject"]


async def test_a_durable_queue_that_cannot_be_consumed_holds_up_nothing_else(make, brokers, monkeypatch):
    """After a reconnect its queue may have no leader for a while."""
    monkeypatch.setattr("asgi_amqp.consumer.PAUSE", 0.001)
    layer = make(durable=["jobs"])
    channel = await layer.new_channel()
    receiving = asyncio.create_task(layer.receive("jobs"))
    await consuming(brokers, "asgi.d.jobs")
    without_leader = type("WithoutLeader", (Link,), {})

    def begin(self, *arguments):
        Link.__init__(self, *arguments)
        self.passing.failing["queue_declare"] = AMQPError("no leader")

    without_leader.__init__ = begin
    brokers.found = [without_leader]
    brokers.links[0].give_up("cut")
    await until(lambda: layer.session().receiver.supervisor.current in brokers.links[1:])
    assert len(brokers.links) == 2
    second = brokers.links[1]
    second.wires[0].deliver(body(channel, {"n": 1}))
    assert await layer.receive(channel) == {"n": 1}
    await until(lambda: len(second.passing.named("queue_declare")) > 2)
    second.passing.failing.clear()
    await until(lambda: any(wire.consuming == [("asgi.d.jobs", 1)] for wire in second.wires))
    second.wires[-1].deliver(body("jobs", {"n": 2}), tag=1)
    assert await receiving == {"n": 2}


async def test_what_has_expired_is_thrown_away_though_nobody_looks_at_the_clock(make, brokers):
    layer = make(expiry=0.2)
    channel = await layer.new_channel()
    layer.session().receiver._sweeper.cancel()
    brokers.links[0].wires[0].deliver(body(channel, {"n": 1}, {"n": 2}))
    assert await layer.receive(channel) == {"n": 1}
    await until(lambda: layer.stats.lost["expired"] == 1)


async def test_each_member_of_a_group_reads_a_message_of_its_own(make, brokers):
    """The second of a parcel, too, which is read the quick way."""
    layer = make()
    first, second = await layer.new_channel(), await layer.new_channel()
    receiver = layer.session().receiver
    for channel in (first, second):
        receiver.mailboxes.join("g", channel, receiver.box(channel))
    brokers.links[0].wires[0].deliver(body("g", {"n": 1}, {"n": 2}))
    for _ in range(2):
        (await layer.receive(first)).clear()
    assert [await layer.receive(second) for _ in range(2)] == [{"n": 1}, {"n": 2}]


async def test_a_worker_that_stops_consumes_no_more(make, brokers, monkeypatch):
    """A renewal that was begun in the turn of the signal would end the pause."""
    calls = []

    class Consuming:
        def __init__(self, *_):
            pass

        async def started(self, timeout):
            pass

        async def renew(self):
            await asyncio.sleep(0)
            calls.append("renew")

        async def pause(self):
            calls.append("pause")

        async def stop(self):
            pass

    monkeypatch.setattr("asgi_amqp.worker.Consumer", Consuming)

    async def handle(message):
        pass

    worker = Worker(make(durable=["jobs"]), handle, "jobs", handle_signals=False)
    running = asyncio.create_task(worker.run())
    await asyncio.sleep(0.01)
    resting = object()
    worker._resting[resting] = asyncio.get_running_loop().call_later(60, lambda: None)
    worker._held.add(resting)
    worker._make_room()
    worker._resting.clear()
    worker._stopping.set()
    await running
    assert calls == ["renew", "pause"]


async def test_what_is_not_a_message_of_a_layer_is_counted_and_becomes_a_dead_letter(make, brokers):
    layer = make(durable=["jobs"])
    receiving = asyncio.create_task(layer.receive("jobs"))
    wire = await consuming(brokers, "asgi.d.jobs")
    wire.deliver(b"nonsense", tag=1)
    wire.deliver(body("jobs"), tag=2)  # a batch of nothing
    wire.deliver(body("jobs", {"n": 1}), tag=3)
    assert await receiving == {"n": 1}
    assert wire.answers[:2] == [("reject", 1, False), ("ack", 2)]
    assert layer.stats.lost == {"undecodable": 1}


async def test_nonsense_in_the_queue_of_a_process_is_counted_and_stops_nothing(make, brokers):
    layer = make()
    channel = await layer.new_channel()
    wire = brokers.links[0].wires[0]
    wire.deliver(b"nonsense")
    wire.deliver(encode_batch([encode_target("g") + b"\x05"]))
    wire.deliver(body(channel, {"n": 1}))
    assert await layer.receive(channel) == {"n": 1}
    assert layer.stats.lost["undecodable"] >= 1
