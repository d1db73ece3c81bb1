"""Requests that no client of ours makes: each is told what is wrong with it."""

from contextlib import nullcontext

import pytest
from django.db import OperationalError
from django.test import Client
from django.utils import timezone
from drf_spectacular.generators import SchemaGenerator
from psycopg.errors import QueryCanceled
from rest_framework.exceptions import ParseError

from carillon.accounts.models import ApiToken
from carillon.api import documents
from carillon.api.parsers import DEEPEST, _check
from carillon.text import guarded
from tests.unit.accounts.test_accounts import Browser
from tower.models import EventQuerySet

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize("deep", ["[" * 5000, '{"a":' * 5000, "[" * 200 + "]" * 200])
@pytest.mark.parametrize("path", ["/api/v2/jobs/", "/api/v2/notifications/"])
def test_deep_json(people, path, deep):
    answer = people.client(people.root, scope="read write publish").post(
        path, deep, content_type="application/json"
    )
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith("JSON")


def test_how_deep_is_too_deep():
    value = "leaf"
    for _ in range(DEEPEST):
        value = {"a": 1, "b": value}
    _check(value)
    _check("leaf")
    with pytest.raises(ParseError, match="nested deeper than 100"):
        _check([value])


@pytest.mark.parametrize("field", ["team", "workflow_job", "resource"])
@pytest.mark.parametrize("number", ["1e999", "-1e999"])
def test_a_number_that_is_none(people, field, number):
    """JSON knows it, and Python makes it infinite: a field of a key failed on it."""
    body = f'{{"name": "x", "{field}": {number}}}'
    answer = people.client(people.ann).post("/api/v2/jobs/", body, content_type="application/json")
    assert answer.status_code == 400
    assert answer.json() == {"detail": "JSON error - a number is too large"}


@pytest.mark.parametrize(
    "charset", ["hex", "zlib", "rot13", "undefined", "punycode", "utf-7", "idna", "utf-16"]
)
def test_a_charset_that_is_none(charset):
    """Django failed on it before it had a request; of punycode, 64 KiB took it over a second."""
    asked, said = [], []
    application = guarded(lambda environ, start: asked.append(environ))
    for content_type in (f"text/plain; charset={charset}", f'application/json;charset="{charset.upper()}"'):
        body = application({"CONTENT_TYPE": content_type}, lambda status, headers: said.append(status))
        assert b"UTF-8" in b"".join(body)
    assert (asked, said) == ([], ["415 Unsupported Media Type"] * 2)


@pytest.mark.parametrize(
    "content_type", ["", "application/json", "text/plain; charset=UTF-8", "a; charset=ascii"]
)
def test_a_charset_that_is_one(content_type):
    environ = {"CONTENT_TYPE": content_type} if content_type else {}
    assert guarded(lambda environ, start: [b"answer"])(environ, None) == [b"answer"]


def test_the_document_of_the_api_is_made_once_whatever_is_asked(monkeypatch):
    made, get_schema = [], SchemaGenerator.get_schema
    documents._openapi.cache_clear()
    monkeypatch.setattr(SchemaGenerator, "get_schema", lambda *a, **k: made.append(1) or get_schema(*a, **k))
    for query in ("", "?version=%0d%0aX:1", "?version=%00", "?lang=de&x=1", "?format=json"):
        answer = Client().get(f"/api/v2/schema/{query}")
        assert answer.status_code == 200
        assert answer.json()["info"]["title"]
    assert len(made) == 1


def test_the_document_of_the_api_is_in_no_visitors_language(monkeypatch, settings):
    """A project may have USE_I18N and a LocaleMiddleware."""
    languages = []
    documents._openapi.cache_clear()
    monkeypatch.setattr(documents, "override", lambda language: languages.append(language) or nullcontext())
    assert documents._openapi("/")["info"]["title"]
    assert languages == [settings.LANGUAGE_CODE]


def test_searches_through_output_are_few_at_a_time(people, monkeypatch):
    client = people.client(people.ann)
    job = client.post("/api/v2/jobs/", {"name": "x"}, format="json").json()["id"]
    held, summary = [], EventQuerySet.summary

    def holding(self):
        held.append(
            client.get(f"/api/v2/jobs/{job}/{'hits' if len(held) else 'summary'}/?search=a").status_code
        )
        return summary(self)

    monkeypatch.setattr(EventQuerySet, "summary", holding)
    assert client.get(f"/api/v2/jobs/{job}/summary/").status_code == 200  # it looks for nothing
    held.clear()
    assert client.get(f"/api/v2/jobs/{job}/summary/?search=a").status_code == 200
    assert held == [429, 200]
    for path in ("summary/", "hits/", "events/"):
        monkeypatch.setattr(EventQuerySet, "summary", summary)
        assert client.get(f"/api/v2/jobs/{job}/{path}?search={'a' * 301}").status_code == 400
        assert client.get(f"/api/v2/jobs/{job}/{path}?search={'a' * 300}").status_code == 200


