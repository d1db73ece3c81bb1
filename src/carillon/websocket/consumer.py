"""A socket: version 1 of the wire protocol between one client and the groups it subscribes to.

Not one of Channels' consumer classes: they await one handler at a time, and each message would pay a hop to a
thread. Here a reader, a deliverer and a watch over the identity run side by side.
"""

from __future__ import annotations

import asyncio
import logging
import random
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any

from channels.db import database_sync_to_async
from channels.layers import get_channel_layer
from django.db import DatabaseError
from django.utils import timezone

from asgi_amqp.exceptions import LayerError
from carillon.notifications.registry import registry
from carillon.websocket import authentication, internal, protocol
from carillon.websocket.presence import presence

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT = 10.0  # seconds for who it is
GOODBYE_TIMEOUT = 2.0  # seconds for a closing handshake when the process stops
# An identity is looked at again even if no word came that it changed. Seconds, give or take a fifth.
RECHECK = 300.0

Message = dict[str, Any]


class Close(Exception):
    """Ends the socket with a close code, after an error frame if there is something to say."""

    def __init__(self, code: int, error: str | None = None) -> None:
        self.code = code
        self.error = error
        super().__init__(code, error)


class Gone(Exception):
    """The client has left."""


class Socket:
    """One connection, from handshake to goodbye."""

    def __init__(
        self,
        scope: Mapping[str, Any],
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
        limits: protocol.Limits,
    ) -> None:
        self.receive = receive
        self.send = send
        self.limits = limits
        self.handshake = authentication.Handshake(scope)
        self.address = str((scope.get("client") or [""])[0])
        self.layer = get_channel_layer()
        self.identity: authentication.Identity | None = None
        self.channel = ""
        self.entry: uuid.UUID | None = None
        self.groups: dict[str, tuple[str, str]] = {}  # name: (family, key)
        self.changing = asyncio.Lock()  # one change of `groups` or `identity` at a time
        self.messages = protocol.Allowance(limits.message_burst, limits.message_rate)
        self.nonsense = protocol.Allowance(limits.nonsense_burst, limits.nonsense_rate)

    async def run(self) -> None:
        try:
            await self._serve()
        except Gone:
            pass
        except asyncio.CancelledError:
            # The server stops (or gives up on a socket that is gone: then nobody hears this). Not raised on:
            # daphne waits for its applications only until the first one does that.
            await self._goodbye()
        except Close as close:
            await self._close(close.code, close.error)
        except (DatabaseError, LayerError, TimeoutError) as error:
            logger.warning("Socket closed, to come back later: %s", type(error).__name__)
            await self._close(protocol.TRY_LATER, "the server cannot reach its database or broker")
        finally:
            await self._clean_up()

    async def _serve(self) -> None:
        if not await self._connect():
            return
        tasks = [asyncio.create_task(work) for work in (self._read(), self._deliver(), self._watch())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    # The handshake ---------------------------------------------------------------------------------

    async def _connect(self) -> bool:
        """Accept, then say who it is or why not: a browser is shown no reason for a refused handshake."""
        await self.receive()
        await self.send({"type": "websocket.accept", "subprotocol": None})
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                self.identity = await database_sync_to_async(authentication.authenticate)(self.handshake)
                self.channel = await self.layer.new_channel()
                await self.layer.group_add(internal.GROUP, self.channel)
                self.entry = await presence().join(
                    self.identity.user.pk, self.address, self.handshake.user_agent
                )
        except authentication.Refused as refused:
            await self._text(protocol.refused(refused.reason))
            await self._close(refused.code)
            return False
        except (DatabaseError, LayerError, TimeoutError) as error:
            logger.warning("A client is sent away for now: %s", type(error).__name__)
            await self._text(
                protocol.refused("the server cannot reach its database or broker: try again later")
            )
            await self._close(protocol.TRY_LATER)
            return False
        await self._text(protocol.accepted(self.identity.user.pk))
        return True

    # What the client says --------------------------------------------------------------------------

    async def _read(self) -> None:
        while True:
            message = await self.receive()
            if message["type"] == "websocket.disconnect":
                raise Gone
            if not self.messages.spend(asyncio.get_running_loop().time()):
                raise Close(protocol.POLICY, "too many messages")
            try:
                wanted = protocol.parse(message.get("text"), self.limits, self._xrftoken())
            except protocol.Refusal as refusal:
                if not self.nonsense.spend(asyncio.get_running_loop().time()):
                    raise Close(protocol.POLICY, "too many invalid messages") from None
                await self._text(protocol.error(refusal.error))
            else:
                await self._subscribe(wanted)

    def _xrftoken(self) -> str | None:
        """What a message must carry: only a session's socket can be opened by somebody else's page."""
        return self.handshake.csrftoken if self.identity.session_key is not None else None

    async def _subscribe(self, wanted: protocol.Subscribe) -> None:
        """Replace the subscription. A group in both the old and the new one is never left."""
        async with self.changing:
            groups, errors = await self._permitted(
                (family, key) for family, keys in wanted.groups.items() for key in keys
            )
            errors = [
                protocol.unknown_family(name) for name in wanted.groups if not registry.get(name)
            ] + errors
            joined = groups.keys() - self.groups.keys()
            await asyncio.gather(*(self.layer.group_add(group, self.channel) for group in joined))
            await self._replace(groups, errors)

    async def _permitted(
        self, wanted: Iterable[tuple[str, str]]
    ) -> tuple[dict[str, tuple[str, str]], list[str]]:
        """Of (family, key)s: what the user may hear, by group name, and an error frame for each other one."""
        by_family: dict[str, list[str]] = {}
        for family, key in wanted:
            by_family.setdefault(family, []).append(key)
        user = self.identity.user
        groups: dict[str, tuple[str, str]] = {}
        errors = []
        for name, texts in by_family.items():
            family = registry.get(name)
            if family is None:
                continue
            keys = {text: family.parse_key(text) for text in texts}
            known = {key for key in keys.values() if key is not None}
            allowed = await database_sync_to_async(family.allowed)(user, known) if known else set()
            for text, key in keys.items():
                if key in allowed:
                    groups[f"{name}-{text}"] = (name, text)
                else:
                    errors.append(protocol.denied(name, text))
        return groups, errors

    async def _replace(self, groups: dict[str, tuple[str, str]], errors: Iterable[str]) -> None:
        """The groups are joined: say so, and leave those that are no longer wanted."""
        old, self.groups = self.groups, groups
        for frame in errors:
            await self._text(frame)
        await self._text(protocol.groups_reply(old, groups))
        left = old.keys() - groups.keys()
        await asyncio.gather(*(self.layer.group_discard(group, self.channel) for group in left))

    # What the server says --------------------------------------------------------------------------

    async def _deliver(self) -> None:
        while True:
            message = await self.layer.receive(self.channel)
            if message["type"] == "notification":
                # What is still on its way from a group that was left is not for this client any more.
                if message["group"] in self.groups and self.identity.hears(message.get("audience")):
                    await self._text(message["text"])
            elif message["type"] == "delivery.gap":
                raise _gap(message)
            elif message["type"] == "access.changed" and self.identity.user.pk in message["users"]:
                await self._recheck()

    async def _watch(self) -> None:
        """Looks at the identity when it expires, and now and then."""
        while True:
            wait = RECHECK * random.uniform(0.8, 1.2)  # noqa: S311  (spreads load, hides nothing)
            left = _seconds_until(self.identity.expires)
            await asyncio.sleep(min(wait, max(left, 0.0) + 0.05))
            try:
                await self._recheck()
            except DatabaseError:
                # A database that is away for a moment is no reason to send everybody away, an expiry is.
                if _seconds_until(self.identity.expires) <= 0:
                    raise

    async def _recheck(self) -> None:
        """Is the user still who he was, and may he still hear what he subscribed to?"""
        async with self.changing:
            identity = await database_sync_to_async(authentication.revalidate)(self.identity)
            if identity is None:
                raise Close(protocol.UNAUTHENTICATED, "the session or token has ended: log in again")
            self.identity = identity
            groups, errors = await self._permitted(self.groups.values())
            if groups.keys() != self.groups.keys():
                await self._replace(groups, errors)

    async def _text(self, text: str) -> None:
        await self.send({"type": "websocket.send", "text": text})

    # The end ---------------------------------------------------------------------------------------

    async def _close(self, code: int, error: str | None = None) -> None:
        if error is not None:
            await self._text(protocol.error(error))
        await self.send({"type": "websocket.close", "code": code})

    async def _goodbye(self) -> None:
        """Tell the client to come back to another process, and see the closing handshake through."""
        await self._close(protocol.RESTART)
        with suppress(TimeoutError):
            async with asyncio.timeout(GOODBYE_TIMEOUT):
                while (await self.receive())["type"] != "websocket.disconnect":
                    pass

    async def _clean_up(self) -> None:
        try:
            async with asyncio.timeout(GOODBYE_TIMEOUT):
                if self.entry is not None:
                    await presence().leave(self.entry)
                if self.channel:
                    await asyncio.gather(
                        *(
                            self.layer.group_discard(group, self.channel)
                            for group in (internal.GROUP, *self.groups)
                        )
                    )
        except (LayerError, TimeoutError) as error:
            # The layer forgets a channel that nobody reads when it expires.
            logger.debug("Groups of a closed socket are left to expire: %s", type(error).__name__)


def _gap(message: Message) -> Close:
    """Something was missed, nobody knows what: the client must look for itself when it comes back."""
    if message.get("reason") == "reconnect":
        return Close(protocol.TRY_LATER, "the server lost its broker for a moment: events may be missing")
    return Close(protocol.TOO_SLOW, "events came faster than they could be delivered: some are missing")


def _seconds_until(moment: datetime | None) -> float:
    return float("inf") if moment is None else (moment - timezone.now()).total_seconds()


async def serve(
    scope: Mapping[str, Any],
    receive: Callable[[], Awaitable[Message]],
    send: Callable[[Message], Awaitable[None]],
    *,
    limits: protocol.Limits | None = None,
) -> None:
    """The ASGI application of a websocket."""
    await Socket(scope, receive, send, limits or protocol.Limits()).run()
