"""Emitting, publishing by the API, and runworker's part."""

from __future__ import annotations

import asyncio
import datetime
import decimal
import json
import time
import uuid
from io import StringIO

import pytest
from asgiref.sync import sync_to_async
from django.core.management import CommandError, call_command
from django.db import InterfaceError, transaction
from django.utils.functional import lazystr
from rest_framework.test import APIClient

from asgi_amqp import MessageTooLarge
from carillon.events import (
    Notification,
    NotificationsUnavailable,
    aemit_channel_notification,
    emit,
    emit_channel_notification,
    emit_in_transaction,
    emit_many,
    emit_on_commit,
    outbox,
    queue,
)


def test_the_message(sent):
    assert emit_channel_notification("jobs-summary", {"a": 1}) is True
    (((channel, message),),) = sent.publisher.batches
    assert channel == "notifications"
    assert len(message.pop("id")) == 16
    assert time.time() - message.pop("stamp") / 1000 < 60
    assert message == {"group": "jobs-summary", "text": '{"a": 1}', "audience": None}


def test_the_audience(sent):
    emit_channel_notification("jobs-summary", {}, audience={"users": (1,)})
    assert sent.messages[0]["audience"] == ("u1",)


async def test_from_asynchronous_code(sent):
    assert await aemit_channel_notification("jobs-summary", {"a": 1}) is True
    assert sent.messages[0]["text"] == '{"a": 1}'
    sent.publisher.away = True
    with pytest.raises(NotificationsUnavailable):
        await aemit_channel_notification("jobs-summary", {"a": 1})


def test_what_django_can_encode(sent):
    payload = {
        "at": datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC),
        "for": datetime.timedelta(minutes=1),
        "price": decimal.Decimal("1.50"),
        "id": uuid.UUID(int=1),
        "words": lazystr("lazy"),
        "é": "\u2028",
    }
    emit_channel_notification("jobs-summary", payload)
    assert json.loads(sent.messages[0]["text"]) == {
        "at": "2026-01-02T03:04:05Z",
        "for": "P0DT00H01M00S",
        "price": "1.50",
        "id": "00000000-0000-0000-0000-000000000001",
        "words": "lazy",
        "é": "\u2028",
    }


CIRCLE: dict = {}
CIRCLE["self"] = CIRCLE


@pytest.mark.parametrize(
    "payload", [CIRCLE, {"n": float("nan")}, {"n": float("inf")}, {"o": object()}, {(1, 2): 3}]
)
def test_what_is_no_json_is_logged_and_dropped(sent, caplog, payload):
    dropped = emit.DROPPED._value.get()
    assert emit_channel_notification("jobs-summary", payload) is False
    assert emit_many([Notification("jobs-summary", payload), Notification("jobs-summary", {"good": 1})]) == 1
    assert [message["text"] for message in sent.messages] == ['{"good": 1}']
    assert "Invalid payload for jobs-summary dropped" in caplog.text
    assert emit.DROPPED._value.get() == dropped + 2


def test_the_broker_is_away(sent):
    sent.publisher.away = True
    with pytest.raises(NotificationsUnavailable, match="Try again"):
        emit_channel_notification("jobs-summary", {})


@pytest.mark.django_db(transaction=True)
def test_on_commit(sent):
    with transaction.atomic():
        emit_on_commit([Notification("jobs-summary", {"n": 1}), Notification("jobs-summary", {"n": 2})])
        assert sent.messages == []
    assert [len(batch) for batch in sent.publisher.batches] == [2]


@pytest.mark.django_db(transaction=True)
def test_a_rollback_says_nothing(sent):
    def fail():
        with transaction.atomic():
            emit_on_commit([Notification("jobs-summary", {})])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert sent.messages == []


