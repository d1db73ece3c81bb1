"""What a socket can do."""

from __future__ import annotations

import json
import time
from contextlib import suppress

import pytest

from tests.security.conftest import Watched, report, together
from tests.security.raw import CONTINUATION, PING, RawSocket, frame

pytestmark = pytest.mark.stack


@pytest.mark.parametrize("kind", ["pings", "empty continuations"])
def test_small_frames(stack, ordinary, inside, kind):
    """Row 4: frames of six bytes as fast as they go, and no pong is read; who is closed comes back."""
    daphne = inside("daphne")
    small = frame(PING if kind == "pings" else CONTINUATION) * 10_000
    codes = []

    def attack(_number: int) -> None:
        client = RawSocket(stack)
        try:
            if kind != "pings":
                client.raw.sendall(frame(0x01))
            client.raw.settimeout(5)
            with suppress(OSError):
                for _ in range(200):
                    client.raw.sendall(small)
            codes.append(client.closed())
        finally:
            client.close()
        time.sleep(1)

    with Watched(daphne.memory) as memory, ordinary.beside():
        together(8, attack)
    report("small frames", daphne=memory.growth, sockets=len(codes))
    assert {code for code, _ in codes} <= {1008, 0}
    assert (1008, "too many frames: 1000 at once and 100 a second are allowed") in codes
    assert memory.growth <= 32 * 2**20


def test_large_messages(stack, ordinary, inside):
    """Row 5: thirty-one messages of a mebibyte from each of six sockets, while a `since` is answered."""
    daphne = inside("daphne")
    large = frame(0x81, json.dumps({"groups": {}, "pad": "x" * 2**20}).encode())
    codes = []

    def attack(_number: int) -> None:
        client = RawSocket(stack, version=2)
        try:
            at = client.message()["position"]
            epoch, _, number = at.partition(":")
            client.say({"groups": {"jobs": ["summary"]}, "since": f"{epoch}:{max(0, int(number) - 5000)}"})
            client.raw.settimeout(5)
            with suppress(OSError):
                for _ in range(31):
                    client.raw.sendall(large)
            codes.append(client.closed()[0])
        finally:
            client.close()
        time.sleep(1)

    with Watched(daphne.memory) as memory, ordinary.beside():
        together(6, attack)
    report("large messages", daphne=memory.growth, sockets=len(codes))
    assert set(codes) <= {1009, 0}
    assert 1009 in codes
    assert memory.growth <= 32 * 2**20
