"""What somebody without a name can do: try passwords, send bodies."""

from __future__ import annotations

import random
import socket
import time
from contextlib import ExitStack, suppress
from urllib.parse import urlsplit

import pytest
import requests

from tests.infra import wire
from tests.security.conftest import Watched, manage, report, together

pytestmark = pytest.mark.stack

ADDRESS_BURST = 10  # LOGIN_ADDRESS_BURST


def guess(stack, name=None, password=None) -> requests.Response:
    name = name or f"nobody-{random.randrange(10**9)}"
    return requests.get(
        f"{stack.url}/api/v2/me/", auth=(name, password or "wrong"), verify=stack.ca, timeout=60
    )


@pytest.fixture
def known(inside, stack, forgotten):
    """Somebody who has logged in from here before, and one who never did."""
    names = [f"known-{random.randrange(10**9)}", f"new-{random.randrange(10**9)}"]
    manage(
        inside,
        "from django.contrib.auth import get_user_model as model\n"
        f"for name in {names!r}: model().objects.create_user(name, password=name + '-password')",
    )
    assert guess(stack, names[0], f"{names[0]}-password").status_code == 200
    yield names
    manage(
        inside,
        "from django.contrib.auth import get_user_model as model\n"
        f"model().objects.filter(username__in={names!r}).delete()",
    )


def test_guessing_passwords(stack, ordinary, inside, known):
    """Row 1: random names and passwords, a dozen a second. Hashing is what costs: there is little of it."""
    # What an address may try at once costs some 0.35 s of a processor each; then it is refused.
    hashed = 0
    while guess(stack).status_code == 401:
        hashed += 1
        assert hashed <= ADDRESS_BURST + 5, "nobody refuses"
    codes: list[int] = []
    right: list[int] = []

    def one(number: int) -> None:
        if number == 0:  # behind the same address: somebody who was here before
            right.append(guess(stack, known[0], f"{known[0]}-password").status_code)
            time.sleep(2)
            return
        answer = guess(stack)
        codes.append(answer.status_code)
        if answer.status_code == 429:
            assert int(answer.headers["Retry-After"]) >= 1
            assert "Too many" in answer.json()["detail"]
        time.sleep(0.5)

    ordinary.hardly_notices(lambda: together(7, one))
    report("guesses", codes={code: codes.count(code) for code in set(codes)})
    assert right
    assert set(right) == {200}
    assert codes.count(429) >= len(codes) * 0.7
    assert set(codes) <= {401, 429}


def test_guessing_one_name(stack, known):
    name = known[0]
    codes = [guess(stack, name).status_code for _ in range(25)]
    assert codes[:15] == [401] * 15
    assert 429 in codes
    # A session, a token and other names are none of this budget's affair.
    assert stack.api("GET", "/me/").status_code == 200


def test_unfinished_bodies(stack, ordinary, inside):
    """Row 3: sixty bodies of which the end never comes; and as JSON to the login, whole."""
    address = urlsplit(stack.http_url)
    head = (
        b"POST /api/v2/jobs/1/events/ HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: 8000000\r\n\r\n"
    )
    refused = []

    def attack() -> None:
        with ExitStack() as senders:
            for _ in range(60):
                sender = senders.enter_context(socket.create_connection((address.hostname, address.port), 10))
                sender.settimeout(1)
                with suppress(OSError, EOFError):
                    sender.sendall(head)
                    sender.settimeout(0.05)
                    refused.append(wire.read_answer(sender).status == 429)
                with suppress(OSError):
                    sender.settimeout(1)
                    for _ in range(40):
                        sender.sendall(b"[" * 100_000)
            for _ in range(20):
                answer = requests.post(
                    f"{stack.url}/api/login/",
                    data=b'{"username": "' + b"x" * 15_000_000 + b'"}',
                    headers={"Content-Type": "application/json"},
                    verify=stack.ca,
                    timeout=60,
                )
                assert answer.status_code == 413
                assert "16 KiB" in answer.json()["detail"]

    nginx, uwsgi = inside("nginx"), inside("uwsgi")
    with (
        Watched(lambda: nginx.stored("/run/nginx", "/run/nginx/body")) as stored,
        Watched(uwsgi.memory) as memory,
    ):
        ordinary.hardly_notices(attack)
    report("bodies", stored=stored.growth, uwsgi=memory.growth, refused=sum(refused))
    assert sum(refused) >= 40
    assert stored.growth <= 128 * 2**20
    assert memory.growth <= 64 * 2**20
