"""The byte path: what pamqp writes is read, what it reads is written, however the bytes are cut."""

import asyncio
import struct

import aiormq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import commands
from pamqp import frame as frames
from pamqp.body import ContentBody
from pamqp.header import ContentHeader

from asgi_amqp import transport
from asgi_amqp.lanes import BATCH_KEYS
from asgi_amqp.transport import (
    ACK,
    NACK,
    REJECT,
    Delivery,
    Factory,
    Tap,
    Transport,
    answer,
    publish,
    question,
)


def message(number, body, method, room=5, **properties):
    """A delivery or a return as a broker sends it, its body in frames of at most `room` bytes."""
    parts = [method, ContentHeader(body_size=len(body), properties=commands.Basic.Properties(**properties))]
    parts += [ContentBody(body[start : start + room]) for start in range(0, len(body), room)]
    return b"".join(frames.marshal(part, number) for part in parts)


def deliver(number, tag, body, redelivered=False, **properties):
    method = commands.Basic.Deliver("ctag", tag, redelivered, "exchange", "g.key")
    return message(number, body, method, **properties)


def returned(number, message_id):
    method = commands.Basic.Return(312, "NO_ROUTE", "exchange", "key")
    return message(number, b"returned", method, message_id=message_id)


def method(number, command):
    return frames.marshal(command, number)


COLD = method(1, commands.Basic.ConsumeOk("ctag")) + method(2, commands.Channel.OpenOk())


class Divided:
    """A transport with taps, without a socket."""

    def __init__(self):
        loop = asyncio.new_event_loop()
        self.transport = Transport(asyncio.StreamReader(loop=loop), loop)
        loop.close()
        self.rest = b""

    def feed(self, data):
        divide = self.transport._divide
        self.rest += data if self.transport.plain else divide(self.transport._data + data)


@pytest.fixture
def divided():
    return Divided()


# Reading


@given(st.lists(st.integers(1, 200), max_size=30))
def test_taps_get_their_frames_however_the_bytes_are_cut(sizes):
    seen = []
    divided = Divided()
    divided.transport.taps[1] = Tap(
        on_delivery=lambda d: seen.append((d.body, d.tag, d.redelivered, d.headers)),
        on_confirm=lambda *confirm: seen.append(confirm),
        on_return=seen.append,
    )
    data = b"".join((
        COLD, deliver(1, 7, b"a body in frames"), deliver(2, 8, b"of another channel"),
        deliver(1, 9, b"", redelivered=True, headers={"x-delivery-count": 5}),
        method(1, commands.Basic.Ack(3, True)), returned(1, "17"), method(1, commands.Basic.Nack(4)), COLD,
    ))  # fmt: skip
    while data:
        size = sizes.pop() if sizes else len(data)
        divided.feed(data[:size])
        data = data[size:]
    assert seen == [
        (b"a body in frames", 7, False, {}),
        (b"", 9, True, {"x-delivery-count": 5}),
        (3, True, True),
        "17",
        (4, False, False),
    ]
    assert divided.rest == COLD + deliver(2, 8, b"of another channel") + COLD
    assert divided.transport._data == b""
    assert divided.transport.tapped
    assert not divided.transport.plain


@given(st.integers(1, 40), st.integers(0, 100), st.integers(1, 50))
def test_a_body_is_whole_whatever_its_frames(room, size, cut):
    seen = []
    divided = Divided()
    divided.transport.taps[1] = Tap(on_delivery=lambda d: seen.append(d.body))
    body = bytes(range(size))
    data = message(1, body, commands.Basic.Deliver("", 1, False, "", "k" * 100), room=room)
    for start in range(0, len(data), cut):
        divided.feed(data[start : start + cut])
    assert seen == [body]


def test_a_tap_takes_what_it_asked_for_and_leaves_the_rest(divided):
    confirms = []
    divided.transport.taps[1] = Tap(on_confirm=lambda *confirm: confirms.append(confirm))
    others = deliver(1, 1, b"x") + returned(1, "1") + method(1, commands.Basic.QosOk())
    divided.feed(others + method(1, commands.Basic.Ack(5)))
    assert divided.rest == others
    assert confirms == [(5, False, True)]
    divided.transport.taps[1] = Tap()
    divided.rest = b""
    divided.feed(method(1, commands.Basic.Ack(6)))
    assert divided.rest == method(1, commands.Basic.Ack(6))


