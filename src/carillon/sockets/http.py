"""The project's own HTTP that daphne serves, below the `http_prefixes` of its carillon.toml: HTTP consumers
of Channels, by `http_urlpatterns` beside its `websocket_urlpatterns`, and for every other path Django, whose
async views run here as they are.

An HTTP consumer finds `scope["user"]` and `scope["session"]` as a websocket's does, and who presents
something wrong is refused likewise. What Django serves has Django's own middleware.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import cache
from importlib import import_module
from typing import Any

from asgiref.sync import ThreadSensitiveContext, sync_to_async
from channels.routing import URLRouter
from django.core.handlers.asgi import ASGIHandler
from django.db import Error, connections
from django.urls import URLPattern, re_path

from carillon import text
from carillon.accounts import sessions
from carillon.conf import conf
from carillon.process import launcher
from carillon.sockets import authentication, protocol
from carillon.sockets.asgi_outlet import room
from carillon.sockets.consumers import share_a_thread
from carillon.sockets.session import count_refusal
from carillon.sockets.sockets import sockets

AGAIN = 30  # seconds, of Retry-After: something else has to end first, and nobody knows when
AWAY = {"detail": "The server cannot reach its database or broker: try again later."}

logger = logging.getLogger(__name__)

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


class Stuck(OSError):
    """A reader takes nothing. To an application it is what a server says of one who is gone."""


@cache
def prefixes() -> tuple[str, ...]:
    """The paths that are the project's."""
    return launcher.declared().http_prefixes


async def answer(send: Send, status: int, body: dict[str, Any], headers: Mapping[str, str] = {}) -> None:
    """JSON, whole."""
    data = json.dumps(body).encode()
    said = {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}
    lines = [(name.lower().encode(), value.encode()) for name, value in said.items()]
    await send({"type": "http.response.start", "status": status, "headers": lines})
    await send({"type": "http.response.body", "body": data})


async def refuse(send: Send, refused: authentication.Refused) -> None:
    """In words and a status, as a websocket would in words and a code."""
    status = {protocol.FORBIDDEN_ORIGIN: 403, protocol.TRY_LATER: 429}.get(refused.code, 401)
    if isinstance(refused, authentication.IssuerAway):
        status = 503
    headers = {"Retry-After": str(AGAIN)} if status == 429 else {}
    await answer(send, status, {"detail": refused.reason}, headers)


class Known:
    """An HTTP consumer, or a router of them, for whoever asks: `scope["user"]` and `scope["session"]`."""

    def __init__(self, application: Application) -> None:
        self._application = application
        self._path_routing = getattr(application, "_path_routing", False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            identity = await sockets().authenticate(authentication.Handshake(scope))
        except authentication.NoCredentials:
            identity = authentication.anonymous()
        except authentication.Refused as refused:
            count_refusal(refused)
            await refuse(send, refused)
            return
        except (Error, TimeoutError) as error:
            count_refusal(error)
            await answer(send, 503, AWAY)
            return
        session = sessions.store()(identity.session_key)
        await share_a_thread()
        await self._application({**scope, "user": identity.user, "session": session}, receive, send)


async def serve(scope: Scope, receive: Receive, send: Send) -> None:
    """The ASGI application of what is below `prefixes()`. What it sends to a slow reader waits for him; one
    who takes nothing is given up, and its answer is cut."""
    waiting = scope.get("carillon.buffered", lambda: 0)

    async def patient(message: dict[str, Any]) -> None:
        await send(message)
        try:
            await room(waiting, conf.SOCKET_BUFFER_BYTES)
        except TimeoutError:
            raise Stuck from None

    try:
        await _routes(conf.WEBSOCKET_URLCONF)(scope, receive, patient)
    except Stuck:
        logger.info("A reader of %s takes nothing: given up", scope["path"])


@cache
def _routes(urlconf: str | None) -> URLRouter:
    patterns = getattr(import_module(urlconf), "http_urlpatterns", ()) if urlconf else ()
    known = [URLPattern(each.pattern, Known(each.callback), each.default_args) for each in patterns]
    return URLRouter([*known, re_path("", Django())])


class Django:
    """Django, for so many requests at a time: each has a thread for the synchronous code in it and around it,
    until its answer is through, and the process needs some itself.
    """

    def __init__(self) -> None:
        self._handler = ASGIHandler()
        self._open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        said = b",".join(value for name, value in scope["headers"] if name == b"content-type")  # as Django
        if not text.is_fit(said.decode("latin1")):
            await answer(send, 415, text.REFUSED)
            return
        if self._open >= conf.HTTP_REQUESTS:
            detail = f"This process serves {self._open} requests already: try again later."
            await answer(send, 503, {"detail": detail}, {"Retry-After": "5"})
            return

        async def reply(message: dict[str, Any]) -> None:
            # A stream may last for hours: it holds no connection that it has stopped to use.
            if message["type"] == "http.response.start":
                await _let_go()
            await send(message)

        self._open += 1
        try:
            async with ThreadSensitiveContext():
                try:
                    await self._handler(scope, receive, reply)
                finally:
                    await _let_go()
        finally:
            self._open -= 1


async def _let_go() -> None:
    """Of the database, in the thread of the request: that ends with it, and nobody would use them again.
    PostgreSQL has fewer connections than there may be requests."""
    await sync_to_async(connections.close_all)()
