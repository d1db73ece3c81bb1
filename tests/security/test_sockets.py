"""What a socket can do."""

from __future__ import annotations

import json
import time
from contextlib import suppress

import pytest

from tests.security.conftest import Watched, manage, report, together
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

    with Watched(daphne.memory) as memory:
        ordinary.hardly_notices(lambda: together(8, attack))
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

    with Watched(daphne.memory) as memory:
        ordinary.hardly_notices(lambda: together(6, attack))
    report("large messages", daphne=memory.growth, sockets=len(codes))
    assert set(codes) <= {1009, 0}
    assert 1009 in codes
    assert memory.growth <= 32 * 2**20


def test_denied_groups(stack, ordinary, inside, a_user):
    """Row 9: a hundred sockets ask for 250 groups that they may not hear, again and again: 772 000 frames."""
    daphne = inside("daphne")
    frames = []

    def attack(_number: int) -> None:
        client = RawSocket(stack, token=a_user)
        try:
            client.message()
            wanted = {"job_events": list(range(10**9, 10**9 + 250))}
            for _ in range(10):
                client.say({"groups": wanted})
            seen = 0
            while True:
                error = client.message().get("error", "")
                seen += bool(error)
                frames.append(error)
                if seen == 10:
                    break
        finally:
            client.close()
        time.sleep(1)

    with Watched(daphne.memory) as memory:
        ordinary.hardly_notices(lambda: together(100, attack, seconds=4))
    errors = [error for error in frames if error]
    report("denied groups", daphne=memory.growth, frames=len(frames))
    assert any("too many groups: 1000 at once" in error for error in errors)
    # One frame for a message, whatever it holds.
    assert len(errors) <= len(frames) <= 2 * len(errors)
    assert memory.growth <= 64 * 2**20


def test_flipping_groups(stack, ordinary, inside):
    """Row 10: thirty sockets take turns between two times a hundred groups, as fast as they are let."""

    def written() -> int:
        code = (
            'from django.db import connection as c; k = c.cursor(); k.execute("SELECT n_tup_ins FROM '
            "pg_stat_user_tables WHERE relname = 'carillon_watch'\"); print(k.fetchone()[0])"
        )
        return int(manage(inside, code))

    jobs = [stack.new_job()["id"] for _ in range(200)]
    halves = [{"job_events": jobs[:100]}, {"job_events": jobs[100:]}]
    before = written()

    lives = []

    def attack(number: int) -> None:
        client = RawSocket(stack)
        lives.append(client)
        try:
            client.message()
            end = time.monotonic() + 4
            while time.monotonic() < end:
                for half in halves:
                    client.say({"groups": half})
                time.sleep(0.1)
        except OSError:
            pass
        finally:
            client.close()
        time.sleep(1)

    ordinary.hardly_notices(lambda: together(30, attack))
    time.sleep(2)  # the statistics are a second behind
    rows = written() - before
    report("flipping groups", rows=rows, sockets=len(lives))
    # Five seconds of each: one write in APART, of a hundred rows.
    assert rows <= len(lives) * 900
