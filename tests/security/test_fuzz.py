"""Frames and requests that nobody should send, by the thousand: every process lives, and is no larger after.

With CARILLON_LONG=1 a hundred thousand frames and ten thousand requests, which takes minutes.
"""

from __future__ import annotations

import os
import random
import re
import socket
import ssl
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from threading import Lock
from urllib.parse import urlsplit

import pytest

from tests.infra.stack import wait
from tests.security import bent
from tests.security.conftest import Inside, report, together
from tests.security.raw import RawSocket

pytestmark = pytest.mark.stack

LONG = bool(os.environ.get("CARILLON_LONG"))
SEED = int(os.environ.get("CARILLON_FUZZ_SEED", "12"))
FRAMES, REQUESTS = (100_000, 10_000) if LONG else (4_000, 600)
SECONDS = 1800 if LONG else 60
THREADS = 8
MOST_GROWTH = 64 * 2**20
SERVICES = ("nginx", "uwsgi", "daphne", "runworker", "rabbitmq", "postgresql")
ENDURING = SERVICES[:4]
"""Those of which every process stays; the other two make some for each connection."""


@pytest.fixture(scope="module", autouse=True)
def used(ordinary) -> Iterator[None]:
    """What was never used has no size yet; and it is as good afterwards."""
    ordinary.calm()
    yield
    ordinary.calm()


def processes(service: Inside) -> set[tuple[int, int, str]]:
    """Process id, start and name of each that the container's first one has begotten."""
    rows = {}
    for line in service.proc("stat").splitlines():
        head, _, rest = line.rpartition(")")
        fields = rest.split()
        rows[int(head.split()[0])] = (int(fields[1]), int(fields[19]), head.partition("(")[2])

    def ours(pid: int) -> bool:
        return pid == 1 or (pid in rows and ours(rows[pid][0]))

    return {(pid, start, name) for pid, (_, start, name) in rows.items() if ours(pid)}


@contextmanager
def nobody_suffers(inside: Callable[[str], Inside]) -> Iterator[None]:
    """Every process lives on, and is no larger afterwards; no traceback in a log."""
    services = {name: inside(name) for name in SERVICES}
    before = {name: service.memory() for name, service in services.items()}
    living = {name: processes(services[name]) for name in ENDURING}
    states = {name: service.state()["StartedAt"] for name, service in services.items()}
    since = datetime.now(UTC).isoformat()
    growth: dict[str, int] = {}
    yield

    def small_again() -> bool:
        growth.update({name: service.memory() - before[name] for name, service in services.items()})
        return max(growth.values()) <= MOST_GROWTH

    try:
        wait("memory is as before", small_again, 30, 1.0)
    finally:
        report("growth", MiB={name: round(each / 2**20, 1) for name, each in growth.items()})
    for name in ENDURING:
        assert living[name] <= processes(services[name]), name
    assert states == {name: service.state()["StartedAt"] for name, service in services.items()}
    for name in ENDURING:
        said = services[name].logs(since)
        assert "Traceback" not in said, said
        assert "exited on signal" not in said, said


def test_frames(stack, inside):
    counts: Counter[str] = Counter()
    codes: Counter[int] = Counter()
    lock = Lock()

    def connection(number: int) -> None:
        """One after another, until the server has enough of it, or we have."""
        with lock:
            counts["sockets"] += 1
            rng = random.Random(f"{SEED}-{counts['sockets']}")
        client = RawSocket(stack, version=rng.choice([1, 2]), token=stack.token)
        sent, code = 0, 0
        try:
            client.raw.settimeout(5)
            with suppress(OSError):
                goes_on = True
                while goes_on and sent < 200:
                    made, goes_on = bent.frames(rng)
                    client.raw.sendall(b"".join(made))
                    sent += len(made)
            if rng.random() < 0.2:
                code, _ = client.closed(seconds=1)
            elif rng.random() < 0.5:  # without a word
                client.raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        finally:
            client.close()
        with lock:
            counts["frames"] += sent
            codes[code] += 1

    begun = time.monotonic()
    with nobody_suffers(inside):
        together(THREADS, connection, SECONDS, lambda: counts["frames"] >= FRAMES)
        seconds = time.monotonic() - begun
    report("frames", **counts, seconds=seconds, codes=dict(codes))
    assert counts["frames"] >= FRAMES
    assert codes.keys() - {0}, "nobody was told why"
    # Ours for what it is, the client's own back; never an error of the server's.
    assert 1011 not in codes


def test_requests(stack, inside):
    address = urlsplit(stack.http_url)
    answers: Counter[int] = Counter()
    bad: list[tuple[int, bytes]] = []
    asked = iter(range(REQUESTS))
    lock = Lock()

    def ask(_number: int) -> None:
        with lock:
            number = next(asked, None)
        if number is None:
            time.sleep(0.05)
            return
        data = bent.request(random.Random(f"{SEED}-{number}"), stack.token)
        said = b""
        with socket.create_connection((address.hostname, address.port), timeout=10) as raw, suppress(OSError):
            raw.sendall(data)
            raw.settimeout(1)
            while more := raw.recv(2**16):
                said += more
                if b" 101 " in said[:16] or len(said) > 2**20:
                    break
        found = [int(code) for code in re.findall(rb"(?:^|\n)HTTP/1\.[01] (\d{3}) ", said)]
        with lock:
            answers.update(found or [0])
            # 501 and 505 are nginx's own, for what HTTP/1 does not have.
            bad.extend((code, data[:500]) for code in found if code >= 500 and code not in (501, 505))

    begun = time.monotonic()
    with nobody_suffers(inside):
        together(THREADS, ask, SECONDS, lambda: sum(answers.values()) >= REQUESTS)
        seconds = time.monotonic() - begun
    report("requests", answers=dict(sorted(answers.items())), seconds=seconds)
    assert sum(answers.values()) >= REQUESTS
    assert not bad, bad[:5]
    assert answers[200]
    assert answers[400]


def test_http2_frames(stack, inside):
    """Over TLS, behind its preface: frames of any kind, flag, stream and length."""
    context = ssl.create_default_context(cafile=stack.ca)
    context.set_alpn_protocols(["h2"])
    counts: Counter[str] = Counter()
    most = FRAMES // 10

    def connection(number: int) -> None:
        counts["connections"] += 1
        rng = random.Random(f"{SEED}-{number}-{counts['connections']}")
        plain = socket.create_connection((stack.host, stack.port), timeout=10)
        with context.wrap_socket(plain, server_hostname=stack.host) as raw, suppress(OSError):
            raw.settimeout(5)
            raw.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
            for _ in range(rng.choice([3, 10])):
                payload = rng.randbytes(rng.choice([0, 4, 5, 8, 40, 600]))
                size = len(payload) if rng.random() < 0.9 else rng.randrange(2**24)
                kind, flags, stream = rng.randrange(12), rng.randrange(256), rng.choice([0, 1, 2, 3, 2**31])
                head = struct.pack("!I", size)[1:] + bytes((kind, flags)) + struct.pack("!I", stream)
                raw.sendall(head + payload)
                counts["frames"] += 1

    with nobody_suffers(inside):
        together(THREADS, connection, SECONDS, lambda: counts["frames"] >= most)
    report("HTTP/2 frames", **counts)
    assert counts["frames"] >= most
