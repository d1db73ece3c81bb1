"""The operations view's answers: who gets them, and what they say where something is away."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from django.db import OperationalError
from prometheus_client import CollectorRegistry, Gauge
from rest_framework.test import APIClient

from asgi_amqp import BrokerUnavailable, Options, Target
from asgi_amqp.dead_letters import Depth, Letter
from carillon import explain, operations
from carillon.events import outbox
from carillon.metrics.shared import Writer
from tests.unit.observability.test_explain import EVENT, PLACE

URL = "/api/v2/operations/"
EXPLAIN = "/api/v2/explain/"
ALL = (URL, EXPLAIN, "/api/v2/dead_letters/")


@pytest.fixture
def running(tmp_path, settings, monkeypatch):
    """A daphne that is 10 events behind a runworker, and a broker on whose queue 4 messages wait."""
    settings.CARILLON = {**settings.CARILLON, "METRICS_DIRECTORY": tmp_path}
    writers = []
    for process, values in (
        ("runworker", {"carillon_relay_position": 100, "carillon_relay_active": 1}),
        ("daphne", {"carillon_fanout_position": 90, "carillon_sockets": 3}),
    ):
        registry = CollectorRegistry()
        for name, value in values.items():
            Gauge(name, "", registry=registry).set(value)
        writers.append(Writer(tmp_path, process, registry))
        writers[-1].once()

    async def depth():
        return Depth(4, 1, 1)

    monkeypatch.setattr(operations.dead_letters, "depth", depth)
    there = Options((Target.parse("amqp://rabbitmq:5672/"),), "")
    monkeypatch.setattr(operations.broker, "options", lambda name: there)
    yield
    for writer in writers:
        writer._leave()


@pytest.fixture
def admin(people):
    client = APIClient()
    client.force_login(people.root)
    return client


@pytest.mark.parametrize("url", ALL)
def test_only_an_admin_may_ask(people, running, url):
    assert APIClient().get(url).status_code == 401
    user = APIClient()
    user.force_login(people.ann)
    assert user.get(url).status_code == 403
    assert user.get(url).json() == {"detail": "Operations are for admins."}
    assert people.client(people.ann, scope="read write publish metrics").get(url).status_code == 403
    assert people.client(people.root, scope="metrics").get(url).status_code == 403  # it is for the metrics


def test_it_is_what_the_processes_the_broker_and_the_database_say(admin, running):
    said = admin.get(URL).json()
    assert said["waiting"] == {"outbox": 0, "queue": 4, "dead_letters": 1, "runworkers": 1}
    daphne, runworker = said["processes"]
    assert (daphne["name"], daphne["up"], daphne["behind"], daphne["sockets"]) == ("daphne 0", True, 10, 3)
    assert (runworker["position"], runworker["sockets"], runworker["late"]) == (100, None, False)
    assert {one["alert"] for one in said["conditions"]} == {"CarillonProcessGone", "CarillonDeadLetters"}
    assert (said["state"], said["words"]) == ("stopped", "No uwsgi has written its metrics for ten seconds.")
    assert {"emitted", "relayed", "delivered"} <= said["totals"].keys()


@pytest.mark.parametrize("error", [BrokerUnavailable("away"), TimeoutError()])
def test_a_broker_that_is_away_is_said_and_its_numbers_are_none(admin, running, monkeypatch, error):
    async def away():
        raise error

    monkeypatch.setattr(operations.dead_letters, "depth", away)
    said = admin.get(URL)
    assert said.status_code == 200
    assert said.json()["waiting"] == {"outbox": 0, "queue": None, "dead_letters": None, "runworkers": None}
    assert said.json()["words"].startswith("RabbitMQ at ")


def test_an_outbox_that_cannot_be_read_is_not_called_empty(admin, running, monkeypatch):
    def away():
        raise OperationalError("away")

    monkeypatch.setattr(outbox, "waiting", away)
    assert admin.get(URL).json()["waiting"]["outbox"] is None


def test_metrics_that_cannot_be_read_are_said(admin, running, settings, tmp_path):
    settings.CARILLON = {**settings.CARILLON, "METRICS_DIRECTORY": tmp_path / "gone"}
    answer = admin.get(URL)
    assert (answer.status_code, "log of uwsgi" in answer.json()["detail"]) == (503, True)


@pytest.fixture
def found(monkeypatch):
    """What `carillon explain` would find."""

    def find(facts):
        async def find(text, seconds):
            assert seconds < 20  # the page waits no longer
            explain.parse(text)
            if isinstance(facts, BaseException):
                raise facts
            return facts

        monkeypatch.setattr(explain, "find", find)

    return find


def test_an_event_s_hops_are_told_in_their_order(admin, found):
    found(explain.Facts(EVENT, "e", PLACE))
    hops = admin.get(EXPLAIN, {"event": " e:105 "}).json()["hops"]
    assert hops[0] == {"name": "position", "text": "e:105"}
    assert [hop["name"] for hop in hops] == [
        name for name, _ in explain.story(explain.Facts(EVENT, "e", PLACE))
    ]


@pytest.mark.parametrize(
    ("wanted", "error", "status", "words"),
    [
        ("nonsense", None, 404, "neither a position"),
        ("", None, 404, "neither a position"),
        ("e:105", explain.Unclear("too old for the log"), 404, "too old"),
        ("e:105", BrokerUnavailable("no connection"), 503, "no connection"),
        ("e:105", TimeoutError(), 503, "too long"),
        ("e:105", OperationalError("away"), 503, "away"),
    ],
)
def test_what_cannot_be_explained_has_words(admin, found, wanted, error, status, words):
    found(error)
    answer = admin.get(EXPLAIN, {"event": wanted})
    assert answer.status_code == status
    assert words in answer.json()["detail"]
    assert not operations._one.locked()


def test_one_event_at_a_time_is_looked_for(admin, found):
    found(explain.Facts(EVENT, "e", PLACE))
    with operations._one:
        answer = admin.get(EXPLAIN, {"event": "e:105"})
    assert (answer.status_code, answer["Retry-After"]) == (429, "1")
    assert admin.get(EXPLAIN, {"event": "e:105"}).status_code == 200


def test_dead_letters_are_listed_without_what_is_in_them(admin, monkeypatch):
    messages = [{"group": "jobs-summary", "id": b"\x07" * 16, "text": "secret"}, {"group": 5}] * 10
    letter = Letter("5f0c", "no JSON", datetime(2026, 11, 26, tzinfo=UTC), 999, messages)

    async def look(most, say):
        assert most == operations.LETTERS
        say(letter)

    monkeypatch.setattr(operations.dead_letters, "look", look)
    answer = admin.get("/api/v2/dead_letters/")
    (shown,) = answer.json()["results"]
    assert (shown["name"], shown["reason"], shown["count"]) == ("5f0c", "no JSON", 20)
    assert shown["messages"][:2] == [{"group": "jobs-summary", "id": "07" * 16}, {"group": "5", "id": None}]
    assert len(shown["messages"]) == operations.MESSAGES
    assert "secret" not in answer.content.decode()


def test_without_the_broker_no_dead_letters_are_not_claimed(admin, monkeypatch):
    async def away(most, say):
        raise BrokerUnavailable("away")

    monkeypatch.setattr(operations.dead_letters, "look", away)
    assert admin.get("/api/v2/dead_letters/").status_code == 503
