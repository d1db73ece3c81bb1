"""`X-Carillon-Position` is where the log is, at idle and under load, whatever segments it has."""

from __future__ import annotations

import asyncio
import json
import time

import pytest
import requests

pytestmark = pytest.mark.stack

REQUESTS, EVENTS, BYTES = 40, 4, 240_000
"""38 MB of events: the log goes on into its third segment at least."""

LAG = 1.0
"""Seconds: a position may be used again for a quarter of one, the row is written twenty times in one."""


def position(stack) -> int:
    answer = requests.get(
        f"{stack.url}/api/v2/tokens/",
        headers={"Authorization": f"Bearer {stack.token}"},
        verify=stack.ca,
        timeout=20,
    )
    return int(answer.headers["X-Carillon-Position"].partition(":")[2])


async def test_the_position_is_that_of_the_newest_event(stack):
    heard: list[tuple[float, int]] = []
    with stack.socket(version=2) as socket:
        socket.frame()
        socket.subscribe({"inventories": ["status_changed"]})

        def listen() -> None:
            while len(heard) < REQUESTS * EVENTS:
                frame = json.loads(socket.raw.recv(20))
                if "event" in frame:
                    heard.append((time.monotonic(), int(frame["position"].partition(":")[2])))

        listening = asyncio.create_task(asyncio.to_thread(listen))
        batch = [
            {"group": "inventories-status_changed", "payload": {"n": n, "pad": "x" * BYTES}}
            for n in range(EVENTS)
        ]
        behind = []
        for turn in range(REQUESTS):
            await asyncio.to_thread(stack.post, "/notifications/", batch)
            if turn % 5 == 4:
                asked = time.monotonic()
                here = await asyncio.to_thread(position, stack)
                old = [number for at, number in heard if at < asked - LAG]
                behind.append(here - old[-1] if old else 0)
        await listening
        assert min(behind) >= 0, "under load it is behind what was heard a second ago"
        numbers = [number for _, number in heard]
        assert numbers == sorted(set(numbers))
        assert numbers[-1] - numbers[0] < REQUESTS * EVENTS + 20, "one number an event: others are few"
    here = -1  # each worker of uwsgi may use for a quarter of a second what it has read
    async with asyncio.timeout(10):
        while here < numbers[-1] or here != await asyncio.to_thread(of_the_log, stack):
            await asyncio.sleep(0.1)
            here = await asyncio.to_thread(position, stack)


def of_the_log(stack) -> int:
    """Where daphne is."""
    with stack.socket(version=2) as socket:
        return int(socket.frame()["position"].partition(":")[2])
