"""Server-Sent Events at `/events/`: the same events, positions and rules as version 2, over plain HTTP.

    GET /events/?groups=jobs:status_changed,summary;job_events:42&since=<epoch>:<number>

for clients behind proxies that break websockets, and for `curl -N`. Credentials as for the websocket. The id
of an event is its position, so a browser's EventSource resumes by itself: `Last-Event-ID` counts before
`since`. Besides the groups, named events tell what version 2 tells: `recovered`, `unrecovered` (with a
reason: fetch the state anew), `groups` and `error`. The stream ends when the login does.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import parse_qs

from django.db import Error

from carillon.conf import conf
from carillon.fanout.forms import Sse
from carillon.fanout.station import StreamUnavailable
from carillon.sockets import authentication, http, protocol
from carillon.sockets.asgi_outlet import AsgiOutlet
from carillon.sockets.session import Close, Gone, Session, allowed_limits, count_refusal
from carillon.sockets.sockets import sockets

logger = logging.getLogger(__name__)

PATHS = ("/events", "/events/")

Message = dict[str, Any]

AWAY_SECONDS = 5  # until an EventSource asks again, where database or broker are away

START: Message = {
    "type": "http.response.start",
    "status": 200,
    "headers": [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-store"),
        (b"x-accel-buffering", b"no"),
    ],
}


class BadRequest(Exception):
    """The query asks for something that cannot be."""


def parse_query(query: bytes, last_event_id: str) -> protocol.Subscribe:
    """`groups` and `since` of the query, checked as a `groups` message is. Raises BadRequest."""
    try:
        fields = parse_qs(query.decode("latin1"), max_num_fields=50)
    except ValueError:
        raise BadRequest("too many fields in the URL's query") from None
    groups: dict[str, list[str]] = {}
    for part in ";".join(fields.get("groups", [])).split(";"):
        family, _, keys = part.partition(":")
        if family:
            groups.setdefault(family, []).extend(key for key in keys.split(",") if key)
    message: dict[str, Any] = {"groups": groups}
    since = last_event_id or (fields.get("since") or [""])[-1]
    if since:
        message["since"] = since
    try:
        wanted = protocol.parse(json.dumps(message), allowed_limits(), None, version=2)
    except protocol.Refusal as refusal:
        raise BadRequest(refusal.error) from None
    if not isinstance(wanted, protocol.Subscribe) or not wanted.groups:
        raise BadRequest("name what to hear: ?groups=<family>:<key>,<key>;<family>:<key>")
    return wanted


class SseSession(Session):
    """A socket whose frames are Server-Sent Events, and whose one message is its URL."""

    kind = "sse"

    def __init__(self, scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        super().__init__({**scope, "subprotocols": [protocol.VERSION_2]}, receive, send, allowed_limits())
        self.outlet, self.direct = None, False
        self._buffered = scope.get("carillon.buffered", lambda: 0)
        self._query = scope.get("query_string", b"")
        headers = {name.lower(): value.decode("latin1") for name, value in scope["headers"]}
        self._last_event_id = headers.get(b"last-event-id", "")
        self._is_event_source = "text/event-stream" in headers.get(b"accept", "")

    async def _serve(self) -> None:
        try:
            wanted = parse_query(self._query, self._last_event_id)
        except BadRequest as wrong:
            await http.answer(self.send, 400, {"detail": str(wrong)})
            return
        here = sockets()
        before = here.rights.changes
        try:
            self.identity = await here.authenticate(self.handshake)
            await here.station.ready(conf.LOGIN_SECONDS)
            here.admit(self.identity)
        except authentication.Refused as refused:
            count_refusal(refused)
            if self._is_event_source and refused.code == protocol.TRY_LATER:
                await self._later(http.AGAIN, refused.reason)
            else:
                await http.refuse(self.send, refused)
            return
        except (Error, StreamUnavailable, TimeoutError) as error:
            count_refusal(error)
            await self._unavailable(http.AWAY["detail"])
            return
        await self.send(START)
        self.outlet = AsgiOutlet(
            Sse,
            self.send,
            lambda data: {"type": "http.response.body", "body": data, "more_body": True},
            budget=conf.SOCKET_BUFFER_BYTES,
            buffered=self._buffered,
        )
        self._arrive(before)
        self._watch()
        at = str(here.station.position)
        # Cut before its first event, an EventSource resumes from here; one that resumes keeps its own place.
        self._say("accept", {"user": self.identity.user.pk, "position": at}, "" if wanted.since else at)
        try:
            await self._subscribe(wanted)
        except protocol.Refusal as refusal:
            raise Close(protocol.TRY_LATER, refusal.error) from None
        await self._until_gone()

    async def _unavailable(self, why: str) -> None:
        if self._is_event_source:
            await self._later(AWAY_SECONDS, why)
        else:
            await http.answer(self.send, 503, {"detail": why})

    async def _later(self, seconds: int, why: str) -> None:
        """An EventSource asks again after a 200 alone, and gives up for good after any other answer."""
        said = f"retry: {seconds * 1000}\nevent: error_message\ndata: {json.dumps({'error': why})}\n\n"
        await self.send(START)
        await self.send({"type": "http.response.body", "body": said.encode()})

    async def _until_gone(self) -> None:
        while True:
            try:
                async with asyncio.timeout(conf.SSE_COMMENT_SECONDS):
                    if (await self.receive())["type"] == "http.disconnect":
                        raise Gone
            except TimeoutError:
                # An id without data moves Last-Event-ID on: a quiet stream does not grow old. While it is
                # behind, or held, there is more to come from before.
                at = f"id: {sockets().station.position}\n" if self.outlet.live else ""
                self.outlet.put(f"{at}: still here\n\n".encode())

    def _text(self, text: str) -> None:
        frame = json.loads(text)
        if "recovered" in frame:
            self._say("recovered" if frame.pop("recovered") else "unrecovered", frame, frame["position"])
        elif "error" in frame:
            self._say("error_message", frame)
        else:
            self._say("groups", frame)

    def _say(self, event: str, data: dict[str, Any], at: str = "") -> None:
        prefix = f"id: {at}\n" if at else ""
        self.outlet.put(f"{prefix}event: {event}\ndata: {json.dumps(data)}\n\n".encode())

    async def _close(self, close: Close) -> None:
        self._ending = close
        if self.outlet is None:
            await self._unavailable("try again later")
            return
        if close.error is not None:
            self._say("error_message", {"error": close.error})
        await self._end_response()

    async def _goodbye(self) -> None:
        await self._end_response()

    async def _end_response(self) -> None:
        if self.outlet is not None:
            try:
                async with asyncio.timeout(2):
                    await self.outlet.flush()
            except TimeoutError:
                pass
            await self.send({"type": "http.response.body", "body": b"", "more_body": False})


async def serve(
    scope: Mapping[str, Any],
    receive: Callable[[], Awaitable[Message]],
    send: Callable[[Message], Awaitable[None]],
) -> None:
    """The ASGI application of `/events/`."""
    await SseSession(scope, receive, send).run()
