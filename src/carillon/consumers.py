"""Consumers of Channels whose groups are durable and resumable: what is emitted to a group is kept in the
log, reaches each client once and in order, and a client that was away gets what it missed.

    class ChatConsumer(AsyncResumableJsonWebsocketConsumer):
        async def connect(self):
            await self.subscribe("chat_lobby")
            await self.accept()

        async def receive_json(self, content):
            await self.emit("chat_lobby", {"type": "chat.message", "text": content["text"]})

        async def chat_message(self, event):
            await self.send_json({"text": event["text"]})

The last frame that a handler sends for an event has one more member, `position`. A client that connects
again with `?since=<position>` gets what came behind it, and then `{"recovered": true, "position": …}`, or is
told with `{"recovered": false, "position": …, "reason": …}` that this cannot be:
docs/how-to/resumable-consumer.md.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs

from asgiref.sync import async_to_sync
from channels.exceptions import StopConsumer
from channels.generic.websocket import AsyncJsonWebsocketConsumer, JsonWebsocketConsumer
from django.core.exceptions import ImproperlyConfigured

from asgi_amqp import Position
from carillon.events import aemit_channel_notification, emit_channel_notification
from carillon.events.event import public
from carillon.sockets.consumers import CONNECTION, ProjectConsumer
from carillon.sockets.protocol import POLICY

__all__ = ["AsyncResumableJsonWebsocketConsumer", "ResumableJsonWebsocketConsumer"]

Content = dict[str, Any]
Audience = Mapping[str, Sequence[int]] | None


class EventFrames:
    """What a handler sends for one event. The last frame has the event's position, so that a connection that
    breaks between two of them has the event again: one is kept back until the next or the end. Pure."""

    def __init__(self, position: str) -> None:
        self._position = position
        self._kept: Content | None = None
        self._bare = False

    def put(self, content: Content) -> list[Content]:
        """The handler sends this: what can go out now. Raises TypeError."""
        if not isinstance(content, dict):
            raise TypeError(f"a frame of an event is a dict, for its position: this is a {type(content)}")
        kept, self._kept = self._kept, content
        return [] if kept is None else [kept]

    def bare(self) -> list[Content]:
        """The handler sends something that can have no position: what goes out before it."""
        self._bare = True
        kept, self._kept = self._kept, None
        return [] if kept is None else [kept]

    def end(self) -> list[Content]:
        """The handler is done: what is still to go out."""
        kept, bare = self._kept, self._bare
        self._kept, self._bare = None, False
        return [{**(kept or {}), "position": self._position}] if kept is not None or bare else []


def _connection(scope: Mapping[str, Any]) -> ProjectConsumer:
    try:
        return scope[CONNECTION]
    except KeyError:
        raise ImproperlyConfigured(
            "A resumable consumer is served by Carillon's application: name its module of "
            "websocket_urlpatterns in CARILLON['WEBSOCKET_URLCONF']"
        ) from None


def _since(scope: Mapping[str, Any]) -> Position | None:
    """Where the client asks to go on from. Raises ValueError."""
    given = parse_qs(scope.get("query_string", b"").decode("latin1"), max_num_fields=50).get("since")
    return Position.parse(given[-1]) if given else None


def _handler(consumer: Any, base: type, event: Content) -> Callable[[Content], Any] | None:
    """The method that an event names by its `type`, as Channels does; None: it names none. Only a method of
    the consumer's own: no event calls `close`. Raises ValueError."""
    if "type" not in event:
        return None
    name = str(event["type"]).replace(".", "_")
    own = callable(getattr(type(consumer), name, None)) and not hasattr(base, name)
    if name.startswith("_") or not own:
        raise ValueError(
            f"{type(consumer).__name__} has no method of its own for the event {event['type']!r}"
        )
    return getattr(consumer, name)


