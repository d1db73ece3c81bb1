"""Readers of version 2 that are slower than what there is for them, through every real service: they cost the
process next to nothing, and have everything in the end."""

from __future__ import annotations

import base64
import json
import os
import socket
import struct
import subprocess
import time
import uuid
from urllib.parse import urlsplit

import pytest

pytestmark = pytest.mark.stack

PAD = "x" * 100_000
EVENTS = 400
MOST = 24 * 2**20  # bytes that daphne may grow by


class Reader:
    """A client on a plain socket: nothing of what is sent to it is read before it is asked for."""

    def __init__(self, stack, message: dict) -> None:
        address = urlsplit(stack.http_url)
        self.raw = socket.create_connection((address.hostname, address.port), timeout=60)
        key = base64.b64encode(os.urandom(16)).decode()
        self.raw.sendall(
            f"GET /websocket/?token={stack.token} HTTP/1.1\r\nHost: {address.netloc}\r\n"
            f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: carillon.v2\r\n\r\n".encode()
        )
        self._buffered = b""
        while b"\r\n\r\n" not in self._buffered:
            self._more()
        head, _, self._buffered = self._buffered.partition(b"\r\n\r\n")
        assert b" 101 " in head.splitlines()[0], head
        self.position = self.frame()["position"]
        text = json.dumps(message).encode()
        assert 126 <= len(text) < 65536
        self.raw.sendall(struct.pack("!BBHI", 0x81, 0x80 | 126, len(text), 0) + text)  # masked with zeroes

    def _more(self) -> None:
        data = self.raw.recv(2**20)
        assert data, "the server has closed the connection"
        self._buffered += data

    def _take(self, count: int) -> bytes:
        while len(self._buffered) < count:
            self._more()
        data, self._buffered = self._buffered[:count], self._buffered[count:]
        return data

    def frame(self) -> dict:
        while True:
            first, size = self._take(2)
            if size == 126:
                (size,) = struct.unpack("!H", self._take(2))
            elif size == 127:
                (size,) = struct.unpack("!Q", self._take(8))
            data = self._take(size)
            if first == 0x81:
                return json.loads(data)
            assert first == 0x89, (first, data[:200])  # a ping; what is anything else is a close

    def numbers(self, count: int) -> list[int]:
        found = []
        while len(found) < count:
            frame = self.frame()
            assert frame.get("recovered") is not False, frame
            if "event" in frame:
                found.append(frame["event"]["n"])
        return found

    def close(self) -> None:
        self.raw.close()


def publish(stack, job: int, numbers) -> None:
    """Two megabytes a request at most."""
    numbers = list(numbers)
    for start in range(0, len(numbers), 20):
        events = [
            {"group": f"job_events-{job}", "payload": {"n": n, "pad": PAD}, "id": str(uuid.uuid4())}
            for n in numbers[start : start + 20]
        ]
        stack.post("/notifications/", events)


def published(stack, job: int) -> str:
    """The position behind which there are `EVENTS` of this job."""
    before = Reader(stack, subscription(job))
    publish(stack, job, range(EVENTS))
    before.close()
    return before.position


def subscription(job: int, **more) -> dict:
    return {"groups": {"job_events": [job]}, "pad": "x" * 100, **more}


def memory(container) -> int:
    """Bytes that daphne's processes have."""
    done = subprocess.run(
        ["docker", "exec", container("daphne").id, "sh", "-c", "cat /proc/[0-9]*/status"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    return 1024 * sum(int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("VmRSS"))


@pytest.fixture
def job(stack) -> int:
    return stack.new_job()["id"]


def test_resumes_that_nobody_reads_cost_next_to_nothing(stack, container, job):
    since = published(stack, job)
    witness = Reader(stack, subscription(job, since=since))
    assert witness.numbers(EVENTS) == list(range(EVENTS))  # daphne has them all in its window
    before = memory(container)
    readers = [Reader(stack, subscription(job, since=since)) for _ in range(6)]
    try:
        most = 0
        end = time.monotonic() + 8
        while time.monotonic() < end:
            most = max(most, memory(container))
        assert most - before <= MOST, f"{(most - before) >> 20} MiB"
        publish(stack, job, [EVENTS])  # nobody waits for them
        assert witness.numbers(1) == [EVENTS]
        for reader in readers:
            assert reader.numbers(EVENTS + 1) == list(range(EVENTS + 1))
    finally:
        for reader in (witness, *readers):
            reader.close()


def test_a_reader_that_pauses_lags_and_has_everything_in_the_end(stack, job):
    reader = Reader(stack, subscription(job))
    assert "groups_current" in reader.frame()
    publish(stack, job, range(600))
    time.sleep(5)  # it does not read
    publish(stack, job, range(600, 620))
    assert reader.numbers(620) == list(range(620))
    publish(stack, job, [620])
    assert reader.numbers(1) == [620]
    reader.close()


def test_a_resume_from_before_the_window_of_a_reader_that_pauses(stack, container, job):
    """From the log: more was published since than a process keeps."""
    first = Reader(stack, subscription(job))
    assert "groups_current" in first.frame()
    other = stack.new_job()["id"]
    publish(stack, job, range(100))
    publish(stack, other, range(700))
    publish(stack, job, range(100, 110))
    reader = Reader(stack, subscription(job, since=first.position))
    time.sleep(3)
    assert reader.numbers(110) == list(range(110))
    assert first.numbers(110) == list(range(110))
    for each in (first, reader):
        each.close()


def test_a_resume_of_megabytes_is_quick(stack, job):
    since = published(stack, job)
    witness = Reader(stack, subscription(job, since=since))
    assert witness.numbers(EVENTS) == list(range(EVENTS))
    begun = time.monotonic()
    reader = Reader(stack, subscription(job, since=since))
    assert reader.numbers(EVENTS) == list(range(EVENTS))
    rate = EVENTS * len(PAD) / (time.monotonic() - begun) / 1e6
    print(f"{rate:.0f} MB/s")
    assert rate > 5  # 50 and more on a machine that does nothing else
    for each in (witness, reader):
        each.close()
