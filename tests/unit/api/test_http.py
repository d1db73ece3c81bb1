"""Plain HTTP on the websocket's path, errors, migrations and the schema."""

from __future__ import annotations

import json
from io import StringIO

import pytest
from asgiref.testing import ApplicationCommunicator
from django.core.management import call_command
from django.urls import clear_script_prefix, set_script_prefix

from carillon.api.static_storage import HashedStorage
from carillon.sockets.application import application


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


@pytest.fixture
def below_bells():
    """What Django's WSGI handler does with SCRIPT_NAME, which nginx gives; the test client does not."""
    set_script_prefix("/bells/")
    yield
    clear_script_prefix()


def test_addresses_below_a_prefix(people, below_bells):
    client = people.client(people.ann)
    below = {"SCRIPT_NAME": "/bells"}
    made = client.post("/api/v2/jobs/", {"name": "ring"}, format="json", **below).json()
    assert made["url"] == f"/bells/api/v2/jobs/{made['id']}/"
    assert made["related"]["events"] == f"/bells/api/v2/jobs/{made['id']}/events/"
    root = client.get("/api/", **below).json()
    assert root["current_version"] == "/bells/api/v2/"
    assert root["login"] == "/bells/api/login/"
    assert root["websocket"] == "/bells/websocket/"
    client.post("/api/v2/jobs/", {"name": "two"}, format="json", **below)
    listed = client.get("/api/v2/jobs/?page_size=1", **below)
    assert "/bells/api/v2/jobs/?page=2" in listed.json()["next"]
    assert client.get("/api/login/", **below)["Location"] == "/bells/"
    assert client.get("/api/none/", **below).json()["detail"].startswith("Not found")


def test_assets_below_a_prefix(below_bells):
    assert HashedStorage().base_url == "/bells/static/"


def test_assets_without_one():
    assert HashedStorage().base_url == "/static/"