@pytest.mark.django_db(transaction=True)
def test_in_the_transaction(sent):
    with transaction.atomic():
        emit_in_transaction([Notification("jobs-summary", {"n": 1})])
    with transaction.atomic():
        emit_in_transaction([Notification("jobs-summary", {"n": 2})])
        transaction.set_rollback(True)
    assert sent.messages == []
    sent.publisher.away = True
    with pytest.raises(NotificationsUnavailable):
        outbox.send_some()
    sent.publisher.away = False
    assert outbox.send_some() == 1
    assert [message["text"] for message in sent.messages] == ['{"n": 1}']
    assert outbox.send_some() == 0


@pytest.mark.django_db(transaction=True)
def test_an_event_that_no_broker_takes_holds_up_nothing(monkeypatch, caplog):
    taken = []

    def send_many(messages, timeout=None):
        if any(len(message["text"]) > 100 for _, message in messages):
            raise MessageTooLarge("101 bytes: 100 are the most")
        taken.extend(message["text"] for _, message in messages)

    monkeypatch.setattr(queue.get_channel_layer().publisher, "send_many", send_many)
    texts = [str(number) for number in range(500)]
    texts[1] = texts[400] = "x" * 101
    outbox.store([queue.message("jobs-summary", text) for text in texts])
    assert [outbox.send_some() for _ in range(2)] == [500, 0], "at once, and not after a second for each half"
    assert taken == [text for text in texts if len(text) < 100]
    assert caplog.text.count("Dropped an event of the outbox: 101 bytes") == 2


@pytest.mark.django_db(transaction=True)
def test_the_outbox_is_sent_so_many_bytes_at_once(sent, django_assert_max_num_queries):
    """Five hundred rows may be as many MiB: a process that is killed for its memory would begin with them
    again."""
    mebibytes = [1.4, 1.4, 5, 1.4, 1.4]
    texts = [f'{{"pad": "{"x" * int(size * 1024 * 1024)}"}}' for size in mebibytes]
    outbox.store([queue.message("jobs-summary", text) for text in texts])
    with django_assert_max_num_queries(6):  # with the lock and both ends of the transaction
        assert outbox.send_some() == 2
    assert [outbox.send_some() for _ in range(3)] == [1, 2, 0]
    assert [message["text"] for message in sent.messages] == texts


@pytest.mark.django_db(transaction=True)
async def test_a_broker_that_is_slow_is_given_less_at_once(sent, monkeypatch):
    """What it does not confirm in time is not tried again as it was, for ever."""
    monkeypatch.setattr(outbox, "AGAIN", 0)
    taken, tried = [], []

    def publish(messages):
        tried.append(len(messages))
        if len(messages) > 60:
            raise NotificationsUnavailable
        taken.extend(messages)

    monkeypatch.setattr(outbox.queue, "publish", publish)
    monkeypatch.setattr(outbox, "_send_some", sync_to_async(outbox.send_some))
    many = [Notification("jobs-summary", {"n": n}) for n in range(600)]
    await sync_to_async(emit_in_transaction)(many)
    running = asyncio.create_task(outbox.run())
    async with asyncio.timeout(20):
        while await sync_to_async(outbox.waits)():
            await asyncio.sleep(0.01)
    running.cancel()
    assert [json.loads(message["text"])["n"] for message in taken] == list(range(600))
    assert tried[:4] == [500, 250, 125, 62]
    assert len(tried) < 60


@pytest.mark.django_db(transaction=True)
async def test_a_slow_broker_is_given_fewer_bytes_at_once(sent, monkeypatch):
    """Of large rows, too: those that fit are few, and half of five hundred are as many of them."""
    monkeypatch.setattr(outbox, "AGAIN", 0)
    monkeypatch.setattr(outbox, "BYTES", 8_000)
    tried = []

    def publish(messages):
        tried.append(len(messages))
        if len(messages) > 2:
            raise NotificationsUnavailable

    monkeypatch.setattr(outbox.queue, "publish", publish)
    monkeypatch.setattr(outbox, "_send_some", sync_to_async(outbox.send_some))
    await sync_to_async(emit_in_transaction)([Notification("jobs-summary", {"pad": "x" * 850})] * 10)
    running = asyncio.create_task(outbox.run())
    async with asyncio.timeout(20):
        while await sync_to_async(outbox.waits)():
            await asyncio.sleep(0.01)
    running.cancel()
    assert tried[:3] == [8, 4, 2]


