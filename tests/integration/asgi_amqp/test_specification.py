"""The Channels specification, point by point."""

import asyncio
import time

import pytest

from asgi_amqp import ChannelFull
from asgi_amqp.codec import encode, encode_batch, encode_target
from tests.integration.asgi_amqp.broker import eventually


async def receive(layer, channel, seconds=20):
    return await asyncio.wait_for(layer.receive(channel), seconds)


async def nothing(layer, channel, sender=None):
    """Nothing has come of what `sender` has sent: what it sends now to the same channel is next."""
    await (sender or layer).send(channel, {"type": "fence"})
    assert await receive(layer, channel) == {"type": "fence"}


async def test_send_and_receive_on_a_process_local_channel(layer):
    channel = await layer.new_channel()
    assert channel.startswith("specific.")
    assert "!" in channel
    await layer.send(channel, {"type": "test.message", "text": "Ahoy"})
    assert await receive(layer, channel) == {"type": "test.message", "text": "Ahoy"}


async def test_send_and_receive_on_a_normal_channel(make_layer):
    sender, receiver = make_layer(), make_layer()
    for number in range(10):
        await sender.send("normal", {"type": "test", "number": number})
    assert [(await receive(receiver, "normal"))["number"] for _ in range(10)] == list(range(10))


async def test_a_channel_made_here_is_reached_from_another_layer(make_layer):
    here, there = make_layer(), make_layer()
    channel = await here.new_channel("reply")
    assert channel.startswith("reply.")
    await there.send(channel, {"type": "hello"})
    assert await receive(here, channel) == {"type": "hello"}


@pytest.mark.parametrize(
    "value",
    [b"\x00\xff", "ünï\ud800", None, True, 2**63, -(2**100), 1.5, [1, [2, [None]]],
     {"a": {"b": {"c": b"x"}}},     "x" * 300_000],
    ids=lambda value: str(value)[:12].encode("ascii", "replace").decode(),
)  # fmt: skip
async def test_message_types(layer, value):
    channel = await layer.new_channel()
    await layer.send(channel, {"type": "t", "value": value})
    assert (await receive(layer, channel))["value"] == value


async def test_what_is_no_message_is_refused_at_once(layer):
    channel = await layer.new_channel()
    with pytest.raises(TypeError):
        await layer.send(channel, "text")
    with pytest.raises(TypeError):
        await layer.send(channel, {"type": "x", "value": object()})
    with pytest.raises(TypeError):
        await layer.group_send("group", [1])


@pytest.mark.parametrize("name", ["a b", "", "ü", "x" * 100])
async def test_names_are_validated(layer, name):
    with pytest.raises(TypeError):
        await layer.send(name, {"type": "x"})
    with pytest.raises(TypeError):
        await layer.receive(name)
    with pytest.raises(TypeError):
        await layer.group_add(name, "channel")
    with pytest.raises(TypeError):
        await layer.group_discard(name, "channel")
    with pytest.raises(TypeError):
        await layer.group_send(name, {"type": "x"})


async def test_groups(make_layer):
    layers = [make_layer() for _ in range(2)]
    channels = [await layer.new_channel() for layer in layers for _ in range(2)]
    owners = [layers[0], layers[0], layers[1], layers[1]]
    for layer, channel in zip(owners, channels[:3], strict=False):
        await layer.group_add("chat", channel)
    await layers[1].group_send("chat", {"type": "hi"})
    for layer, channel in zip(owners, channels[:3], strict=False):
        assert await receive(layer, channel) == {"type": "hi"}
    await nothing(layers[1], channels[3])


async def test_a_member_twice_is_a_member_once(layer):
    channel = await layer.new_channel()
    await layer.group_add("g", channel)
    await layer.group_add("g", channel)
    await layer.group_send("g", {"type": "a"})
    await layer.send(channel, {"type": "end"})
    assert [(await receive(layer, channel))["type"] for _ in range(2)] == ["a", "end"]


async def test_who_left_a_group_hears_no_more(layer):
    stays, leaves = await layer.new_channel(), await layer.new_channel()
    for channel in (stays, leaves):
        await layer.group_add("g", channel)
    await layer.group_discard("g", leaves)
    await layer.group_discard("g", leaves)
    await layer.group_discard("never", leaves)
    await layer.group_send("g", {"type": "a"})
    assert await receive(layer, stays) == {"type": "a"}
    await nothing(layer, leaves)


async def test_leaving_and_coming_back_misses_nothing_after(layer):
    channel = await layer.new_channel()
    for number in range(20):
        await layer.group_add("g", channel)
        await layer.group_send("g", {"type": "a", "number": number})
        assert (await receive(layer, channel))["number"] == number
        await layer.group_discard("g", channel)


async def test_a_group_without_members_swallows(layer):
    await layer.group_send("nobody", {"type": "a"})


async def test_members_do_not_share_what_they_change(layer):
    channels = [await layer.new_channel() for _ in range(2)]
    for channel in channels:
        await layer.group_add("g", channel)
    await layer.group_send("g", {"type": "a"})
    first = await receive(layer, channels[0])
    first["type"] = "changed"
    assert await receive(layer, channels[1]) == {"type": "a"}


