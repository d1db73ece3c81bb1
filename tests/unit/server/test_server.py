"""The server, in a process of its own, against a real websocket client."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from carillon.fanout.cursor import SLOW

ROOT = Path(__file__).parents[3]


class Running:
    def __init__(self, *arguments):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.unit.server.serving", "-b", "127.0.0.1", "-p", str(self.port),
             "-v", "0", "--websocket_timeout", "-1", *arguments, "tests.unit.server.serving:application"],
            cwd=ROOT, env={**os.environ, "PYTHONPATH": f"{ROOT}/src:{ROOT}"}, stdout=subprocess.PIPE,
        )  # fmt: skip
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                break
            except OSError:
                assert time.monotonic() < deadline, "the server does not listen"
                time.sleep(0.05)

    def connect(self, **options):
        return connect(f"ws://127.0.0.1:{self.port}/", max_size=None, **options)

    def received(self):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", timeout=5) as answer:
            return int(answer.read())

    def stop(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture
def server():
    running = Running("--ping-interval", "1", "--ping-timeout", "1")
    yield running
    running.stop()


@pytest.fixture
def patient_server():
    """One that does not take who reads nothing for dead."""
    running = Running()
    yield running
    running.stop()


async def say(client, **order):
    await client.send(json.dumps(order))


async def code_of(client):
    try:
        async with asyncio.timeout(20):
            while True:
                await client.recv()
    except ConnectionClosed as closed:
        return closed.rcvd.code if closed.rcvd else None, closed.rcvd.reason if closed.rcvd else ""


async def test_what_is_written_directly_keeps_its_place(server):
    async with server.connect() as client:
        await say(client, do="mixed", count=2000)
        for number in range(2000):
            assert await client.recv() == f"direct {number}"
            assert await client.recv() == f"asgi {number}"


async def test_more_than_the_network_takes_at_once(server):
    async with server.connect() as client:
        await say(client, do="flood", count=400, size=2000)
        await asyncio.sleep(0.3)
        assert [json.loads(await client.recv())["n"] for _ in range(400)] == list(range(400))


@pytest.mark.parametrize("code", [1008, 1012, 1013, 4401])
async def test_any_close_code(server, code):
    async with server.connect() as client:
        await say(client, do="close", code=code)
        assert await code_of(client) == (code, "because")


async def test_a_reason_that_is_too_long_is_cut_between_characters(server):
    async with server.connect() as client:
        await say(client, do="close", code=4000, reason="x" + "ä" * 61 + "€")
        assert await code_of(client) == (4000, "x" + "ä" * 61)
    async with server.connect() as client:
        await say(client, do="close", code=4000, reason="ä" * 80)
        assert await code_of(client) == (4000, "ä" * 61)


async def test_empty_messages_are_messages(server):
    async with server.connect() as client:
        await say(client, do="empty")
        async with asyncio.timeout(20):
            assert [await client.recv(), await client.recv()] == ["", b""]


async def waiting(client):
    """The most bytes that wait for anybody's reader in the server's process."""
    await say(client, do="waiting")
    return json.loads(await client.recv())


async def trickle(client, seconds):
    """It takes a little now and then: slow, not dead."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        client.transport.resume_reading()
        await asyncio.sleep(0.01)
        client.transport.pause_reading()
        await asyncio.sleep(0.2)
    client.transport.resume_reading()


async def test_a_slow_reader_of_version_1_is_closed_and_told_where_it_was(patient_server):
    server = patient_server
    async with server.connect(max_queue=1) as slow, server.connect() as other:
        slow.transport.pause_reading()
        await say(slow, do="flood", count=400, size=100_000, most=2**20)
        begun = time.monotonic()
        await say(other, do="mixed", count=1)
        assert await other.recv() == "direct 0"
        assert time.monotonic() - begun < 5, "nobody else waits"
        assert await other.recv() == "asgi 0"
        assert await waiting(other) <= 2**18
        await asyncio.sleep(SLOW + 1)
        slow.transport.resume_reading()
        seen = 0
        with pytest.raises(ConnectionClosed) as closed:  # noqa: PT012 - it counts until then
            async with asyncio.timeout(20):
                while True:
                    assert json.loads(await slow.recv())["n"] == seen
                    seen += 1
        assert closed.value.rcvd.code == 4408
        assert closed.value.rcvd.reason == f"ep:{seen}"
        assert 0 < seen < 400


