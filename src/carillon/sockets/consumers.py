"""The project's own consumers: ordinary Channels routing behind the same door as Carillon's own socket. What
reaches them is below /websocket/ and the prefixes that the project declares (`carillon.process.declared`).

The setting WEBSOCKET_URLCONF names a module with `websocket_urlpatterns`. A consumer finds `scope["user"]` as
Channels' AuthMiddleware would put it there: the user of the token or session, or an AnonymousUser when the
client presents neither, and `scope["session"]` as SessionMiddleware would. What is presented and wrong is
refused with 4401, a foreign Origin with 4403. When the login ends or the user's rights change, the socket
ends too: the client is told at once, and the consumer as if the client had left, so its `disconnect()` runs.

A consumer of `carillon.consumers` hears events, too: its groups are in the hub as those of any listener, and
what comes for them is handed to it between the client's messages, one at a time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import cache
from importlib import import_module
from itertools import cycle
from typing import Any

from asgiref.sync import ThreadSensitiveContext
from channels.routing import URLRouter
from django.db import Error
from django.urls import re_path

from asgi_amqp import Position
from carillon.accounts import sessions
from carillon.conf import conf
from carillon.events.event import public
from carillon.fanout.forms import Texts2
from carillon.fanout.station import StreamUnavailable
from carillon.metrics import names
from carillon.sockets import authentication, protocol
from carillon.sockets.questions import Groups
from carillon.sockets.queue_listener import QueueListener
from carillon.sockets.session import RECHECK_SOON, Close, count_refusal, look_later, seconds_until
from carillon.sockets.sockets import sockets

logger = logging.getLogger(__name__)

PREFIX = "/websocket/"
CONNECTION = "carillon.connection"
"""Where in its scope a consumer finds the `ProjectConsumer` that it is served by."""

EVENT = "carillon.event"
"""The ASGI message that hands an event to a consumer, or a word about where in the log it is."""

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
        self.outlet = QueueListener(Texts2, budget=conf.SOCKET_BUFFER_BYTES)  # what the consumer is to hear
        self.outlet.owner = self
        self.identity: authentication.Identity | None = None
        self._before = 0  # the last change of rights that its login and its `connect()` may not have seen
        self._groups: set[str] = set()
        self._began = False
        self._at: Position | None = None
        self._since: Position | None = None
        self._word = False
        self._open = False
        self._task: asyncio.Task[None] | None = None
        self._ending: Close | None = None
        self._ended = False
        self._receiving: asyncio.Task[dict[str, Any]] | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        self._task = asyncio.current_task()
        here = sockets()
        self._before = here.rights.changes
        try:
            try:
                self.identity = await here.authenticate(authentication.Handshake(self.scope))
            except authentication.NoCredentials:
                self.identity = authentication.anonymous()
            here.admit(self.identity)
        except authentication.Refused as refused:
            count_refusal(refused)
            await self._turn_away(Close(refused.code, reason=refused.reason))
            return
        except (Error, TimeoutError) as error:
            logger.warning("A client is sent away for now: %s", type(error).__name__)
            count_refusal(error)
            await self._turn_away(Close(protocol.TRY_LATER, reason="the server cannot reach its database"))
            return
        # With a token: an empty session, for the cookie may be what a page of somebody else's has sent along.
        session = sessions.store()(self.identity.session_key)
        scope = {**self.scope, "user": self.identity.user, "session": session, CONNECTION: self}
        self.outlet.tags = self.identity.tags
        here.add(self)
        self._watch()
        if here.rights.changed_since(self._before, (self.identity.user.pk,)):
            here.suspect(self)
        try:
            await share_a_thread()
            await _routes(conf.WEBSOCKET_URLCONF)(scope, self._receive, self._send)
        except StreamUnavailable as error:
            count_refusal(error)
            logger.warning("A client is sent away for now: the event stream cannot be read yet")
            away = Close(protocol.TRY_LATER, reason="the server cannot reach its broker")
            await self._refuse(away)
        except asyncio.CancelledError:
            if self._ending is None:
                raise
            logger.warning("A consumer did not end %g s after its socket: cancelled", DISCONNECT_SECONDS)
        finally:
            self.outlet.stop()
            here.station.hub.subscribe(self.outlet, frozenset())
            if self._receiving is not None:
                self._receiving.cancel()
            here.discard(self)
            if self._timer is not None:
                self._timer.cancel()

    async def _turn_away(self, close: Close) -> None:
        await self.receive()
        await self._refuse(close)

    async def _refuse(self, close: Close) -> None:
        """Accept and close: a browser is shown neither code nor reason of a handshake that was refused."""
        if not self._open:
            await self.send({"type": "websocket.accept"})
        await self._close(close)

    async def _close(self, close: Close) -> None:
        await self.send({"type": "websocket.close", "code": close.code, "reason": close.reason})

    def _end(self, close: Close) -> None:
        """Close the socket, and tell the consumer that it is gone."""
        if self._ending is None and self._task is not None and not self._task.done():
            self._ending = close
            self.outlet.stop()
            self._closing = asyncio.get_running_loop().create_task(self._see_it_end(close))

    async def _see_it_end(self, close: Close) -> None:
        await self._close(close)
        self._ended = True
        self.outlet.something.set()
        await asyncio.wait({self._task}, timeout=DISCONNECT_SECONDS)
        if not self._task.done():
            self._task.cancel()

    async def _receive(self) -> dict[str, Any]:
        """What the consumer hears: the client, until we have ended the socket, and its events."""
        if self._receiving is None:
            self._receiving = asyncio.ensure_future(self.receive())
        quiet = conf.SSE_COMMENT_SECONDS if self.outlet.groups else None
        while True:
            self.outlet.something.clear()
            if self._ended:
                return {
                    "type": "websocket.disconnect",
                    "code": self._ending.code,
                    "reason": self._ending.reason,
                }
            if self._receiving.done():
                # Kept until it has something: a receive that is cancelled must not lose a message.
                received, self._receiving = self._receiving, None
                return received.result()
            text = self.outlet.take()
            if text is not None:
                return {"type": EVENT, "text": text}
            something = asyncio.ensure_future(self.outlet.something.wait())
            try:
                done, _ = await asyncio.wait(
                    {self._receiving, something}, timeout=quiet, return_when=asyncio.FIRST_COMPLETED
                )
            finally:
                something.cancel()
            if not done:
                self._progress()

    async def _send(self, message: dict[str, Any]) -> None:
        """What the consumer says: nothing more once the socket has ended."""
        if self._ending is None:
            self._open = message["type"] == "websocket.accept" or (
                self._open and message["type"] != "websocket.close"
            )
            await self.send(message)

    # What it hears

    async def subscribe(self, *groups: str) -> None:
        """It is to hear these, from here on. For its `connect()`; they begin with begin(). Raises ValueError,
        StreamUnavailable."""
        if self._began:
            raise RuntimeError("subscribe() in connect(): a client that comes back says once what it has")
        wanted = [public(group) for group in groups]
        station = sockets().station
        await station.ready(conf.LOGIN_SECONDS)
        self._at = self._at or station.position
        self._groups.update(wanted)

    async def begin(self, since: Position | None) -> None:
        """`connect()` is done: events come from behind `since`, or from where it subscribed."""
        self._began = True
        if not (self._open and self._groups):
            return
        here = sockets()
        self._since = since
        groups = frozenset(group.encode() for group in self._groups)
        here.station.hub.subscribe(self.outlet, groups, since or self._at)
        if here.rights.changed_since(self._before, (self.identity.user.pk, *self._groups)):
            here.suspect(self)  # of what `connect()` had decided by

    def recovered(self, at: Position) -> None:
        if self._since is None:
            self.outlet.text(protocol.progress(at))
            return
        names.RESUMES.labels("recovered").inc()
        self.outlet.text(protocol.recovered(at))

    def lost(self, reason: str, asked: bool = False) -> None:
        """It goes on from here: what it wanted of before cannot be had."""
        names.RESUMES.labels(reason).inc()
        self.outlet.text(protocol.unrecoverable(sockets().station.position, reason))

    def failed(self) -> None:
        self._end(Close(protocol.TRY_LATER, reason="the server has failed: try again later"))

    def _progress(self) -> None:
        """A quiet client's position does not grow old: it moves on with the stream."""
        at = sockets().station.position
        if self.outlet.live and self.outlet.sent != at.number:
            self.outlet.text(protocol.progress(at))
            self.outlet.sent = at.number

    # Who it is, now: what `Sockets` asks and tells.

    def hold(self, number: int) -> None:
        self._word = True
        self.outlet.hold(sockets().station.position._replace(number=number))

    def question(self) -> tuple[authentication.Identity, Groups]:
        return self.identity, NONE

    def interrupted(self, reason: str) -> None:
        """Nobody knows what it missed, of its rights either. It is told when it comes back, if it missed
        anything; without groups that can be its rights alone."""
        if self.outlet.groups:
            self._end(Close(protocol.RESTART, reason="the server has lost its place in the event stream"))
        else:
            sockets().look(self)

    def unanswered(self, error: Exception, held: bool) -> None:
        away = isinstance(error, Error | TimeoutError)
        if away and not held and seconds_until(self.identity.expires) > 0:
            # As any socket: a database that is away for a moment is no reason to send everybody away.
            self._watch(RECHECK_SOON)
            return
        logger.warning("A socket's login cannot be checked", exc_info=None if away else error)
        why = "cannot reach its database" if away else "has failed: try again later"
        self._end(Close(protocol.TRY_LATER, reason=f"the server {why}"))

    def answer(self, identity: authentication.Identity | None, groups: set[str]) -> None:
        if identity is None:
            self._end(Close(protocol.UNAUTHENTICATED, reason="the session or token has ended"))
        elif identity.tags != self.identity.tags or (self._word and self.outlet.groups):
            # The consumer decided by the rights of before: let it decide anew.
            self._end(Close(protocol.RESTART, reason="your rights have changed: connect again"))
        else:
            self.identity = identity
            self._word = False
            self.outlet.release()
            sockets().station.hub.feeder.ready(self.outlet)
            self._watch()

    def _watch(self, wait: float | None = None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = look_later(self, wait)


async def share_a_thread() -> None:
    """Synchronous code of the project's runs on a few threads, so that Carillon's questions to the database
    need not wait for it. The connection that is served here keeps to one of them, which is what
    `thread_sensitive` promises."""
    await next(_threads(conf.CONSUMER_THREADS)).__aenter__()  # never left: it is for others, too


@cache
def _threads(count: int) -> Iterator[ThreadSensitiveContext]:
    return cycle([ThreadSensitiveContext() for _ in range(count)])


@cache
def _routes(urlconf: str | None) -> URLRouter:
    patterns = import_module(urlconf).websocket_urlpatterns if urlconf else ()
    return URLRouter([*patterns, re_path("", _nobody)])


async def _nobody(scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
    """A path that nobody serves: closed before an accept, which is 403."""
    await receive()
    await send({"type": "websocket.close"})


async def serve(scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
    """The ASGI application of a websocket that is not Carillon's own."""
    await ProjectConsumer(scope, receive, send).run()
