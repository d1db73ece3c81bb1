"""A Carillon of one's own on loopback, in the test's loop: socket and REST on one port, unruly at will."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from collections import deque
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, urlsplit

from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

TOKEN = "stub-token"
FAMILIES = ("jobs", "schedules", "job_events", "control")
Script = Callable[["StubCarillon", ServerConnection], Coroutine[Any, Any, None]]


class StubCarillon:
    """
    `scripts` are played one per connection, after the subscription; when they are used up, a connection just
    stays. `first_frames` replace the welcome, `first_closes` are the codes of closes behind them (1006: the
    connection breaks), `statuses` replace the answer to handshakes, one each. `api_status` is that of all
    answers by REST, `page_statuses` of those about events, one each.
    """

    def __init__(self) -> None:
        self.url = ""
        self.scripts: deque[Script] = deque()
        self.first_frames: deque[str | bytes] = deque()
        self.first_closes: deque[int] = deque()
        self.statuses: deque[int] = deque()
        self.job: dict[str, Any] = {}
        self.events: list[dict[str, Any]] = []
        self.api_status = 200
        self.page_statuses: deque[int] = deque()
        self.rejected = ""
        self.requests: list[str] = []
        self.subscriptions: list[dict[str, list[Any]]] = []
        self.connections: set[ServerConnection] = set()
        self.changed = asyncio.Condition()

    async def __aenter__(self) -> StubCarillon:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stop()

    async def start(self, port: int = 0, context: ssl.SSLContext | None = None) -> None:
        self._server = await serve(
            self._serve, "127.0.0.1", port, process_request=self._answer, ssl=context, close_timeout=0.1
        )
        port = next(iter(self._server.sockets)).getsockname()[1]
        self.url = f"{'https' if context else 'http'}://localhost:{port}"
        self.port = port

    async def stop(self) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def send(self, payload: dict[str, Any]) -> None:
        """To everybody who is connected."""
        for connection in tuple(self.connections):
            await connection.send(json.dumps(payload))

    async def until(self, predicate: Callable[[], Any], seconds: float = 10) -> None:
        async with asyncio.timeout(seconds), self.changed:
            await self.changed.wait_for(predicate)

    async def _notify(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def _answer(self, connection: ServerConnection, request: Request) -> Response | None:
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.requests.append(f"{request.path} without the token")
        path = urlsplit(request.path)
        if path.path == "/websocket/":
            if self.statuses:
                return connection.respond(HTTPStatus(self.statuses.popleft()), '{"detail": "as told"}')
            return None
        self.requests.append(request.path)
        await self._notify()
        return self._rest(path.path, parse_qs(path.query))

    def _rest(self, path: str, query: dict[str, list[str]]) -> Response:
        if self.api_status != 200:
            return _json(self.api_status, {"detail": "as told"})
        if path == f"/api/v2/jobs/{self.job.get('id')}/":
            return _json(200, self.job)
        if re.fullmatch(r"/api/v2/jobs/\d+/events/", path):
            if self.page_statuses and (page_status := self.page_statuses.popleft()) != 200:
                return _json(page_status, {"detail": "as told"})
            size = int(query["page_size"][0])
            after = int(query.get("counter__gt", ["0"])[0])
            to = int(query.get("counter__lte", ["999999"])[0])
            search = query.get("search", [""])[0].lower()
            found = [
                event for event in self.events if after < event["counter"] <= to and search in event["stdout"]
            ]
            if "order_by" in query:
                found.reverse()
            return _json(
                200,
                {"count": len(found), "next": "more" if len(found) > size else None, "results": found[:size]},
            )
        return _json(404, {"detail": "Not found."})

    async def _serve(self, connection: ServerConnection) -> None:
        first = self.first_frames.popleft() if self.first_frames else '{"accept": true, "user": 7}'
        await connection.send(first)
        if self.first_closes:
            code = self.first_closes.popleft()
            if code == 1006:
                connection.transport.abort()
            else:
                await connection.close(code)
            return
        self.connections.add(connection)
        script = None
        try:
            async for message in connection:
                await self._subscribe(connection, json.loads(message)["groups"])
                if script is None:
                    play = self.scripts.popleft() if self.scripts else None
                    script = asyncio.create_task(play(self, connection) if play else asyncio.sleep(0))
        finally:
            self.connections.discard(connection)
            await self._notify()

    async def _subscribe(self, connection: ServerConnection, groups: dict[str, list[Any]]) -> None:
        if self.rejected:
            await connection.send(json.dumps({"error": self.rejected}))
            return
        names = []
        for family, keys in groups.items():
            if family not in FAMILIES:
                await connection.send(json.dumps({"error": f"unknown channel {family}"}))
                continue
            for key in keys:
                if key == "forbidden":
                    error = f"access denied to channel {family} for resource id {key}"
                    await connection.send(json.dumps({"error": error}))
                else:
                    names.append(f"{family}-{key}")
        answer = {"groups_current": sorted(names), "groups_left": [], "groups_joined": sorted(names)}
        self.subscriptions.append(groups)
        await connection.send(json.dumps(answer))
        await self._notify()


def _json(status: int, value: Any) -> Response:
    body = json.dumps(value).encode()
    headers = Headers(
        {"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"}
    )
    return Response(status, HTTPStatus(status).phrase, headers, body)


def say(*payloads: dict[str, Any] | str | bytes) -> Script:
    """A script that sends these frames."""

    async def play(stub: StubCarillon, connection: ServerConnection) -> None:
        for payload in payloads:
            await connection.send(json.dumps(payload) if isinstance(payload, dict) else payload)

    return play


def say_and_close(code: int, *payloads: dict[str, Any]) -> Script:
    async def play(stub: StubCarillon, connection: ServerConnection) -> None:
        await say(*payloads)(stub, connection)
        await connection.close(code)

    return play


def say_and_break(*payloads: dict[str, Any]) -> Script:
    """Sends, and tears the connection down without a goodbye."""

    async def play(stub: StubCarillon, connection: ServerConnection) -> None:
        await say(*payloads)(stub, connection)
        await connection.ping()
        connection.transport.abort()

    return play


def status(job: int, word: str) -> dict[str, Any]:
    return {"group_name": "jobs", "unified_job_id": job, "status": word, "type": "job"}


def job_event(counter: int, stdout: str = "", lines: int | None = None, **more: Any) -> dict[str, Any]:
    lines = (stdout.count("\n") + 1 if stdout else 0) if lines is None else lines
    event = {"group_name": "job_events", "job": 42, "counter": counter, "event": "verbose", "stdout": stdout}
    return {**event, "start_line": counter * 100, "end_line": counter * 100 + lines, "event_data": {}, **more}