async def test_a_slow_reader_of_version_2_lags_and_has_everything_in_the_end(server):
    """For longer than a ping is waited for; and costs next to nothing meanwhile."""
    async with (
        server.connect(max_queue=1, subprotocols=["carillon.v2"], ping_interval=None) as slow,
        server.connect() as other,
    ):
        slow.transport.pause_reading()
        await say(slow, do="flood", count=400, size=100_000)
        assert await waiting(other) <= 2**18
        await trickle(slow, 4)
        assert await waiting(other) <= 2**18
        async with asyncio.timeout(20):
            seen = []
            while len(seen) < 400:
                frame = json.loads(await slow.recv())
                if "event" in frame:
                    seen.append((frame["position"], frame["event"]["n"]))
        assert seen == [(f"ep:{number + 1}", number) for number in range(400)]


async def test_an_application_that_says_much_waits_for_its_reader(server):
    """It is not closed, and what it said is not dropped."""
    async with server.connect(max_queue=1, ping_interval=None) as slow, server.connect() as other:
        slow.transport.pause_reading()
        await say(slow, do="talk", count=400, size=100_000)
        await asyncio.sleep(0.5)
        assert await waiting(other) <= 2**18
        slow.transport.resume_reading()
        async with asyncio.timeout(20):
            assert [int((await slow.recv()).rstrip("x")) for _ in range(400)] == list(range(400))


async def test_what_a_client_sends_is_bounded(server):
    async with server.connect() as client:
        await say(client, do="sleep", seconds=3600)
        for _ in range(100):
            await say(client, do="mixed", count=0)
        await asyncio.sleep(0.3)
        assert server.received() == 1


