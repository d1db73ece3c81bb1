"""The relay's shell, without a broker."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace

import pytest
from django.db import DatabaseError, InterfaceError

from asgi_amqp import Position
from carillon.events.event import Event
from carillon.relay import relay as shell
from carillon.relay.relay import Relay

AWAY = pytest.mark.parametrize("error", [DatabaseError, InterfaceError])


@pytest.fixture
def relay(monkeypatch):
    monkeypatch.setattr(shell.broker, "queue", lambda: None)
    monkeypatch.setattr(shell.broker, "options", lambda name: None)
    monkeypatch.setattr(shell, "Supervisor", lambda *arguments: None)
    return Relay()


@AWAY
async def test_a_database_that_is_away_is_no_fault_of_the_relay(relay, error, caplog):
    reasons = []
    relay._link = SimpleNamespace(give_up=reasons.append)

    async def work():
        raise error("away")

    await relay._guarded(work())
    assert reasons == ["the relay starts anew: away"]
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@AWAY
async def test_a_position_that_cannot_be_noted_is_noted_later(relay, error, monkeypatch):
    """Without a database the relay goes on until its hands are full: the row's task does not end."""
    tries, noted = [], asyncio.Event()

    async def note(position, reserved):
        tries.append(position.number)
        if len(tries) == 1:
            raise error("away")
        noted.set()

    monkeypatch.setattr(shell, "LOOK", 0)
    monkeypatch.setattr(shell, "NOTE_INTERVAL", 0.001)
    monkeypatch.setattr(shell.heads, "note", note)
    relay.core = SimpleNamespace(
        reserved=9, short=lambda count: False, to_note=lambda: Position("e", 5), noted=lambda number: None
    )
    row = asyncio.create_task(relay._keep_row())
    await asyncio.wait_for(noted.wait(), 5)
    assert not row.done()
    row.cancel()
    await asyncio.gather(row, return_exceptions=True)


async def test_what_is_in_hand_is_bounded_in_bytes(relay, monkeypatch):
    """Of large messages there are fewer: a backlog of them would else be half a gibibyte at once."""
    monkeypatch.setattr(shell, "PREFETCH_BYTES", 1000)
    reasons = []
    large = SimpleNamespace(body=b"x" * 600)
    for _ in range(3):
        relay._link = SimpleNamespace(give_up=reasons.append)
        relay._arrived(large)
        relay._arrived(large)
        relay._lost(relay._link, "")
    assert reasons == [f"1200 bytes are in hand: {each} messages at a time from now" for each in (64, 8)]
    assert relay._prefetch == 8, "one at a time would hold up everything"


async def test_what_was_taken_in_counts_until_it_is_sent(relay, monkeypatch):
    event = Event(b"a-1", b"x" * 500, id=b"1")
    monkeypatch.setattr(shell, "judge", lambda body: ([event], []))
    relay._arrived(SimpleNamespace(body=b"x" * 600, tag=1))
    await relay._take_in(relay._arrivals.popleft(), None)
    assert (relay._arrived_bytes, relay.core.waiting) == (0, event.size)
    relay._lost(SimpleNamespace(), "")
    assert relay.core.waiting == 0