def test_a_connection_that_broke_is_no_error_of_a_change_that_is_made(sent, monkeypatch, caplog):
    def broken(*arguments):
        raise InterfaceError("connection already closed")

    for name in ("waits", "store", "send_some"):
        monkeypatch.setattr(outbox, name, broken)
    emit._publish_or_keep([queue.message("jobs-summary", "{}")])
    assert "Lost 1 notifications to jobs-summary: the database: InterfaceError" in caplog.text
    outbox.send_now()


@pytest.mark.django_db(transaction=True)
def test_what_follows_does_not_overtake_what_waits(sent):
    """The broker is back before runworker has emptied the outbox: what waits there goes first."""
    sent.publisher.away = True
    emit_on_commit([Notification("jobs-status_changed", {"status": "running"})])
    sent.publisher.away = False
    emit_on_commit([Notification("jobs-status_changed", {"status": "successful"})])
    assert not outbox.waits()
    emit_on_commit([Notification("jobs-status_changed", {"status": "at once"})])
    texts = [json.loads(message["text"])["status"] for message in sent.messages]
    assert texts == ["running", "successful", "at once"]


@pytest.mark.django_db(transaction=True)
def test_what_comes_while_somebody_sends_is_sent_by_him(sent, monkeypatch):
    """Who commits meanwhile finds the outbox taken: runworker would look a quarter of a second later."""
    publish = queue.publish

    def publish_and_store(messages):
        if not sent.messages:
            outbox.store([queue.message("jobs-summary", '{"n": 2}')])
        publish(messages)

    monkeypatch.setattr(queue, "publish", publish_and_store)
    outbox.store([queue.message("jobs-summary", '{"n": 1}')])
    outbox.send_now()
    assert [json.loads(message["text"])["n"] for message in sent.messages] == [1, 2]
    monkeypatch.setattr(queue, "publish", lambda messages: outbox.store(messages))
    outbox.store([queue.message("jobs-summary", "{}")])
    outbox.send_now()  # it ends, however much comes
    assert outbox.waits()


