import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import commands, heartbeat
from pamqp import frame as frames
from pamqp.body import ContentBody
from pamqp.header import ContentHeader

from asgi_amqp.frames import ACK, BEAT, NACK, Publisher, Splitter, Tap, answer, question


@pytest.mark.parametrize("size", [0, 1, 4088, 4089, 20_000])
@pytest.mark.parametrize("keys", [["g.a"], ["g.a", "g.b", "p.c"]])
@pytest.mark.parametrize("mandatory", [False, True])
@pytest.mark.parametrize("persistent", [False, True])
def test_frames_of_a_publish_read_as_pamqp_reads_them(size, keys, mandatory, persistent):
    publisher = Publisher(3, "exchange", 4096)
    for tag in (1, 2):  # the second from what was kept
        body = bytes(range(256)) * (size // 256) + bytes(size % 256)
        data = publisher.frames(body, keys, persistent=persistent, mandatory=mandatory)
        seen = []
        while data:
            length = struct.unpack(">I", data[3:7])[0] + 8
            assert length <= 4096
            _, channel, frame = frames.unmarshal(data[:length])
            assert channel == 3
            seen.append(frame)
            data = data[length:]
        method, header, *bodies = seen
        assert isinstance(method, commands.Basic.Publish)
        assert (method.exchange, method.routing_key, method.mandatory) == ("exchange", keys[0], mandatory)
        assert isinstance(header, ContentHeader)
        assert header.body_size == size
        assert header.properties.delivery_mode == (2 if persistent else 1)
        assert (header.properties.headers or {}).get("CC", []) == keys[1:]
        assert header.properties.message_id == (str(tag) if mandatory else None)
        assert all(isinstance(frame, ContentBody) for frame in bodies)
        assert b"".join(frame.value for frame in bodies) == body
        assert publisher.tag == tag


def message(number, body, method, room=5, **properties):
    """A delivery or a return as a broker sends it, its body in frames of at most `room` bytes."""
    parts = [method, ContentHeader(body_size=len(body), properties=commands.Basic.Properties(**properties))]
    parts += [ContentBody(body[start : start + room]) for start in range(0, len(body), room)]
    return b"".join(frames.marshal(part, number) for part in parts)


def deliver(number, tag, body, redelivered=False, **properties):
    method = commands.Basic.Deliver("ctag", tag, redelivered, "exchange", "g.key")
    return message(number, body, method, **properties)


COLD = frames.marshal(commands.Basic.ConsumeOk("ctag"), 1) + frames.marshal(commands.Channel.OpenOk(), 2)


@given(st.lists(st.integers(1, 200), max_size=30))
def test_the_splitter_gives_taps_their_frames_however_the_bytes_are_cut(sizes):
    seen = []
    splitter = Splitter()
    splitter.taps[1] = Tap(
        on_delivery=lambda d: seen.append((d.body, d.tag, d.redelivered, d.headers)),
        on_confirm=lambda *confirm: seen.append(confirm),
        on_return=seen.append,
    )
    returned = message(1, b"r", commands.Basic.Return(312, "NO_ROUTE", "exchange", "key"), message_id="17")
    data = b"".join((
        COLD, deliver(1, 7, b"a body in frames"), deliver(2, 8, b"of another channel"),
        deliver(1, 9, b"", redelivered=True, headers={"x-stream-offset": 5}),
        frames.marshal(commands.Basic.Ack(3, True), 1), returned, frames.marshal(commands.Basic.Nack(4), 1),
        COLD,
    ))  # fmt: skip
    rest = b""
    while data:
        size = sizes.pop() if sizes else len(data)
        splitter.feed(data[:size])
        more, data = splitter.read(), data[size:]
        rest += more[0]
        assert not more[1]
    assert seen == [
        (b"a body in frames", 7, False, {}), (b"", 9, True, {"x-stream-offset": 5}), (3, True, True), "17",
        (4, False, False),
    ]  # fmt: skip
    assert rest == COLD + deliver(2, 8, b"of another channel") + COLD
    assert splitter.waiting == 0


def test_a_polite_tap_gets_one_delivery_at_a_time():
    seen = []
    splitter = Splitter()
    splitter.taps[1] = Tap(on_delivery=lambda d: seen.append(d.tag), polite=True)
    splitter.feed(deliver(1, 1, b"a") + deliver(1, 2, b"b"))
    assert (splitter.read(), seen) == ((b"", True), [1])
    assert (splitter.read(), seen) == ((b"", True), [1, 2])  # what comes within this turn waits, too
    assert (splitter.read(), seen) == ((b"", False), [1, 2])


def test_a_delivery_that_cannot_be_taken_in_does_not_stop_the_next(caplog):
    seen = []

    def take(delivery):
        if delivery.tag == 1:
            raise KeyError("poison")
        seen.append(delivery.tag)

    splitter = Splitter()
    splitter.taps[1] = Tap(on_delivery=take)
    splitter.feed(deliver(1, 1, b"a") + deliver(1, 2, b"b"))
    splitter.read()
    assert seen == [2]
    assert "could not be taken in" in caplog.text


def test_the_answer_to_a_question_is_for_who_asked():
    heard = []
    splitter = Splitter()
    splitter.taps[1] = Tap(on_answer=lambda: heard.append("answer"), on_return=heard.append)
    splitter.taps[2] = Tap()
    returned = message(1, b"r", commands.Basic.Return(312, "NO_ROUTE", "exchange", "key"), message_id="17")
    for_others = frames.marshal(commands.Basic.QosOk(), 2)
    splitter.feed(returned + frames.marshal(commands.Basic.QosOk(), 1) + for_others)
    assert splitter.read() == (for_others, False)
    assert heard == ["17", "answer"]
    asked = frames.unmarshal(question(5))
    assert (asked[1], asked[2].name, asked[2].prefetch_count) == (5, "Basic.Qos", 0)


def test_a_broker_of_another_protocol_is_left_to_aiormq():
    splitter = Splitter()
    splitter.feed(b"AMQP\0\1\0\0")
    assert splitter.read() == (b"AMQP\0\1\0\0", False)


def test_answers_read_as_pamqp_reads_them():
    ack = frames.unmarshal(answer(5, ACK, 77, 1))
    assert (ack[1], ack[2].delivery_tag, ack[2].multiple) == (5, 77, True)
    nack = frames.unmarshal(answer(5, NACK, 78, 2))[2]
    assert (nack.delivery_tag, nack.multiple, nack.requeue) == (78, False, True)
    assert isinstance(frames.unmarshal(BEAT)[2], heartbeat.Heartbeat)
