"""What anybody may ask holds up nobody."""

import threading

import pytest
from rest_framework.test import APIRequestFactory

from carillon.api import health


@pytest.fixture(autouse=True)
def asked(monkeypatch):
    """Each ask hangs until `go`; `begun` when there is one."""
    asks, begun, go = [], threading.Event(), threading.Event()

    def is_healthy():
        asks.append(threading.current_thread())
        begun.set()
        go.wait(10)
        return False

    monkeypatch.setattr(health, "is_healthy", is_healthy)
    monkeypatch.setattr(health, "_known", [True])
    yield asks, begun, go
    go.set()


def get() -> int:
    return health.HealthView.as_view()(APIRequestFactory().get("/health/")).status_code


def test_who_comes_before_anything_is_known_waits_for_it(asked, monkeypatch):
    asks, begun, go = asked
    monkeypatch.setattr(health, "_known", [])
    found = []
    threads = [threading.Thread(target=lambda: found.append(get())) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert begun.wait(5)
    go.set()
    for thread in threads:
        thread.join(5)
    assert (found, len(asks)) == ([503] * 3, 1)


def test_while_one_asks_the_others_have_what_was_found_last(asked):
    asks, begun, go = asked
    first = threading.Thread(target=get)
    first.start()
    assert begun.wait(5)
    assert [get() for _ in range(3)] == [200] * 3
    go.set()
    first.join(5)
    assert get() == 503
    assert len(asks) == 1
