"""What somebody with a name can do by the API."""

from __future__ import annotations

import json
import socket
import time
from contextlib import ExitStack
from urllib.parse import urlsplit

import pytest

from tests.security.conftest import ATTACK_SECONDS, Watched, report

pytestmark = pytest.mark.stack

EVENTS = 40
PAGE_BYTES = 2 * 2**20


@pytest.fixture(scope="module")
def heavy(stack):
    """A job with forty events of a mebibyte."""
    job = stack.new_job()["id"]
    for first in range(1, EVENTS + 1, 5):
        events = [
            {"counter": counter, "event": "verbose", "stdout": f"{counter}".ljust(2**20, "x")}
            for counter in range(first, first + 5)
        ]
        assert stack.post(f"/jobs/{job}/events/", events)["created"] == 5
    return job


def test_a_page_is_bounded_and_its_next_goes_on(stack, heavy):
    path, counters = f"/jobs/{heavy}/events/?page_size=200", []
    while path:
        answer = stack.api("GET", path)
        assert answer.status_code == 200
        assert len(answer.content) < PAGE_BYTES * 1.1
        counters += [event["counter"] for event in answer.json()["results"]]
        following = answer.json()["next"]
        path = following and following.partition("/api/v2")[2]
    assert counters == list(range(1, EVENTS + 1))


def test_large_pages_that_nobody_reads(stack, ordinary, inside, heavy):
    """Row 2: a dozen connections ask for pages of everything, and read nothing."""
    address = urlsplit(stack.http_url)
    request = (
        f"GET /api/v2/jobs/{heavy}/events/?page_size=200 HTTP/1.1\r\nHost: localhost\r\n"
        f"Authorization: Bearer {stack.token}\r\n\r\n"
    ).encode()
    asked = []

    def attack() -> None:
        end = time.monotonic() + ATTACK_SECONDS
        while time.monotonic() < end:
            with ExitStack() as readers:
                for _ in range(12):
                    reader = readers.enter_context(
                        socket.create_connection((address.hostname, address.port), timeout=10)
                    )
                    reader.sendall(request)
                    asked.append(reader)
                time.sleep(1)

    uwsgi, nginx = inside("uwsgi"), inside("nginx")
    with (
        Watched(uwsgi.memory) as memory,
        Watched(lambda: nginx.stored("/run/nginx", "/run/nginx/body")) as stored,
    ):
        ordinary.hardly_notices(attack)
    report("pages", asked=len(asked), uwsgi=memory.growth, nginx=stored.growth)
    assert memory.growth <= 128 * 2**20
    assert stored.growth <= 96 * 2**20


def test_data_of_an_event_is_bounded(stack):
    job = stack.new_job()["id"]
    event = {"counter": 1, "event": "verbose", "event_data": {"x": "y" * 256 * 1024}}
    answer = stack.api("POST", f"/jobs/{job}/events/", event)
    assert answer.status_code == 400
    assert "the most is 262144" in json.dumps(answer.json())
