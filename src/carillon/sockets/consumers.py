"""The project's own consumers, under /websocket/: ordinary Channels routing behind the same door as
Carillon's own socket.

The setting WEBSOCKET_URLCONF names a module with `websocket_urlpatterns`. A consumer finds `scope["user"]` as
Channels' AuthMiddleware would put it there: the user of the token or session, or an AnonymousUser when the
client presents neither. What is presented and wrong is refused with 4401, a foreign Origin with 4403. When
the login ends or the user's rights change, the socket ends too: the client is told at once, and the consumer
as if the client had left, so its `disconnect()` runs.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from functools import cache
from importlib import import_module
from typing import Any

from channels.routing import URLRouter
from django.contrib.auth.models import AnonymousUser
from django.db import DatabaseError
from django.urls import re_path
from django.utils import timezone

from carillon.conf import conf
from carillon.metrics import names
from carillon.sockets import authentication, protocol
from carillon.sockets.questions import Groups
from carillon.sockets.session import Close, count_refusal
from carillon.sockets.sockets import sockets

logger = logging.getLogger(__name__)

PREFIX = "/websocket/"
NONE: Groups = {}
DISCONNECT_SECONDS = 5.0
"""Seconds that a consumer has for its `disconnect()` when its socket is ended; then it is cancelled."""

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class ProjectConsumer:
    """One connection to a consumer of the project's, for as long as its login is good."""

    kind = "consumer"

    def __init__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        self.scope = scope
        self.receive = receive
        self.send = send
        self.outlet = scope.get("carillon.outlet") or self  # what `Sockets` knows a socket by
        self.identity: authentication.Identity | None = None
        self._task: asyncio.Task[None] | None = None
        self._ending: Close | None = None
        self._ended = asyncio.Event()
        self._receiving: asyncio.Task[dict[str, Any]] | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        self._task = asyncio.current_task()
        here = sockets()
        try:
            async with asyncio.timeout(conf.LOGIN_SECONDS):
                self.identity = await here.authenticate(authentication.Handshake(self.scope))
        except authentication.NoCredentials:
            pass
        except authentication.Refused as refused:
            count_refusal(refused)
            await self._turn_away(Close(refused.code, reason=refused.reason))
            return
        except (DatabaseError, TimeoutError) as error:
            logger.warning("A client is sent away for now: %s", type(error).__name__)
            count_refusal(error)
            await self._turn_away(Close(protocol.TRY_LATER, reason="the server cannot reach its database"))
            return
        user = AnonymousUser() if self.identity is None else self.identity.user
        try:
            if self.identity is not None:
                if here.of(user.pk) >= conf.SOCKETS_PER_USER:
                    names.OVER_BUDGET.labels("quota_sockets").inc()
                    await self._turn_away(Close(protocol.POLICY, reason="too many sockets of this user"))
                    return
                here.add(self)
                self._watch()
            await _routes(conf.WEBSOCKET_URLCONF)(dict(self.scope, user=user), self._receive, self._send)
        except asyncio.CancelledError:
            if self._ending is None:
                raise
            logger.warning("A consumer did not end %g s after its socket: cancelled", DISCONNECT_SECONDS)
        finally:
            if self._receiving is not None:
                self._receiving.cancel()
            if self.identity is not None:
                here.discard(self)
            if self._timer is not None:
                self._timer.cancel()

    async def _turn_away(self, close: Close) -> None:
        """Accept and close: a browser is shown neither code nor reason of a handshake that was refused."""
        await self.receive()
        await self.send({"type": "websocket.accept"})
        await self._close(close)

    async def _close(self, close: Close) -> None:
        await self.send({"type": "websocket.close", "code": close.code, "reason": close.reason})

    def _end(self, close: Close) -> None:
        """Close the socket, and tell the consumer that it is gone."""
        if self._ending is None and self._task is not None and not self._task.done():
            self._ending = close
            self._closing = asyncio.get_running_loop().create_task(self._see_it_end(close))

    async def _see_it_end(self, close: Close) -> None:
        await self._close(close)
        self._ended.set()
        await asyncio.wait({self._task}, timeout=DISCONNECT_SECONDS)
        if not self._task.done():
            self._task.cancel()

    async def _receive(self) -> dict[str, Any]:
        """What the consumer hears: the client, until we have ended the socket."""
        if self._receiving is None:
            self._receiving = asyncio.ensure_future(self.receive())
        ended = asyncio.ensure_future(self._ended.wait())
        try:
            await asyncio.wait({self._receiving, ended}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()
        if self._ending is not None and self._ended.is_set():
            return {
                "type": "websocket.disconnect",
                "code": self._ending.code,
                "reason": self._ending.reason,
            }
        # Kept until it has something: a receive that is cancelled must not lose a message.
        received, self._receiving = self._receiving, None
        return received.result()

    async def _send(self, message: dict[str, Any]) -> None:
        """What the consumer says: nothing more once the socket has ended."""
        if self._ending is None:
            await self.send(message)

    # Who it is, now: what `Sockets` asks and tells.

    def hold(self, number: int) -> None:
        """Not needed: what it hears is its consumer's affair, which hears when the socket has to end."""

    def question(self) -> tuple[authentication.Identity, Groups]:
        return self.identity, NONE

    def interrupted(self, reason: str) -> None:
        """Of no concern here: these sockets do not hear of Carillon's events."""

    def unanswered(self, error: Exception, held: bool) -> None:
        away = isinstance(error, DatabaseError | TimeoutError)
        logger.warning("A socket's login cannot be checked", exc_info=None if away else error)
        why = "cannot reach its database" if away else "has failed: try again later"
        self._end(Close(protocol.TRY_LATER, reason=f"the server {why}"))

    def answer(self, identity: authentication.Identity | None, groups: set[str]) -> None:
        if identity is None:
            self._end(Close(protocol.UNAUTHENTICATED, reason="the session or token has ended"))
        elif identity.tags != self.identity.tags:
            # The consumer decided by the rights of before: let it decide anew.
            self._end(Close(protocol.RESTART, reason="your rights have changed: connect again"))
        else:
            self.identity = identity
            self._watch()

    def _watch(self) -> None:
        """Look when the login expires, and now and then even if no word came that it changed."""
        wait = conf.RECHECK_SECONDS * random.uniform(0.8, 1.2)  # noqa: S311  (spreads load, hides nothing)
        if self.identity.expires is not None:
            left = (self.identity.expires - timezone.now()).total_seconds()
            wait = min(wait, max(left, 0.0) + 0.05)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(wait, sockets().look, self)


@cache
def _routes(urlconf: str | None) -> URLRouter:
    patterns = import_module(urlconf).websocket_urlpatterns if urlconf else ()
    return URLRouter([*patterns, re_path("", _nobody)])


async def _nobody(scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
    """A path that nobody serves: closed before an accept, which is 403."""
    await receive()
    await send({"type": "websocket.close"})


async def serve(scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
    """The ASGI application of a websocket under `PREFIX`."""
    await ProjectConsumer(scope, receive, send).run()