@pytest.mark.django_db
class TestTheApi:
    URL = "/api/v2/notifications/"

    def test_one(self, people, sent):
        client = people.client(people.root, scope="publish")
        answer = client.post(self.URL, {"group": "job_events-42", "payload": {"a": [1]}}, format="json")
        assert (answer.status_code, answer.json()) == (202, {"accepted": 1})
        assert [(each["group"], each["text"]) for each in sent.messages] == [("job_events-42", '{"a": [1]}')]

    def test_an_id_makes_a_retry_safe(self, people, sent):
        client = people.client(people.root, scope="publish")
        event = {"group": "jobs-summary", "payload": {}, "id": "0b5f8a1c-9d3e-4f7a-8b2c-1d4e6f708192"}
        for _ in range(2):
            assert client.post(self.URL, event, format="json").status_code == 202
        assert [message["id"].hex() for message in sent.messages] == ["0b5f8a1c9d3e4f7a8b2c1d4e6f708192"] * 2

    def test_an_idempotency_key_makes_a_retry_safe(self, people, sent):
        client = people.client(people.root, scope="publish")
        events = [{"group": "jobs-summary", "payload": {"n": n}} for n in range(2)]
        for key in ("one", "one", "other", ""):
            headers = {"Idempotency-Key": key} if key else {}
            assert client.post(self.URL, events, format="json", headers=headers).status_code == 202
        ids = [message["id"] for message in sent.messages]
        assert ids[:2] == ids[2:4]
        assert len(set(ids)) == 6, "another place, another key, or none: another event"
        mine = people.client(people.may_publish(people.ben), scope="publish")
        mine.post(self.URL, events, format="json", headers={"Idempotency-Key": "one"})
        assert not {message["id"] for message in sent.messages[8:]} & set(ids), "a key is its user's alone"
        answer = client.post(self.URL, events, format="json", headers={"Idempotency-Key": "x" * 201})
        assert answer.status_code == 400

    def test_many(self, people, sent):
        client = people.client(people.root, scope="publish")
        body = [{"group": "jobs-summary", "payload": {"n": number}} for number in range(1000)]
        assert client.post(self.URL, body, format="json").json() == {"accepted": 1000}
        assert [len(batch) for batch in sent.publisher.batches] == [1000]
        assert client.post(self.URL, [*body, body[0]], format="json").status_code == 400

    def test_to_an_audience(self, people, sent):
        client = people.client(people.root, scope="publish")
        client.post(
            self.URL,
            {"group": "jobs-summary", "payload": {}, "audience": {"users": [3], "teams": []}},
            format="json",
        )
        assert sent.messages[0]["audience"] == ("u3",)

    def test_who_may(self, people, sent):
        body = {"group": "jobs-summary", "payload": {}}
        for user, scope, status in (
            (people.ann, "read write", 403),
            (people.root, "read write", 403),
            (people.ann, "publish", 403),
            (people.root, "publish", 202),
            (people.may_publish(people.ben), "publish", 202),
        ):
            assert people.client(user, scope=scope).post(self.URL, body, format="json").status_code == status
        for user, status in ((people.ann, 403), (people.root, 202)):
            client = APIClient()
            client.force_authenticate(user)
            assert client.post(self.URL, body, format="json").status_code == status

    def test_a_right_that_was_lost_is_lost_at_once(self, people, sent):
        client = people.client(people.root, scope="publish")
        body = {"group": "jobs-summary", "payload": {}}
        assert client.post(self.URL, body, format="json").status_code == 202
        people.root.is_superuser = False
        people.root.save()
        assert client.post(self.URL, body, format="json").status_code == 403

    @pytest.mark.parametrize(
        "body",
        [
            {},
            [1],
            {"group": "jobs-summary"},
            {"group": "jobs-summary", "payload": []},
            {"group": "internal.sockets", "payload": {}},
            {"group": "nonsense-1", "payload": {}},
            {"group": "job_events-x", "payload": {}},
            {"group": "jobs-summary", "payload": {"x": "x" * 300_000}},
            [{"group": "jobs-summary", "payload": {}}, {"group": "nonsense", "payload": {}}],
        ],
    )
    def test_nonsense_sends_nothing(self, people, sent, body):
        assert (
            people.client(people.root, scope="publish").post(self.URL, body, format="json").status_code == 400
        )
        assert sent.messages == []

    def test_the_broker_is_away(self, people, sent):
        client = people.client(people.root, scope="publish")
        sent.publisher.away = True
        answer = client.post(self.URL, {"group": "jobs-summary", "payload": {}}, format="json")
        assert answer.status_code == 503
        assert answer.json()["code"] == "broker_unavailable"
        assert answer["Retry-After"] == "5"


@pytest.mark.django_db
def test_ping_and_health(client, sent):
    assert client.get("/api/v2/ping/").json()["status"] == "ok"
    assert client.get("/api/v2/health/").json() == {"status": "ok"}


@pytest.mark.django_db
def test_health_without_a_broker(client, sent):
    sent.publisher.away = True
    answer = client.get("/api/v2/health/")
    assert (answer.status_code, answer.json()) == (503, {"status": "unavailable"})


class TestEmitCommand:
    def test_it_emits(self, sent):
        call_command("emit", "jobs-summary", '{"a": 1}', stdout=StringIO())
        assert sent.messages[0]["text"] == '{"a": 1}'

    @pytest.mark.parametrize(
        ("group", "payload"),
        [("nonsense", "{}"), ("jobs-summary", "{"), ("jobs-summary", "[]"), ("jobs-summary", '{"a": NaN}')],
    )
    def test_it_says_what_is_wrong(self, sent, group, payload):
        with pytest.raises(CommandError):
            call_command("emit", group, payload)
        assert sent.messages == []

    def test_the_broker_is_away(self, sent):
        sent.publisher.away = True
        with pytest.raises(CommandError, match="not available"):
            call_command("emit", "jobs-summary", "{}")
