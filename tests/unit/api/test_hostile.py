"""Requests that no client of ours makes: each is told what is wrong with it."""

import pytest
from django.test import Client

from carillon.api.parsers import DEEPEST, _deeper_than
from tests.unit.accounts.test_accounts import Browser

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
    assert not _deeper_than(value, DEEPEST)
    assert _deeper_than([value], DEEPEST)
    assert not _deeper_than("leaf", DEEPEST)


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
