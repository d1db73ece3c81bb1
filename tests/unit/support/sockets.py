"""A client for the websocket application, and what runworker would do with the queue."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from channels.layers import get_channel_layer
from channels.testing import WebsocketCommunicator

from carillon.fanout.station import station
from carillon.relay.judge import event_of
from carillon.sockets.application import application
from carillon.sockets.presence import presence

TIMEOUT = 5


class Client:
    """One socket. `headers` as text pairs; `cookies` in awxkit's way of writing them."""

    opened: list[Client] = []

    def __init__(
        self, path: str = "/websocket/", *, token: str | None = None, cookie: str = "", **headers: str
    ):
        if token is not None:
            path += f"?token={token}"
        pairs = [(name.replace("_", "-"), value) for name, value in headers.items()]
        if cookie:
            pairs.append(("cookie", cookie))
        self.raw = WebsocketCommunicator(
            application, path, headers=[(name.encode(), value.encode("latin1")) for name, value in pairs]
        )
        self.raw.scope["client"] = ["192.0.2.7", 1234]
        self.opened.append(self)

    async def open(self) -> dict[str, Any]:
        """Connect; the first frame."""
        accepted, _ = await self.raw.connect(timeout=TIMEOUT)
        assert accepted
        return await self.frame()

    async def frame(self) -> dict[str, Any]:
        return json.loads(await self.raw.receive_from(timeout=TIMEOUT))

    async def close_code(self) -> int:
        message = await self.raw.receive_output(timeout=TIMEOUT)
        assert message["type"] == "websocket.close", message
        return message["code"]

    async def say(self, message: Any) -> None:
        await self.raw.send_to(text_data=message if isinstance(message, str) else json.dumps(message))

    async def subscribe(self, groups: Any, **more: Any) -> dict[str, Any]:
        """Send a `groups` message; the first frame that answers it."""
        await self.say({"groups": groups, **more})
        return await self.frame()

    async def is_silent(self) -> bool:
        return await self.raw.receive_nothing(timeout=0.05, interval=0.01)

    async def leave(self) -> None:
        await self.raw.disconnect(timeout=TIMEOUT)

    @classmethod
    async def end_all(cls) -> None:
        """Every socket's application has ended: none is in the database while its tables are emptied."""
        futures = []
        for client in cls.opened:
            future = client.raw._future  # `future` would start what was never opened
            if future is not None:
                if not future.done():
                    await client.raw.send_input({"type": "websocket.disconnect", "code": 1006})
                futures.append(future)
        cls.opened.clear()
        if futures:
            await asyncio.wait(futures, timeout=TIMEOUT)
        if (keeper := presence()._keeper) is not None:
            await asyncio.wait({keeper}, timeout=TIMEOUT)  # it ends when all have left


async def pump() -> None:
    """Give the events on the queue to this process's hub, as runworker and the tail do."""
    publisher = get_channel_layer().publisher
    batches, publisher.batches = publisher.batches, []
    station().start()
    hub = station().hub
    for batch in batches:
        events = [event_of(message) for _, message in batch]
        for place, event in enumerate(events):
            event.number = hub.number + 1 + place
        hub.deliver(events)
