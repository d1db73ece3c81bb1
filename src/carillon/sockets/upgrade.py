"""The answer to plain HTTP on the websocket's path: 426, and what is usually the reason. Pure."""

from __future__ import annotations

from typing import Any

PATHS = ("/websocket", "/websocket/")

STATUS = 426
HEADERS = {"Upgrade": "websocket", "Connection": "Upgrade"}


def body(upgrade: str | None) -> dict[str, Any]:
    """The JSON body, by what the request's `Upgrade` header was (None: there was none)."""
    if upgrade is None:
        missing = "Upgrade: websocket"
        what = "The request has no Upgrade header."
    else:
        missing = "Upgrade: websocket (it said something else)"
        what = "The request's Upgrade header does not ask for a websocket."
    return {
        "detail": f"This address speaks WebSocket only. {what}",
        "missing_header": missing,
        "hint": "A websocket client sends it. If yours did, a proxy between it and here took it off. "
        "For nginx: 'proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; "
        "proxy_set_header Connection upgrade;'. A load balancer must be told to allow websockets.",
    }
