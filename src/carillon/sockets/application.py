"""The ASGI application: the websocket on its path, the project's own consumers on all others that its routing
has, and the project's own HTTP where it declares some. Other HTTP gets a hint; the rest is turned away."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from carillon import logs
from carillon.sockets import consumers, http, session, sse, upgrade

NOT_FOUND = {"detail": "Not found here: there is a websocket at /websocket/ and a stream at /events/."}


async def application(
    scope: Mapping[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    """The ASGI application. What it logs names the request."""
    named = (value for name, value in scope.get("headers", ()) if name.lower() == b"x-request-id")
    with logs.about(next(named, b"").decode("latin1"), ""):
        await _serve(scope, receive, send)


async def _serve(
    scope: Mapping[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    if scope["type"] == "websocket":
        if scope["path"] in upgrade.PATHS:
            await session.serve(scope, receive, send)
        else:
            await consumers.serve(scope, receive, send)
    elif scope["type"] == "http":
        if scope["path"] in sse.PATHS and scope["method"] == "GET":
            await sse.serve(scope, receive, send)
        elif scope["path"].removeprefix(scope.get("root_path", "")).startswith(http.prefixes()):
            await http.serve(scope, receive, send)
        else:
            await _plain_http(scope, send)
    else:
        raise ValueError(f"this application serves no {scope['type']!r}")


async def _plain_http(scope: Mapping[str, Any], send: Callable[[dict[str, Any]], Awaitable[None]]) -> None:
    if scope["path"] in upgrade.PATHS or scope["path"].startswith(consumers.PREFIX):
        said = next(
            (value.decode("latin1") for name, value in scope["headers"] if name.lower() == b"upgrade"), None
        )
        await http.answer(send, upgrade.STATUS, upgrade.body(said), upgrade.HEADERS)
    else:
        await http.answer(send, 404, NOT_FOUND)