async def raw_client(server):
    """A socket whose frames are written byte by byte."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(
        b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    await reader.readuntil(b"\r\n\r\n")
    return reader, writer


async def everything(reader, seen=None):
    """What comes until the connection has ended, in whichever way."""
    seen = bytearray() if seen is None else seen
    with suppress(ConnectionError):
        while more := await reader.read(2**16):
            seen.extend(more)
    return bytes(seen)


async def written_until_refused(reader, writer, data, most):
    """Writes `data` again and again; the last frame that came. Fails when more than `most` bytes went."""
    seen = bytearray()
    reading = asyncio.ensure_future(everything(reader, seen))
    written = 0
    with suppress(ConnectionError):
        async with asyncio.timeout(20):
            while not reading.done() and b"are allowed" not in seen:
                writer.write(data)
                written += len(data)
                await writer.drain()
                await asyncio.sleep(0)
                assert written < most
    reading.cancel()
    writer.close()
    return bytes(seen[seen.rindex(b"\x88") :])


PING, PONG = b"\x89\x80\0\0\0\0", b"\x8a\x80\0\0\0\0"
CONTINUATION = b"\x00\x80\0\0\0\0"


@pytest.mark.parametrize(
    ("before", "frame"),
    [(b"", PING), (b"", PONG), (b"\x01\x80\0\0\0\0", CONTINUATION), (b"", b"\x81\x88\0\0\0\0" + b'{"do":0}')],
    ids=["pings", "pongs", "empty continuations", "messages"],
)
async def test_every_frame_counts(server, before, frame):
    reader, writer = await raw_client(server)
    writer.write(before)
    last = await written_until_refused(reader, writer, frame * 500, most=64 * 2**20)
    assert last[2:4] == b"\x03\xf0"  # 1008
    assert last[4:] == b"too many frames: 1000 at once and 100 a second are allowed"


async def test_so_do_bytes(server):
    reader, writer = await raw_client(server)
    text = json.dumps({"do": "nothing", "pad": "x" * 2**19}).encode()
    message = b"\x81\xff" + len(text).to_bytes(8) + b"\0\0\0\0" + text
    last = await written_until_refused(reader, writer, message, most=64 * 2**20)
    assert last[2:4] == b"\x03\xf0"  # 1008
    assert last[4:] == b"too many bytes: 8388608 at once and 1048576 a second are allowed"


def test_a_message_that_is_allowed_can_be_sent():
    """In a process of its own: importing the server installs Twisted's reactor."""
    program = """
import django; django.setup()
from django.conf import settings
from unittest import mock
from carillon.fanout import station
from carillon.server.server import CarillonServer, DeliveryServer
settings.CARILLON = {**settings.CARILLON, "SOCKET_MESSAGE_BYTES": 2**25}
with mock.patch.object(station, "station"), mock.patch.object(DeliveryServer, "begin"):
    server = object.__new__(CarillonServer)
    server.begin()
print(server.inbound_burst)
"""
    environ = {
        "PYTHONPATH": f"{ROOT}/src:{ROOT}",
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "tests.settings",
    }
    found = subprocess.run(
        [sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=True
    )
    assert int(found.stdout) == 2**25


async def test_pings_within_the_allowance_are_answered(server):
    reader, writer = await raw_client(server)
    for number in range(900):
        writer.write(b"\x89\x84\0\0\0\0%04d" % number)
        seen = b""
        while seen[-6:] != b"\x8a\x04%04d" % number:  # the server's own pings come between
            seen += await reader.read(100)
    writer.close()


async def test_pongs_that_nobody_reads(patient_server):
    """They wait up to a bound, behind what waits already."""
    async with patient_server.connect() as other:
        reader, writer = await raw_client(patient_server)
        order = json.dumps({"do": "talk", "count": 100, "size": 100_000}).encode()
        writer.write(b"\x81" + bytes((0x80 | len(order),)) + b"\0\0\0\0" + order)
        writer.transport.pause_reading()
        for _ in range(9):
            writer.write((b"\x89\xfd\0\0\0\0" + b"x" * 125) * 100)
            assert await waiting(other) <= 2**18 + 2**17
        writer.transport.resume_reading()
        async with asyncio.timeout(20):
            seen = await everything(reader)
        writer.close()
        assert b"unread pongs are allowed" in seen[-100:]


async def test_who_was_refused_is_read_no_further(server):
    reader, writer = await raw_client(server)
    writer.write(PING * 3000)
    async with asyncio.timeout(20):
        seen = await everything(reader)
    assert seen.count(b"\x8a\x00") == 1000
    assert b"too many frames" in seen
    writer.close()


async def test_an_application_that_goes_on_after_a_close_fills_nothing(patient_server):
    async with patient_server.connect() as other:
        reader, writer = await raw_client(patient_server)
        writer.transport.pause_reading()
        order = json.dumps({"do": "talk", "count": 100, "size": 100_000}).encode()
        writer.write(b"\x81" + bytes((0x80 | len(order),)) + b"\0\0\0\0" + order)
        writer.write(PING * 3000)
        writer.transport.resume_reading()
        async with asyncio.timeout(20):
            seen = await everything(reader)
        writer.close()
        assert b"are allowed" in seen[-100:]
        assert await waiting(other) <= 2**18


async def test_what_waits_for_an_application_is_bounded_in_bytes(patient_server):
    server = patient_server
    async with server.connect() as client:
        await say(client, do="sleep", seconds=3600)
        sent = 0
        with pytest.raises(TimeoutError):  # noqa: PT012 - it counts until then
            async with asyncio.timeout(3):
                while True:
                    await client.send("x" * 2**19)
                    sent += 1
        # What the kernel takes on both sides is not ours.
        assert sent < 30
        assert server.received() == 1


async def test_who_does_not_answer_a_ping_is_dropped(server):
    reader, writer = await raw_client(server)
    begun = time.monotonic()
    async with asyncio.timeout(20):
        seen = b""
        try:
            while data := await reader.read(100):
                seen += data
        except ConnectionResetError:
            pass
    assert b"\x89\x00" in seen
    assert time.monotonic() - begun > 1
    writer.close()
    async with server.connect(ping_interval=None) as answering:
        await asyncio.sleep(4)
        await say(answering, do="mixed", count=1)
        assert await answering.recv() == "direct 0"


async def test_who_waits_for_a_slow_handler_is_not_dead(server):
    """Nothing is read of it meanwhile, and its pongs are not either."""
    async with server.connect(ping_interval=None) as client:
        await say(client, do="sleep", seconds=5)
        for _ in range(60):
            await say(client, do="nothing")
        assert await asyncio.wait_for(waiting(client), 20) == 0


async def test_who_is_not_read_and_reads_nothing_is_dropped(server):
    """Its handler waits for itself: that has no end of its own."""
    async with server.connect(ping_interval=None) as other:
        _, writer = await raw_client(server)
        writer.transport.pause_reading()
        order = json.dumps({"do": "talk", "count": 1000, "size": 100_000}).encode()
        writer.write((b"\x81" + bytes((0x80 | len(order),)) + b"\0\0\0\0" + order) * 60)
        async with asyncio.timeout(20):
            while await closed(other) != {"dead": 1}:
                await asyncio.sleep(0.1)
        writer.close()


async def closed(client):
    """How many sockets have ended, by what ended them."""
    await say(client, do="closed")
    return json.loads(await client.recv())


async def test_a_socket_carries_no_copy_of_the_options(server):
    async with server.connect() as client:
        await client.send(json.dumps({"do": "own"}))
        assert json.loads(await client.recv()) == []


async def test_a_message_that_is_too_big(server):
    async with server.connect() as client:
        await client.send("x" * 2 * 1024 * 1024)
        assert (await code_of(client))[0] == 1009


async def test_an_application_that_fails(server):
    async with server.connect() as client:
        await say(client, do="fail")
        assert (await code_of(client))[0] == 1011


async def test_an_application_that_ends_leaves_no_socket_behind(server):
    async with server.connect() as client:
        await say(client, do="return")
        assert (await code_of(client))[0] == 1000


async def test_an_application_that_ends_before_the_handshake(server):
    with pytest.raises(InvalidStatus, match="500"):
        await connect(f"ws://127.0.0.1:{server.port}/nothing", open_timeout=3)


@pytest.mark.parametrize("path", ["/failed", "/returned"])
async def test_an_answer_that_is_not_finished_is_cut(server, path):
    """Whoever reads it would take it for whole, or wait for the rest as long as he lives."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    data = b""
    async with asyncio.timeout(10):
        with suppress(ConnectionResetError):
            while part := await reader.read(1000):
                data += part
    assert b"a part" in data
    assert not data.endswith(b"0\r\n\r\n")
    writer.close()


async def test_an_application_that_answers_nothing(server):
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n")
    async with asyncio.timeout(10):
        assert (await reader.readline()).startswith(b"HTTP/1.1 500 ")
    writer.close()


async def test_an_application_hears_of_the_end_also_where_its_client_does_not_answer(patient_server):
    server = patient_server
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(
        b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    async with asyncio.timeout(10):
        await reader.readuntil(b"\r\n\r\n")
    server.process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(server.process.wait, 15) == 0
    assert server.process.stdout.read().startswith(b"heard ")
    writer.close()


async def test_a_request_that_has_begun_is_answered_before_the_end(server):
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"GET /?2 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    await asyncio.sleep(0.5)
    server.process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(10):
        assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
    writer.close()
    assert await asyncio.to_thread(server.process.wait, 10) == 0


async def test_a_request_that_takes_too_long_does_not_hold_the_end_up(server):
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"GET /?60 HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await asyncio.sleep(0.5)
    server.process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(server.process.wait, 15) == 0
    writer.close()


@pytest.mark.parametrize("within", [2000, 1, 0])
async def test_a_drain(server, within):
    async with server.connect() as client:
        await say(client, do="within", milliseconds=within)
        assert await client.recv() == "noted"
    clients = [await server.connect() for _ in range(5)]
    newer = [await server.connect(subprotocols=["carillon.v2"]) for _ in range(5)]
    server.process.send_signal(signal.SIGTERM)
    for client in newer:
        assert 0 <= json.loads(await client.recv())["reconnect_after"] < max(1, within)
    assert [await code_of(client) for client in clients + newer] == [(1012, "restart")] * 10
    assert await asyncio.to_thread(server.process.wait, 10) == 0
    with pytest.raises(OSError, match="onnect"):
        await server.connect()