def test_a_query_that_takes_too_long_is_told_of(people, monkeypatch):
    def canceled(self):
        raise OperationalError("canceling statement due to statement timeout") from QueryCanceled()

    monkeypatch.setattr(EventQuerySet, "summary", canceled)
    client = people.client(people.ann)
    job = client.post("/api/v2/jobs/", {"name": "x"}, format="json").json()["id"]
    answer = client.get(f"/api/v2/jobs/{job}/summary/?search=a")
    assert (answer.status_code, answer["Retry-After"]) == (503, "5")
    assert "ask for less" in answer.json()["detail"]


def test_a_team_is_not_told_of_to_others(people):
    client = people.client(people.carl)
    for team in (people.team.pk, 10**6):
        answers = [
            client.post(f"/api/v2/{path}/", {"name": "x", "team": f"0{team}", **more}, format="json").json()[
                "team"
            ]
            for path, more in (("jobs", {}), ("schedules", {"rrule": "FREQ=DAILY"}))
        ]
        assert answers == [[f'Invalid pk "0{team}" - object does not exist.']] * 2


def test_changes_that_are_told_of_are_counted(people, settings):
    settings.CARILLON = {**settings.CARILLON, "QUOTAS": {"events": (3, 1)}}
    client = people.client(people.ann)
    job = client.post("/api/v2/jobs/", {"name": "x"}, format="json").json()["id"]
    found = [
        client.patch(
            f"/api/v2/jobs/{job}/", {"status": ["waiting", "pending"][n % 2]}, format="json"
        ).status_code
        for n in range(4)
    ]
    assert found == [200, 200, 200, 429]
    schedule = people.client(people.ben)
    made = schedule.post("/api/v2/schedules/", {"name": "x", "rrule": "FREQ=DAILY"}, format="json").json()[
        "id"
    ]
    found = [
        schedule.patch(f"/api/v2/schedules/{made}/", {"name": f"{n}"}, format="json").status_code
        for n in range(4)
    ]
    assert found == [200, 200, 200, 429]


def test_tokens_that_are_made_are_counted(people, settings):
    settings.CARILLON = {**settings.CARILLON, "QUOTAS": {"tokens": (2, 1)}}
    client = people.client(people.ann)
    found = []
    for _ in range(3):
        found.append(client.post("/api/v2/tokens/", {}, format="json").status_code)
        ApiToken.objects.filter(user=people.ann).exclude(parent=None).update(expires=timezone.now())
    assert found == [201, 201, 429]


@pytest.mark.parametrize("body", ["[]", '["next"]', '"next"', "7", "null", '{"next": ["/"]}', '{"next": 7}'])
@pytest.mark.parametrize("path", ["/api/logout/", "/api/login/"])
def test_bodies_of_another_shape(people, path, body):
    browser = Browser()
    answer = browser.http.post(path, body, "application/json", headers={"X-CSRFToken": browser.csrf})
    assert answer.status_code == (302 if path == "/api/logout/" else 400)


@pytest.mark.parametrize(
    "path",
    [
        "/api/v2/jobs/?search=%00",
        "/api/v2/jobs/?order_by=%00",
        "/api/v2/jobs/?status=%00",
        "/api/v2/jobs/?owner=%00",
        "/api/v2/jobs/?page=%00",
        "/api/v2/connections/?group=%00",
        "/api/v2/connections/?group=job_events-%00",
    ],
)
def test_nul_in_a_query(people, path):
    assert people.client(people.ann).get(path).status_code in (200, 400, 403, 404)


def test_nul_in_a_cookie_and_a_token(people):
    client = Client()
    client.cookies["__Host-awx_sessionid"] = "a\0b"
    assert client.get("/api/v2/me/").status_code == 401
    assert client.get("/api/v2/me/", headers={"Authorization": "Bearer a\0b"}).status_code == 401


def test_a_foreign_host_is_no_news(people, caplog):
    answer = Client().get("/api/v2/ping/", headers={"Host": "evil.example"})
    assert answer.status_code == 400
    assert not [record for record in caplog.records if record.exc_info]
