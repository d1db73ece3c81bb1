"""`carillon check --url …`: one event all the way, as a client sees it.

Emitted here, and heard at the public address: through the broker, runworker, the stream, daphne and nginx,
with its certificate. Only a user made for this may hear it, so no client of a running installation notices.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from carillon.process.launcher import NotReady

GROUP = ("connections", "changed")
SECONDS = 15.0

Emit = Callable[[str, dict[str, Any], int], Awaitable[None]]
"""`emit(group, payload, user)`: an event for one user alone. Raises `NotReady`."""


def event(
    url: str, user: int, token: str, emit: Emit, *, address: str | None = None, ca: str | None = None
) -> str:
    """
    One line that says how long it took. `user` has `token`, and is told of what `emit` emits.

    `address`: where to connect to instead of what the name in `url` resolves to; the certificate must still
    be that name's. `ca`: authorities as PEM text to verify it with, instead of the machine's own.

    Raises `NotReady` with the hop that failed.
    """
    taken = asyncio.run(_hear(url, token, user, emit, address, ca))
    return f"{url}: an event came back in {1000 * taken:.0f} ms"


async def _hear(url: str, token: str, user: int, emit: Emit, address: str | None, ca: str | None) -> float:
    from websockets.asyncio.client import connect
    from websockets.exceptions import WebSocketException

    try:
        context = ssl.create_default_context(cadata=ca) if url.startswith("https:") else None
    except ssl.SSLError as error:
        raise NotReady(f"the authorities given are no PEM certificates: {error}") from None
    where = f"ws{url.removeprefix('http').rstrip('/')}/websocket/"
    override = {"host": address} if address else {}
    headers = {"Authorization": f"Bearer {token}"}
    step = f"{url} cannot be reached"
    try:
        async with (
            asyncio.timeout(SECONDS),
            connect(where, ssl=context, additional_headers=headers, proxy=None, **override) as socket,
        ):
            step = "the websocket says nothing: is daphne well?"
            accepted = json.loads(await socket.recv())
            if not accepted.get("accept"):
                raise NotReady(f"the websocket refuses: {accepted.get('error')}")
            await socket.send(json.dumps({"groups": {GROUP[0]: [GROUP[1]]}}))
            answer = json.loads(await socket.recv())
            if "groups_current" not in answer:
                raise NotReady(f"the subscription is refused: {answer.get('error')}")
            mark, start = uuid.uuid4().hex, time.monotonic()
            step = "the broker does not take the event"
            await emit("-".join(GROUP), {"group_name": GROUP[0], "check": mark}, user)
            step = "the event was taken and did not come back: is runworker well?"
            while json.loads(await socket.recv()).get("check") != mark:
                pass
            return time.monotonic() - start
    except TimeoutError:
        raise NotReady(f"{step} ({SECONDS:.0f} s)") from None
    except (OSError, WebSocketException) as error:
        private = isinstance(error, ssl.SSLCertVerificationError) and ca is None
        hint = ". Has a private authority signed it? Then name its file: --ca" if private else ""
        raise NotReady(f"{step}: {error}{hint}") from None