async def test_a_channel_of_another_process_joins_and_leaves(make_layer):
    here, there = make_layer(), make_layer()
    channel = await there.new_channel()
    await here.group_add("g", channel)
    await here.group_send("g", {"type": "a"})
    assert await receive(there, channel) == {"type": "a"}
    await here.group_discard("g", channel)
    await nothing(there, channel, here)  # it has heard of the discard
    await here.group_send("g", {"type": "b"})
    await nothing(there, channel, here)


async def test_a_normal_channel_joins_a_group(make_layer):
    joins, sends = make_layer(), make_layer()
    await joins.group_add("g", "normal")
    await sends.group_send("g", {"type": "a"})
    assert await receive(sends, "normal") == {"type": "a"}


async def test_order_is_kept_across_direct_and_group_sends(make_layer):
    layer = make_layer(capacity=300)
    channel = await layer.new_channel()
    await layer.group_add("g1", channel)
    await layer.group_add("g2", channel)
    for number in range(300):
        if number % 3:
            await layer.group_send(f"g{number % 3}", {"type": "a", "number": number})
        else:
            await layer.send(channel, {"type": "a", "number": number})
        if number % 50 == 0:
            await asyncio.sleep(0)
    assert [(await receive(layer, channel))["number"] for _ in range(300)] == list(range(300))


async def test_capacity_of_a_normal_channel_is_exact(make_layer):
    layer = make_layer(capacity=3, channel_capacity={"big*": 5})
    for channel, capacity in (("small", 3), ("bigger", 5)):
        for _ in range(capacity):
            await layer.send(channel, {"type": "a"})
        with pytest.raises(ChannelFull, match=channel):
            await layer.send(channel, {"type": "a"})
    assert await receive(layer, "small") == {"type": "a"}


async def test_capacity_of_a_process_local_channel_is_exact_within_its_process(make_layer):
    layer = make_layer(capacity=3)
    channel = await layer.new_channel()
    for number in range(3):
        await layer.send(channel, {"type": "a", "number": number})
    with pytest.raises(ChannelFull):
        await layer.send(channel, {"type": "a"})
    assert [(await receive(layer, channel))["number"] for _ in range(3)] == [0, 1, 2]
    await layer.send(channel, {"type": "again"})
    assert await receive(layer, channel) == {"type": "again"}


@pytest.mark.parametrize(("overflow", "kept"), [("drop-newest", [0, 1, 2]), ("drop-oldest", [7, 8, 9])])
async def test_an_overflow_from_elsewhere_is_counted_and_announced(make_layer, overflow, kept):
    here, there = make_layer(capacity=3, gap_type="layer.gap", overflow=overflow), make_layer()
    losses = []
    here.on_loss.append(losses.append)
    channel = await here.new_channel()
    for number in range(10):
        await there.send(channel, {"type": "a", "number": number})
    fence = await here.new_channel()
    await there.send(fence, {"type": "fence"})
    await receive(here, fence)
    got = [await receive(here, channel) for _ in range(4)]
    assert got[0] == {"type": "layer.gap", "reason": "overflow", "count": 7}
    assert [message["number"] for message in got[1:]] == kept
    assert sum(loss.count for loss in losses) == 7
    assert {(loss.reason, loss.channel) for loss in losses} == {("overflow", channel)}
    assert here.stats.lost["overflow"] == 7


@pytest.mark.parametrize("kind", ["local", "normal"])
async def test_messages_expire(make_layer, kind):
    layer = make_layer(expiry=0.5)
    losses = []
    layer.on_loss.append(losses.append)
    channel = await layer.new_channel() if kind == "local" else "normal"
    await layer.send(channel, {"type": "old"})
    if kind == "local":
        await eventually(lambda: losses)
    else:
        link = await layer.session().receiver.supervisor.link(20)
        name = f"{layer.prefix}.c.normal"
        async with asyncio.timeout(20):
            while (await link.attempt(lambda each: each.queue_declare(name, passive=True))).message_count:
                pass
    await layer.send(channel, {"type": "new"})
    assert await receive(layer, channel) == {"type": "new"}
    assert [loss.reason for loss in losses] == (["expired"] if kind == "local" else [])


async def test_receive_loses_nothing_when_cancelled(layer):
    """Readers are cancelled again and again while messages come in: each arrives once, in order."""
    channel = await layer.new_channel()
    total, got = 2000, []

    async def send():
        for number in range(total):
            await layer.send(channel, {"type": "a", "number": number})
            if number % 7 == 0:
                await asyncio.sleep(0.0005)

    layer.capacity = total
    layer.session().receiver.box(channel).capacity = total
    sending = asyncio.create_task(send())
    deadline = time.monotonic() + 30
    while len(got) < total and time.monotonic() < deadline:
        task = asyncio.create_task(layer.receive(channel))
        await asyncio.sleep(0)
        task.cancel()
        try:
            got.append((await task)["number"])
        except asyncio.CancelledError:
            await asyncio.sleep(0)
    await sending
    assert got == list(range(total))


