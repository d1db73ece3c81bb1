"""Server-Sent Events, without a server: who is given no stream, and why."""

from __future__ import annotations

import json

import pytest
from asgiref.testing import ApplicationCommunicator
from channels.db import database_sync_to_async
from django.db import OperationalError

from carillon.sockets import protocol
from carillon.sockets.application import application
from carillon.sockets.sockets import Sockets
from carillon.sockets.sse import SseSession

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
async def ask():
    """A stream that is asked for: what its client is sent, once it has begun."""
    asked = []

    async def ask(
        token: str, groups: str = "schedules:changed", accept: str = "*/*"
    ) -> ApplicationCommunicator:
        scope = {
            "type": "http",
            "path": "/events/",
            "method": "GET",
            "headers": [(b"authorization", f"Bearer {token}".encode()), (b"accept", accept.encode())],
            "query_string": f"groups={groups}".encode(),
            "client": ["192.0.2.7", 1234],
        }
        client = ApplicationCommunicator(application, scope)
        asked.append(client)
        await client.send_input({"type": "http.request", "body": b""})
        client.start = await client.receive_output(5)
        client.headers = {name.decode(): value.decode() for name, value in client.start["headers"]}
        return client

    yield ask
    for client in asked:
        await leave(client)


async def leave(client: ApplicationCommunicator) -> None:
    if not client.future.done():
        await client.send_input({"type": "http.disconnect"})
        await client.wait(5)


async def test_streams_are_sockets_of_their_user(people, settings, ask):
    settings.CARILLON = {**settings.CARILLON, "SOCKETS_PER_USER": 1}
    token = await database_sync_to_async(people.token)(people.ann)
    first = await ask(token)
    assert first.start["status"] == 200
    refused = await ask(token)
    assert (refused.start["status"], refused.headers["retry-after"]) == (429, "30")
    detail = json.loads((await refused.receive_output(5))["body"])["detail"]
    assert detail == "too many sockets of this user: 1 at a time are allowed"
    # A browser's EventSource asks again after a 200 alone.
    later = await ask(token, accept="text/event-stream")
    assert later.start["status"] == 200
    said = await later.receive_output(5)
    error = json.dumps({"error": detail})
    assert said == {
        "type": "http.response.body",
        "body": f"retry: 30000\nevent: error_message\ndata: {error}\n\n".encode(),
    }
    await leave(first)
    assert (await ask(token)).start["status"] == 200


async def test_a_wrong_token_is_the_end_of_an_event_source(people, ask):
    assert (await ask("wrong", accept="text/event-stream")).start["status"] == 401


@pytest.mark.parametrize(("accept", "status"), [("*/*", 503), ("text/event-stream", 200)])
async def test_while_the_database_is_away(people, ask, monkeypatch, accept, status):
    async def authenticate(self, handshake):
        raise OperationalError("away")

    monkeypatch.setattr(Sockets, "authenticate", authenticate)
    client = await ask("any", accept=accept)
    assert client.start["status"] == status
    body = (await client.receive_output(5))["body"].decode()
    assert "The server cannot reach its database or broker: try again later." in body
    assert body.startswith("retry: 5000\n") == (status == 200)


async def test_a_subscription_that_is_refused_ends_the_stream_in_words(people, monkeypatch, ask, caplog):
    async def refuse(self, wanted):
        raise protocol.Refusal("invalid message: too many groups")

    monkeypatch.setattr(SseSession, "_subscribe", refuse)
    client = await ask(await database_sync_to_async(people.token)(people.ann))
    said = b""
    while (message := await client.receive_output(5)).get("more_body"):
        said += message["body"]
    assert b'event: error_message\ndata: {"error": "invalid message: too many groups"}' in said
    assert "A socket fails" not in caplog.text