class AsyncResumableJsonWebsocketConsumer(AsyncJsonWebsocketConsumer):
    """An `AsyncJsonWebsocketConsumer` whose groups are durable and resumable: see the module."""

    _frames: EventFrames | None = None

    async def subscribe(self, *groups: str) -> None:
        """In `connect()`: hear these groups, from now or from the client's `since` on."""
        await _connection(self.scope).subscribe(*groups)

    async def emit(self, group: str, payload: Content, audience: Audience = None) -> None:
        """To everyone in `group`, now and later; returns when the broker has it. `payload["type"]` names the
        method that is called with it; without one the client is sent the payload. `audience`: as in
        `carillon.events.Notification`. Raises NotificationsUnavailable."""
        await aemit_channel_notification(public(group), payload, audience=audience)

    async def websocket_connect(self, message: Content) -> None:
        connection = _connection(self.scope)
        try:
            since = _since(self.scope)
        except ValueError as error:
            await self.accept()
            await self.close(POLICY, f"since: {error}")
            raise StopConsumer from None
        await super().websocket_connect(message)
        await connection.begin(since)

    async def carillon_event(self, message: Content) -> None:
        """An event, or where in the log the client is."""
        told = json.loads(message["text"])
        if "event" not in told:
            await self.send_json(told)
            return
        event = told["event"]
        handler = _handler(self, AsyncResumableJsonWebsocketConsumer, event)
        frames = self._frames = EventFrames(told["position"])
        try:
            await (self.send_json if handler is None else handler)(event)
        finally:
            self._frames = None
        await self._send_each(frames.end())

    async def send_json(self, content: Any, close: Any = False) -> None:
        if self._frames is None:
            await super().send_json(content, close=close)
            return
        await self._send_each(self._frames.put(content))
        if close:
            await self.close(close)

    async def send(self, text_data: Any = None, bytes_data: Any = None, close: Any = False) -> None:
        if self._frames is not None:
            await self._send_each(self._frames.bare())
        await super().send(text_data=text_data, bytes_data=bytes_data, close=close)

    async def close(self, code: Any = None, reason: str | None = None) -> None:
        if self._frames is not None:
            await self._send_each(self._frames.end())
        await super().close(code=code, reason=reason)

    async def _send_each(self, contents: list[Content]) -> None:
        for content in contents:
            await super().send_json(content)


class ResumableJsonWebsocketConsumer(JsonWebsocketConsumer):
    """A `JsonWebsocketConsumer` whose groups are durable and resumable: see the module."""

    _frames: EventFrames | None = None

    def subscribe(self, *groups: str) -> None:
        """In `connect()`: hear these groups, from now or from the client's `since` on."""
        async_to_sync(_connection(self.scope).subscribe)(*groups)

    def emit(self, group: str, payload: Content, audience: Audience = None) -> None:
        """As `AsyncResumableJsonWebsocketConsumer.emit`."""
        emit_channel_notification(public(group), payload, audience=audience)

    def websocket_connect(self, message: Content) -> None:
        connection = _connection(self.scope)
        try:
            since = _since(self.scope)
        except ValueError as error:
            self.accept()
            self.close(POLICY, f"since: {error}")
            raise StopConsumer from None
        super().websocket_connect(message)
        async_to_sync(connection.begin)(since)

    def carillon_event(self, message: Content) -> None:
        """An event, or where in the log the client is."""
        told = json.loads(message["text"])
        if "event" not in told:
            self.send_json(told)
            return
        event = told["event"]
        handler = _handler(self, ResumableJsonWebsocketConsumer, event)
        frames = self._frames = EventFrames(told["position"])
        try:
            (self.send_json if handler is None else handler)(event)
        finally:
            self._frames = None
        self._send_each(frames.end())

    def send_json(self, content: Any, close: Any = False) -> None:
        if self._frames is None:
            super().send_json(content, close=close)
            return
        self._send_each(self._frames.put(content))
        if close:
            self.close(close)

    def send(self, text_data: Any = None, bytes_data: Any = None, close: Any = False) -> None:
        if self._frames is not None:
            self._send_each(self._frames.bare())
        super().send(text_data=text_data, bytes_data=bytes_data, close=close)

    def close(self, code: Any = None, reason: str | None = None) -> None:
        if self._frames is not None:
            self._send_each(self._frames.end())
        super().close(code=code, reason=reason)

    def _send_each(self, contents: list[Content]) -> None:
        for content in contents:
            super().send_json(content)
