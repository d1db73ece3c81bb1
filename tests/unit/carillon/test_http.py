"""Plain HTTP on the websocket's path, errors, migrations and the schema."""

from __future__ import annotations

import json
from io import StringIO

import pytest
from asgiref.testing import ApplicationCommunicator
from django.core.management import call_command

from carillon.websocket.application import application


async def http(path: str, headers=()) -> tuple[int, dict[str, str], dict]:
    scope = {"type": "http", "method": "GET", "path": path, "headers": list(headers), "query_string": b""}
    communicator = ApplicationCommunicator(application, scope)
    start, body = await communicator.receive_output(), await communicator.receive_output()
    return (
        start["status"],
        {name.decode(): value.decode() for name, value in start["headers"]},
        json.loads(body["body"]),
    )


@pytest.mark.parametrize("path", ["/websocket", "/websocket/", "/websocket/yours/"])
async def test_daphne_says_426(path):
    status, headers, body = await http(path)
    assert status == 426
    assert headers["upgrade"] == "websocket"
    assert headers["content-type"] == "application/json"
    assert body["missing_header"] == "Upgrade: websocket"
    assert "proxy" in body["hint"]


async def test_daphne_says_what_else_was_asked_for():
    _, _, body = await http("/websocket/", [(b"upgrade", b"h2c")])
    assert "does not ask for a websocket" in body["detail"]


@pytest.mark.parametrize("path", ["/", "/api/", "/websocketfoo"])
async def test_daphne_serves_nothing_else(path):
    assert (await http(path))[0] == 404


@pytest.mark.parametrize("path", ["/websocket", "/websocket/"])
@pytest.mark.parametrize("method", ["get", "post"])
def test_uwsgi_says_426(client, path, method):
    answer = getattr(client, method)(path)
    assert answer.status_code == 426
    assert answer["Upgrade"] == "websocket"
    assert answer.json()["missing_header"] == "Upgrade: websocket"
    assert "Connection" not in answer


def test_not_found_is_json_for_programs(client):
    assert "schema" in client.get("/api/v2/nonsense/").json()["detail"]
    assert client.get("/nonsense").status_code == 404
    assert client.get("/websocketfoo").status_code == 404


@pytest.mark.django_db
def test_the_migrations_are_whole():
    call_command("makemigrations", "--check", "--dry-run", stdout=StringIO())


@pytest.mark.django_db
def test_the_schema(client):
    schema = client.get("/api/v2/schema/").json()
    assert {"/api/v2/jobs/{id}/events/", "/api/v2/notifications/", "/api/v2/connections/"} <= schema[
        "paths"
    ].keys()
    assert "bearer" in schema["components"]["securitySchemes"]