def test_what_no_tap_takes_does_not_count_as_tapped(divided):
    divided.transport.taps[1] = Tap(on_delivery=lambda d: None)
    divided.feed(COLD)
    assert not divided.transport.tapped
    divided.feed(deliver(1, 1, b"x"))
    assert divided.transport.tapped


def test_a_delivery_that_cannot_be_taken_in_does_not_stop_the_next(divided, caplog):
    seen = []

    def take(delivery):
        if delivery.tag == 1:
            raise KeyError("poison")
        seen.append(delivery.tag)

    divided.transport.taps[1] = Tap(on_delivery=take)
    divided.feed(deliver(1, 1, b"a") + deliver(1, 2, b"b"))
    assert seen == [2]
    assert "could not be taken in" in caplog.text


def test_the_answer_to_a_question_is_for_who_asked(divided):
    heard = []
    divided.transport.taps[1] = Tap(on_answer=lambda: heard.append("answer"), on_return=heard.append)
    divided.transport.taps[2] = Tap()
    for_others = method(2, commands.Basic.QosOk())
    divided.feed(returned(1, "17") + method(1, commands.Basic.QosOk()) + for_others)
    assert divided.rest == for_others
    assert heard == ["17", "answer"]
    asked = frames.unmarshal(question(5))
    assert (asked[1], asked[2].name, asked[2].prefetch_count) == (5, "Basic.Qos", 0)


def test_a_return_without_an_identity_has_none(divided):
    heard = []
    divided.transport.taps[1] = Tap(on_return=heard.append)
    divided.feed(message(1, b"x", commands.Basic.Return(312, "NO_ROUTE", "", "key")))
    assert heard == [""]


@pytest.mark.parametrize("cut", [1, 7, 8])
@pytest.mark.parametrize(
    "foreign", [b"AMQP\0\1\0\0", b"HTTP/1.1 400 Bad Request\r\n", b"\x16\x03\x01\0\0\0\0\0"]
)
def test_a_broker_of_another_protocol_is_left_to_aiormq(divided, foreign, cut):
    for start in range(0, len(foreign), cut):
        divided.feed(foreign[start : start + cut])
    assert divided.transport.plain
    divided.feed(COLD)  # nothing is divided any more
    assert divided.rest == foreign + COLD


def test_bytes_that_become_foreign_end_the_dividing(divided):
    seen = []
    divided.transport.taps[1] = Tap(on_delivery=lambda d: seen.append(d.tag))
    divided.feed(deliver(1, 1, b"x") + b"\x77 nonsense of a broken proxy" + deliver(1, 2, b"y"))
    assert seen == [1]
    assert divided.transport.plain
    assert divided.rest == b"\x77 nonsense of a broken proxy" + deliver(1, 2, b"y")


def test_what_the_broker_says_of_the_connection_is_noted_and_passed_on(divided):
    blocked = method(0, commands.Connection.Blocked("low on memory"))
    divided.feed(blocked)
    assert divided.transport.blocked
    unblocked = method(0, commands.Connection.Unblocked())
    divided.feed(unblocked)
    assert not divided.transport.blocked
    close = method(0, commands.Connection.Close(320, "CONNECTION_FORCED - closed by a test", 0, 0))
    divided.feed(close)
    assert divided.transport.closed == "320 CONNECTION_FORCED - closed by a test"
    assert divided.rest == blocked + unblocked + close


async def test_what_is_not_for_taps_reaches_aiormqs_reader():
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(loop=loop)
    protocol = Transport(reader, loop)
    seen = []
    protocol.taps[1] = Tap(on_delivery=lambda d: seen.append(d.body))
    before = protocol.heard
    protocol.data_received(deliver(1, 1, b"tapped")[:10])
    protocol.data_received(deliver(1, 1, b"tapped")[10:] + COLD)
    assert seen == [b"tapped"]
    assert protocol.heard >= before
    assert await reader.read(1000) == COLD
    protocol.plain = True
    protocol.data_received(b"all of it")
    assert await reader.read(1000) == b"all of it"


def test_a_delivery_of_aiormq_has_its_properties_as_they_are():
    properties = commands.Basic.Properties(headers={"x": 1})
    delivery = Delivery(b"", 1, False, properties)
    assert delivery.properties is properties
    assert delivery.headers == {"x": 1}


