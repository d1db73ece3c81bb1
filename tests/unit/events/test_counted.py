"""What emitting counts, and how long what waits has waited."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from django.db import InterfaceError
from django.db.models import F

from asgi_amqp import BrokerUnavailable
from carillon.events import NotificationsUnavailable, emit_channel_notification, outbox, queue
from carillon.events.models import Outbox
from carillon.metrics import names


def waiting() -> tuple[float, float]:
    outbox.count_waiting()
    return names.OUTBOX_EVENTS._value.get(), names.OUTBOX_OLDEST._value.get()


@pytest.mark.django_db
def test_how_much_waits_and_for_how_long(people):
    assert waiting() == (0, 0)
    outbox.store([queue.message("jobs-summary", "{}") for _ in range(3)])
    first = Outbox.objects.order_by("pk").first()
    Outbox.objects.filter(pk=first.pk).update(created=F("created") - timedelta(seconds=50))
    number, seconds = waiting()
    assert (number, 50 <= seconds < 80) == (3, True)


@pytest.mark.django_db
def test_a_clock_that_is_ahead_makes_no_negative_age(people):
    outbox.store([queue.message("jobs-summary", "{}")])
    Outbox.objects.update(created=F("created") + timedelta(hours=1))
    assert waiting() == (1, 0)


@pytest.mark.parametrize("task", ["run", "measure"])
async def test_a_connection_that_broke_ends_nothing(monkeypatch, task):
    """InterfaceError is no DatabaseError."""
    asked = []

    def broken(*arguments):
        asked.append(arguments)
        raise InterfaceError("connection already closed")

    for name, value in {"send_some": broken, "count_waiting": broken, "AGAIN": 0, "MEASURE": 0}.items():
        monkeypatch.setattr(outbox, name, value)
    running = asyncio.create_task(getattr(outbox, task)())
    async with asyncio.timeout(5):
        while len(asked) < 3 and not running.done():
            await asyncio.sleep(0)
    assert not running.done()
    running.cancel()


def test_what_the_broker_confirmed_and_what_not(sent, monkeypatch):
    def counted() -> tuple[float, float, float]:
        return (
            names.EMITTED._value.get(),
            names.EMIT_FAILURES._value.get(),
            sum(each.get() for each in names.EMIT_SECONDS._buckets),
        )

    before = counted()
    emit_channel_notification("jobs-summary", {})
    assert counted() == (before[0] + 1, before[1], before[2] + 1)

    def away(*arguments, **options):
        raise BrokerUnavailable("away")

    monkeypatch.setattr(queue.get_channel_layer().publisher, "send_many", away)
    with pytest.raises(NotificationsUnavailable):
        emit_channel_notification("jobs-summary", {})
    assert counted() == (before[0] + 1, before[1] + 1, before[2] + 1)
