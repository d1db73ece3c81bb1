"""docs/how-to/your-app.md, done: the example goes into a copy of the checkout, and `make dev` runs it."""

from __future__ import annotations

import json
import os
import urllib.error
from contextlib import ExitStack

import pytest
from playwright.sync_api import expect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from tests.infra.stack import wait
from tests.tls import for_threads

pytestmark = [
    pytest.mark.stack,
    pytest.mark.skipif("CARILLON_STACK_ENV" not in os.environ, reason="CARILLON_STACK_ENV names no stack"),
]
PREFIX = "/bells"


@pytest.fixture
def typing(stack, room):
    """typing(token) opens the example's consumer, with that credential or none."""
    with ExitStack() as opened:

        def open_one(token=None):
            host, port = stack.address()
            query = f"?token={token}" if token else ""
            url = f"wss://{host}:{port}/websocket/chat/{room}/typing/{query}"
            tls = for_threads(stack.tls())
            connection = connect(url, ssl=tls, proxy=None, open_timeout=30, close_timeout=2)
            return opened.enter_context(connection)

        yield open_one


def closed(connection):
    """The code that the server closes with."""
    with pytest.raises(ConnectionClosed) as error:
        connection.recv(15)
    return error.value.rcvd.code


def test_a_message_reaches_who_subscribed(stack, room):
    with stack.websocket() as listener:
        assert json.loads(listener.recv(10))["accept"] is True
        listener.send(json.dumps({"groups": {"rooms": [room, room + 1]}}))
        assert "access denied" in json.loads(listener.recv(10))["error"]  # no room of that number is ours
        assert json.loads(listener.recv(10))["groups_current"] == [f"rooms-{room}"]
        posted = stack.api(f"/api/chat/rooms/{room}/messages/", {"text": "the bells are up"})
        assert json.loads(listener.recv(10)) == {"group_name": "rooms", **posted}
    listed = stack.api(f"/api/chat/rooms/{room}/messages/")
    assert [each["text"] for each in listed["results"]] == ["the bells are up"]


def test_a_setting_of_the_teams_own(stack, room):
    with pytest.raises(urllib.error.HTTPError) as error:
        stack.api(f"/api/chat/rooms/{room}/messages/", {"text": "x" * 21})
    assert error.value.code == 400


def test_a_room_of_others_is_not_found(stack):
    with pytest.raises(urllib.error.HTTPError) as error:
        stack.api("/api/chat/rooms/999999/messages/")
    assert error.value.code == 404


def test_an_ordinary_consumer_on_the_layer(stack, typing):
    token = stack.values["CARILLON_TOKEN"]
    first, second = typing(token), typing(token)
    first.send("{}")
    assert json.loads(second.recv(10)) == json.loads(first.recv(10)) == {"typing": "admin"}


def test_who_presents_nothing_is_the_consumers_affair(typing):
    with pytest.raises(InvalidStatus) as error:
        typing()
    assert error.value.response.status_code == 403


def test_who_presents_something_wrong_is_refused(typing):
    assert closed(typing("wrong")) == 4401


def test_a_consumer_goes_with_its_token(stack, typing):
    made = stack.api("/api/v2/tokens/", {"description": "soon gone", "scope": "read"})
    connection = typing(made["token"])
    connection.send("{}")
    assert json.loads(connection.recv(10)) == {"typing": "admin"}
    stack.api(f"/api/v2/tokens/{made['id']}/", method="DELETE")
    assert closed(connection) == 4401


def test_addresses_below_a_prefix(stack):
    root = stack.api(f"{PREFIX}/api/")
    assert root["login"] == f"{PREFIX}/api/login/"
    made = stack.api(f"{PREFIX}/api/v2/jobs/", {"name": "below", "kind": "job"})
    assert made["url"] == f"{PREFIX}/api/v2/jobs/{made['id']}/"
    assert stack.api(made["url"])["name"] == "below"


def test_the_page_below_a_prefix(stack, open_page):
    """Assets, login, list and link: all of them go through the prefix alone."""
    watched = open_page(ignore_https_errors=True)
    page, values = watched.page, stack.values
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("websocket", lambda link: asked.append(link.url.replace("wss://", "https://")))
    watched.expect("401|403")  # the question who one is, before the login
    page.goto(f"{values['CARILLON_URL']}{PREFIX}/")
    page.get_by_label("Username").fill(values["CARILLON_USERNAME"])
    page.get_by_label("Password").fill(values["CARILLON_PASSWORD"])
    page.get_by_role("button", name="Log in").click()
    expect(page.locator("#link-words")).to_have_text("Connected")
    stack.api("/api/v2/jobs/", {"name": "seen below", "kind": "job"})
    expect(page.get_by_text("seen below")).to_be_visible()
    outside = [url for url in asked if not url.startswith(f"{values['CARILLON_URL']}{PREFIX}/")]
    assert not outside
    assert any(url.endswith(f"{PREFIX}/websocket/") for url in asked)


def test_saved_code_runs(stack):
    """The reloader watches the team's folder as it watches Carillon's."""
    views = stack.state.parent / "src" / "chat" / "views.py"
    views.write_text(views.read_text().replace('"name", "members")', '"name")'))
    wait(
        "the API runs what was saved",
        lambda: all("members" not in room for room in stack.api("/api/chat/rooms/")["results"]),
        60,
    )
