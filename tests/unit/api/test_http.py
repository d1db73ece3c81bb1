"""Plain HTTP on the websocket's path, errors, migrations and the schema."""

from __future__ import annotations

import json
import re
from io import StringIO

import pytest
from asgiref.testing import ApplicationCommunicator
from django import urls
from django.core.management import call_command
from django.test import Client
from django.urls import clear_script_prefix, clear_url_caches, set_script_prefix

from carillon import urls as carillon_urls
from carillon.api.static_storage import HashedStorage
from carillon.sockets.application import application

INTERNAL = {"detail": "Internal error: the server's log has the details."}


async def http(where: str, headers=()) -> tuple[int, dict[str, str], dict]:
    scope = {"type": "http", "method": "GET", "path": where, "headers": list(headers), "query_string": b""}
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


def test_not_found_is_a_page_for_browsers(client):
    answer = client.get("/<b>nonsense", headers={"Accept": "text/html,*/*;q=0.8"})
    assert answer.status_code == 404
    assert answer["Content-Type"].startswith("text/html")
    page = answer.content.decode()
    assert "/&lt;b&gt;nonsense" in page
    assert not [word for word in ("style=", "<style", "<script") if word in page], "the CSP allows none"
    assert 'href="/static/carillon/error.css"' in page
    for program in ("*/*", "application/json"):
        assert client.get("/nonsense", headers={"Accept": program})["Content-Type"].startswith("text/plain")


@pytest.fixture
def fails(settings, monkeypatch):
    """fails(host, accept) is the answer of a view that raises."""

    def view(request):
        raise RuntimeError("the clapper is off")

    monkeypatch.setattr(carillon_urls, "urlpatterns", [urls.path("fails/", view)])
    settings.ROOT_URLCONF = "carillon.urls"
    clear_url_caches()

    def fails(host="localhost", accept="text/html,*/*;q=0.8"):
        client = Client(raise_request_exception=False)
        return client.get("/fails/", headers={"host": host, "accept": accept})

    yield fails
    clear_url_caches()


def test_in_development_a_browser_of_this_machine_has_the_debug_page(fails, settings):
    settings.CARILLON = {**settings.CARILLON, "DEBUG_PAGE": True}
    answer = fails()
    page = answer.content.decode()
    assert answer.status_code == 500
    assert "the clapper is off" in page
    assert "Traceback" in page
    assert settings.SECRET_KEY not in page
    assert "'unsafe-inline'" in answer["Content-Security-Policy"]


@pytest.mark.parametrize(
    ("host", "accept"),
    [("carillon.test", "text/html"), ("localhost", "*/*"), ("localhost", "application/json")],
)
def test_nobody_else_has_it(fails, settings, host, accept):
    """What comes by another name comes from elsewhere; programs have JSON."""
    settings.CARILLON = {**settings.CARILLON, "DEBUG_PAGE": True}
    answer = fails(host, accept)
    assert (answer.status_code, answer.json()) == (500, INTERNAL)


def test_production_has_none(fails):
    assert fails().json() == INTERNAL


def test_the_index_names_every_route_that_needs_no_id(client):
    index = client.get(client.get("/api/").json()["current_version"]).json()
    paths = client.get("/api/v2/schema/").json()["paths"]
    expected = {path for path in paths if "{" not in path and path.startswith("/api/v2/")} - {"/api/v2/"}
    assert set(index.values()) == expected | {"/api/v2/schema/", "/api/v2/docs/"}
    assert index["jobs"] == "/api/v2/jobs/"
    assert client.get("/api/").json()["schema"] == "/api/v2/schema/"


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


def test_the_schema_has_the_shape_of_every_error(client):
    schema = client.get("/api/v2/schema/").json()
    assert {"Error", "FieldErrors"} <= schema["components"]["schemas"].keys()

    def errors(path, method):
        responses = schema["paths"][path][method]["responses"]
        for status, response in responses.items():
            if status in {"400", "401", "403", "404", "429"}:
                assert response["description"], (path, method, status)
                assert "Error" in json.dumps(response["content"]["application/json"]["schema"])
        return {status for status in responses if status.startswith("4")}

    assert errors("/api/v2/jobs/", "get") == {"400", "401", "403", "404", "429"}
    assert errors("/api/v2/jobs/{id}/", "patch") == {"400", "401", "403", "404", "409", "429"}
    assert errors("/api/v2/tokens/{id}/", "delete") == {"401", "403", "404", "429"}
    assert errors("/api/login/", "post") == {"400", "401", "403", "429"}
    assert errors("/api/logout/", "post") == {"403", "429"}
    assert errors("/api/v2/ping/", "get") == {"429"}
    for path, operations in schema["paths"].items():
        for method in operations:
            errors(path, method)


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


def test_the_page_of_the_rest_api_has_no_script_and_no_style_of_its_own(client):
    """The Content-Security-Policy lets neither run; the script comes by itself."""
    page = client.get("/api/v2/docs/", headers={"accept": "text/html"})
    assert page.status_code == 200
    text = page.content.decode()
    assert "<style" not in text
    scripts = re.findall(r"<script([^>]*)>(.*?)</script>", text, re.DOTALL)
    assert all("src=" in attributes and not body for attributes, body in scripts)
    sources = re.findall(r'(?:src|href)="([^"]+)"', text)
    assert all(source.startswith("/") for source in sources), sources
    script = client.get(next(source for source in sources if "script" in source.partition("?")[2]))
    assert script["content-type"].startswith("application/javascript")
    assert "/api/v2/schema/" in script.content.decode()