async def test_receive_of_a_normal_channel_loses_nothing_when_cancelled(layer):
    got = []
    for number in range(100):
        await layer.send("normal", {"type": "a", "number": number})
    deadline = time.monotonic() + 30
    while len(got) < 100 and time.monotonic() < deadline:
        try:
            got.append((await asyncio.wait_for(layer.receive("normal"), 0.001))["number"])
        except TimeoutError:
            await asyncio.sleep(0.005)
    assert got == list(range(100))


async def test_a_normal_channel_nobody_receives_on_any_more_goes_to_others(make_layer):
    first, second = make_layer(), make_layer()
    await first.send("normal", {"type": "a", "number": 0})
    await receive(first, "normal")
    for number in range(1, 20):
        await second.send("normal", {"type": "a", "number": number})
    assert [(await receive(second, "normal"))["number"] for _ in range(19)] == list(range(1, 20))


async def test_prefixes_are_worlds_apart(make_layer):
    one, other = make_layer(prefix="world.one"), make_layer(prefix="world.other")
    channel = await one.new_channel()
    await one.group_add("g", channel)
    await other.group_send("g", {"type": "a"})
    await other.send("normal", {"type": "b"})
    await other.session().sender.flush(10)
    await nothing(one, channel)
    await nothing(one, "normal")


async def test_flush(layer):
    channel = await layer.new_channel()
    await layer.group_add("g", channel)
    await layer.send(channel, {"type": "a"})
    await layer.send("normal", {"type": "b"})
    await layer.flush()
    await layer.group_send("g", {"type": "c"})
    await nothing(layer, "normal")
    await nothing(layer, channel)


async def test_close_and_use_again(layer):
    await layer.send("normal", {"type": "a"})
    await layer.close()
    assert await receive(layer, "normal") == {"type": "a"}


async def test_only_its_process_receives_on_a_local_channel(make_layer):
    channel = await make_layer().new_channel()
    with pytest.raises(ValueError, match="another process"):
        await make_layer().receive(channel)


async def test_a_send_to_a_process_that_is_gone_is_counted(make_layer):
    here, gone = make_layer(), make_layer()
    channel = await gone.new_channel()
    await gone.close()
    await here.send(channel, {"type": "a"})
    await here.session().sender.flush(10)
    assert here.stats.lost == {"no_receiver": 1}


def test_the_extensions_are_named(layer):
    assert set(layer.extensions) == {"groups", "flush"}


async def test_group_expiry_ends_no_membership_of_a_channel_that_is_read(make_layer):
    """Years pass: who waits for messages stays a member, whom nobody has read for that long is forgotten."""
    layer = make_layer(expiry=1, group_expiry=1, capacity=1000)
    receiver = layer.session().receiver
    reads, forgotten = await layer.new_channel(), await layer.new_channel()
    for channel in (reads, forgotten):
        await layer.group_add("g", channel)
    reading = asyncio.create_task(layer.receive(reads))
    await eventually(lambda: receiver.box(reads).waiters)
    receiver.box(reads).read_at -= 1e8
    receiver.box(forgotten).read_at -= 1e8
    receiver._sweep()
    assert list(receiver.mailboxes.boxes) == [reads]
    await layer.group_send("g", {"type": "a"})
    assert await asyncio.wait_for(reading, 20) == {"type": "a"}
    assert list(receiver.mailboxes.groups["g"]) == [reads]


async def test_what_nobody_reads_is_counted_when_it_goes(make_layer):
    layer = make_layer(group_expiry=1e6)
    receiver = layer.session().receiver
    channel = await layer.new_channel()
    for number in range(3):
        await layer.send(channel, {"type": "a", "number": number})
    await eventually(lambda: receiver.box(channel).count == 3)
    receiver.box(channel).read_at -= 1e5
    receiver._sweep()  # unread for long, but the messages still count
    assert (await receive(layer, channel))["number"] == 0
    receiver.box(channel).read_at -= 1e7
    receiver._sweep()
    assert not receiver.mailboxes.boxes
    assert layer.stats.lost == {"no_receiver": 2}


async def test_what_no_layer_wrote_is_counted_and_stops_nothing(make_layer):
    layer = make_layer(durable=["d"])
    channel = await layer.new_channel()
    await layer.group_add("g", channel)
    await layer.send("d", {"type": "fence"})
    link = await layer.session().receiver.supervisor.link(20)
    bodies = (b"no msgpack", encode_batch([encode_target("") + encode({"type": "answer"})]),
              encode_batch([b"\x93\x01\x02\x03\x80"]))  # fmt: skip  # a target that is a list

    async def publish(each):
        for body in bodies:
            for key in ("g.g", "d.d"):
                await each.basic_publish(body, exchange=layer.prefix, routing_key=key)

    await link.attempt(publish)
    await layer.group_send("g", {"type": "fence"})
    assert await receive(layer, channel) == {"type": "fence"}
    assert layer.stats.lost == {"undecodable": 3}
    assert await receive(layer, "d") == {"type": "fence"}