async def test_a_socket_that_does_not_open_is_an_error_of_the_connection():
    factory = Factory("127.0.0.1", 1, None)
    with pytest.raises(aiormq.AMQPConnectionError):
        await factory.create("amqp://127.0.0.1")
    assert factory.transport is None


async def test_the_factory_hands_over_both_ends_of_the_socket():
    async def serve(reader, writer):
        writer.write(COLD + deliver(1, 5, b"x") + COLD)
        await reader.read(4)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        factory = Factory("127.0.0.1", server.sockets[0].getsockname()[1], None)
        reader, writer = await factory.create("amqp://ignored")
        seen = []
        factory.transport.taps[1] = Tap(on_delivery=lambda d: seen.append(d.tag))
        assert await reader.readexactly(2 * len(COLD)) == COLD + COLD
        assert seen == [5]
        writer.write(b"done")
        assert await reader.read() == b""
        writer.close()


# Writing


def unframed(data, largest=None):
    seen = []
    while data:
        length = struct.unpack(">I", data[3:7])[0] + 8
        assert largest is None or length <= largest
        _, number, frame = frames.unmarshal(data[:length])
        seen.append((number, frame))
        data = data[length:]
    return seen


@pytest.mark.parametrize("size", [0, 1, 4088, 4089, 20_000])
@pytest.mark.parametrize("keys", [["g.a"], ["g.a", "g.b", "p.c"]])
@pytest.mark.parametrize("mandatory", [False, True])
@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize(("frame_max", "timestamp"), [(4096, 0), (0, 1_700_000_000)])
def test_frames_of_a_publish_read_as_pamqp_reads_them(
    size, keys, mandatory, persistent, frame_max, timestamp
):
    body = bytes(range(256)) * (size // 256) + bytes(size % 256)
    for tag in (1, 2):  # the second from what was kept
        data = publish(
            3, "exchange", keys, body, persistent=persistent, mandatory=mandatory, message_id=str(tag),
            frame_max=frame_max, timestamp=timestamp,
        )  # fmt: skip
        seen = unframed(data, frame_max or None)
        assert {number for number, _ in seen} == {3}
        publishing, header, *bodies = [frame for _, frame in seen]
        assert isinstance(publishing, commands.Basic.Publish)
        assert (publishing.exchange, publishing.routing_key) == ("exchange", keys[0])
        assert publishing.mandatory == mandatory
        assert isinstance(header, ContentHeader)
        assert header.body_size == size
        assert header.properties.delivery_mode == (2 if persistent else 1)
        assert (header.properties.headers or {}).get("CC", []) == keys[1:]
        assert header.properties.message_id == (str(tag) if mandatory else None)
        told = header.properties.timestamp
        assert (told.timestamp() if told else 0) == timestamp
        assert all(isinstance(frame, ContentBody) for frame in bodies)
        assert b"".join(frame.value for frame in bodies) == body
        assert len(bodies) == (-(-size // 4088) if frame_max else min(1, size))


def test_what_is_kept_for_publishing_is_bounded(monkeypatch):
    monkeypatch.setattr(transport, "_heads", {})
    for number in range(10_010):
        publish(1, "e", [f"g.{number}"], b"", persistent=False, mandatory=False, message_id="", frame_max=0)
    assert len(transport._heads) <= 10_001


@pytest.mark.parametrize(
    ("kind", "bits", "expected"),
    [
        (ACK, 0, commands.Basic.Ack(77, False)),
        (ACK, 1, commands.Basic.Ack(77, True)),
        (REJECT, 0, commands.Basic.Reject(77, False)),
        (REJECT, 1, commands.Basic.Reject(77, True)),
        (NACK, 2, commands.Basic.Nack(77, False, True)),
    ],
)
def test_answers_read_as_pamqp_reads_them(kind, bits, expected):
    ((number, frame),) = unframed(answer(5, kind, 77, bits))
    assert (number, type(frame), dict(frame)) == (5, type(expected), dict(expected))


def test_the_header_of_a_batch_for_the_longest_names_fits_into_the_smallest_frame():
    keys = [f"g.{number:099}" for number in range(BATCH_KEYS)]
    data = publish(
        7, "e" * 50, keys, b"x", persistent=True, mandatory=True, message_id="9" * 20, frame_max=4096
    )
    method = int.from_bytes(data[3:7]) + 8
    assert len(keys) > 30
    assert int.from_bytes(data[method + 3 : method + 7]) + 8 <= 4096
