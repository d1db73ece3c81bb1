"""A socket: the wire protocol between one client and the groups it subscribes to.

Not one of Channels' consumer classes. Events do not pass through here: the hub writes them to the socket's
outlet. What is left is a reader of the client's messages, and a timer that looks at who the user is now and
then.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import uuid
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any

from django.db import Error
from django.utils import timezone

from asgi_amqp import LayerError, Position
from carillon.budgets import Allowance
from carillon.conf import conf
from carillon.events.families import registry
from carillon.fanout.forms import Frames1, Frames2, Texts1, Texts2
from carillon.fanout.station import StreamUnavailable
from carillon.metrics import names
from carillon.sockets import authentication, protocol
from carillon.sockets.asgi_outlet import AsgiOutlet
from carillon.sockets.presence import presence
from carillon.sockets.questions import Groups
from carillon.sockets.sockets import Asked, Left, TooManySockets, sockets

logger = logging.getLogger(__name__)

GOODBYE_TIMEOUT = 2.0  # seconds for a closing handshake when the process stops
RECHECK_SOON = 10.0  # seconds until the next look at an identity, where the database was away

Message = dict[str, Any]


class Close(Exception):
    """Ends the socket with a close code, after an error frame if there is something to say."""

    def __init__(self, code: int, error: str | None = None, reason: str = "") -> None:
        self.code = code
        self.error = error
        self.reason = reason
        super().__init__(code, error)


class Gone(Exception):
    """The client has left."""


class Session:
    """One connection, from handshake to goodbye.

    What it hears is its outlet's affair, which is a cursor: `carillon.fanout.cursor`. What it may hear is in
    question whenever a change is heard of: `carillon.sockets.rights`.
    """

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
        self.handshake: authentication.Handshake | None = authentication.Handshake(scope)
        self.address = str((scope.get("client") or [""])[0])
        self.csrftoken = self.handshake.csrftoken
        self.version = 2 if protocol.VERSION_2 in scope.get("subprotocols", ()) else 1
        self.outlet = scope.get("carillon.outlet")
        self.direct = self.outlet is not None
        self.identity: authentication.Identity | None = None
        self.entry: uuid.UUID | None = None
        self.groups: dict[str, tuple[str, str]] = {}  # name: (family, key)
        self.messages = Allowance(limits.message_burst, limits.message_rate)
        self.nonsense = Allowance(limits.nonsense_burst, limits.nonsense_rate)
        self.keys = Allowance(limits.key_burst, limits.key_rate)
        self.task: asyncio.Task[None] | None = None
        self._ending: Close | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def kind(self) -> str:
        """How it speaks, for those who count."""
        return f"v{self.version}"

    async def run(self) -> None:
        self.task = asyncio.current_task()
        try:
            await self._serve()
        except Gone:
            pass
        except asyncio.CancelledError:
            if self._ending is not None:
                await self._close(self._ending)
            else:
                # The server stops (or gives up on a socket that is gone: then this is heard by nobody). Not
                # raised on: daphne's gathering of its applications ends with the first one that does.
                await self._goodbye()
        except Close as close:
            await self._close(close)
        except (Error, LayerError, TimeoutError) as error:
            logger.warning("Socket closed, to come back later: %s", type(error).__name__)
            await self._close(Close(protocol.TRY_LATER, "the server cannot reach its database or broker"))
        except Exception:
            logger.exception("A socket fails")
            await self._close(Close(protocol.TRY_LATER, "the server has failed: try again later"))
        finally:
            await self._clean_up()

    def end(self, close: Close) -> None:
        """Close this socket, from outside of its own task; one that is closing already is left alone."""
        if self._ending is None and self.task is not None and not self.task.done():
            self._ending = close
            if self.outlet is not None:
                self.outlet.end()  # what follows until the task runs may not follow what was heard
            self.task.cancel()

    async def _serve(self) -> None:
        if not await self._connect():
            return
        self._watch()
        while True:
            message = await self.receive()
            if message["type"] == "websocket.disconnect":
                raise Gone
            if not self.messages.spend(asyncio.get_running_loop().time()):
                names.OVER_BUDGET.labels("messages").inc()
                raise Close(
                    protocol.POLICY,
                    f"too many messages: {self.limits.message_burst:g} at once and "
                    f"{self.limits.message_rate:g} a second are allowed",
                )
            try:
                # Only a session's socket can be opened by somebody else's page.
                xrftoken = self.csrftoken if self.identity.session_key is not None else None
                wanted = protocol.parse(message.get("text"), self.limits, xrftoken, self.version)
                if isinstance(wanted, protocol.Refresh):
                    await self._refresh(wanted)
                else:
                    await self._subscribe(wanted)
                    await self._until(lambda: self.outlet.asked is None)
            except protocol.Refusal as refusal:
                if not self.nonsense.spend(asyncio.get_running_loop().time()):
                    names.OVER_BUDGET.labels("nonsense").inc()
                    raise Close(protocol.POLICY, "too many invalid messages") from None
                self._text(protocol.error(refusal.error))
            await self.outlet.drained()  # who does not read what he is told need not be heard

    # The handshake
    # -------------------------------------------------------------------------------------------

    async def _connect(self) -> bool:
        """Accept, then say who it is or why not: a browser is shown no reason for a refused handshake."""
        if self.direct:
            self.outlet.accept_messages(self.limits.message_bytes)
        await self.receive()
        await self.send(
            {
                "type": "websocket.accept",
                "subprotocol": protocol.VERSION_2 if self.version == 2 else None,
            }
        )
        if not self.direct:
            self.outlet = AsgiOutlet(
                Texts2 if self.version == 2 else Texts1,
                self.send,
                lambda text: {"type": "websocket.send", "text": text},
                budget=conf.SOCKET_BUFFER_BYTES,
            )
        elif self.version == 2:
            self.outlet.form = Frames2
        else:
            self.outlet.form = Frames1
        here = sockets()
        before = here.rights.changes
        try:
            self.identity = await here.authenticate(self.handshake, lambda: self.outlet.ended)
            await here.station.ready(conf.LOGIN_SECONDS)
            here.admit(self.identity)
        except Left:
            raise Gone from None
        except authentication.Refused as refused:
            count_refusal(refused)
            self._text(protocol.refused(refused.reason))
            await self._close(Close(refused.code))
            return False
        except (Error, LayerError, StreamUnavailable, TimeoutError) as error:
            logger.warning("A client is sent away for now: %s", type(error).__name__)
            count_refusal(error)
            self._text(protocol.refused("the server cannot reach its database or broker: try again later"))
            await self._close(Close(protocol.TRY_LATER))
            return False
        self._arrive(before)
        at = here.station.position if self.version == 2 else None
        self._text(protocol.accepted(self.identity.user.pk, at))
        return True

    def _arrive(self, before: int) -> None:
        """From here on this socket hears when its user's rights change; if any did since `before`, when its
        login was asked for, it looks once more."""
        here = sockets()
        self.outlet.owner = self
        self.outlet.tags = self.identity.tags
        if self.version == 1:
            self.outlet.most = conf.SOCKET_BACKLOG_BYTES
        here.station.hub.subscribe(self.outlet, frozenset())
        self.entry = presence().join(self.identity.user.pk, self.address, self.handshake.user_agent)
        self.handshake = None
        here.add(self)
        if here.rights.changed_since(before, (self.identity.user.pk,)):
            here.suspect(self)

    # What the client says
    # ---------------------------------------------------------------------------------------

    async def _subscribe(self, wanted: protocol.Subscribe) -> None:
        """Replace the subscription. A group in both the old and the new one loses nothing; one that is new
        begins at `since`, or now."""
        count = sum(max(1, len(keys)) for keys in wanted.groups.values())
        now = asyncio.get_running_loop().time()
        if not self.keys.spend(now, count):
            names.OVER_BUDGET.labels("keys").inc()
            raise protocol.Refusal(
                f"invalid message: too many groups: {self.limits.key_burst:g} at once and "
                f"{self.limits.key_rate:g} a second are allowed, try again in "
                f"{math.ceil(min(self.keys.wait(now, count), 3600))} s"
            )
        await self._until(lambda: not self.outlet.held)
        here = sockets()
        before = here.rights.changes
        groups, errors = await here.permitted(self.identity.user, wanted.groups)
        if here.rights.changed_since(before, (self.identity.user.pk, *groups)):
            # Of one of these groups, perhaps, which this socket was not yet among the listeners of.
            here.suspect(self)
        unknown = [name for name in wanted.groups if not registry.get(name)]
        if unknown:
            errors.insert(0, protocol.unknown_families(unknown))
        for frame in errors:
            self._text(frame)
        self._text(protocol.groups_reply(self.groups, groups))
        self._replace(groups, wanted.since)

    async def _until(self, done: Callable[[], bool]) -> None:
        """Until something is so, or the client has left."""
        while not (done() or self.outlet.ended):
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    def wake(self) -> None:
        """Something has changed that may be waited for; its outlet says so, too, when it ends."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _replace(self, groups: dict[str, tuple[str, str]], since: Position | None = None) -> None:
        """In one step: what is no longer wanted is left, what is new is joined. The client has been told."""
        self.groups = groups
        if self.entry is not None:
            presence().watch(self.entry, groups)
        here = frozenset(name.encode() for name in groups)
        sockets().station.hub.subscribe(self.outlet, here, since)

    async def _refresh(self, wanted: protocol.Refresh) -> None:
        """Version 2: the socket lives on with a new token of the same user."""
        try:
            identity = await sockets().authenticate(authentication.Handshake.by(wanted.token))
        except authentication.IssuerAway as away:
            raise protocol.Refusal(f"refresh refused: {away.reason}") from None
        except authentication.Refused:
            identity = None
        if identity is None or identity.user.pk != self.identity.user.pk:
            raise protocol.Refusal("refresh refused: not a valid token of this user")
        self.identity = identity
        expires = identity.expires
        self._text(protocol.refreshed(expires.isoformat() if expires else None))
        sockets().suspect(self)  # of the old one it may have been asked already

    # Who it is, now
    # ---------------------------------------------------------------------------------------------

    def _watch(self, wait: float | None = None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = look_later(self, wait)

    # What `Sockets` asks and tells

    def hold(self, number: int) -> None:
        self.outlet.hold(sockets().station.position._replace(number=number))

    def question(self) -> tuple[authentication.Identity, Groups]:
        return self.identity, self.groups

    def answer(self, identity: authentication.Identity | None, groups: set[str]) -> None:
        if identity is None:
            self.end(Close(protocol.UNAUTHENTICATED, "the session or token has ended: log in again"))
            return
        self.identity = identity
        hub = sockets().station.hub
        if identity.tags != self.outlet.tags:
            hub.retag(self.outlet, identity.tags)
        if lost := [key for name, key in self.groups.items() if name not in groups]:
            kept = {name: key for name, key in self.groups.items() if name in groups}
            self._text(protocol.denied(lost))
            self._text(protocol.groups_reply(self.groups, kept, asked=False))
            self._replace(kept)
        self.outlet.release()
        hub.feeder.ready(self.outlet)
        self.wake()
        self._watch()

    def unanswered(self, error: Exception, held: bool) -> None:
        away = isinstance(error, Error | TimeoutError)
        if away and not held and seconds_until(self.identity.expires) > 0:
            # A database that is away for a moment is no reason to send everybody away: a change is.
            self._watch(RECHECK_SOON)
            return
        logger.warning("A socket's rights cannot be checked", exc_info=None if away else error)
        why = (
            "cannot reach its database or broker"
            if away
            else "cannot tell what you may hear: try again later"
        )
        self.end(Close(protocol.TRY_LATER, f"the server {why}"))

    def interrupted(self, reason: str) -> None:
        """Version 2 is told, version 1 is to come back and look. A change of rights may be among what was
        missed."""
        if self.version == 2:
            self.outlet.interrupted(sockets().station.position)
            self.lost(reason)
            sockets().suspect(self)
        else:
            self.end(Close(protocol.TRY_LATER, "the server lost the event stream: events may be missing"))

    # What its outlet tells

    def recovered(self, at: Position) -> None:
        names.RESUMES.labels("recovered").inc()
        self._text(protocol.recovered(at))
        self.wake()

    def lost(self, reason: str, asked: bool = False) -> None:
        """It goes on from here: what it wanted of before cannot be had."""
        names.RESUMES.labels(reason).inc()
        if self.version == 2:
            self._text(protocol.unrecoverable(sockets().station.position, reason))
            self.wake()
        else:
            self.end(Close(protocol.TOO_SLOW if reason == "retention" else protocol.TRY_LATER))

    def too_slow(self, at: Position | None) -> None:
        """Its outlet, which is not our server's, has given up on the reader."""
        self.end(Close(protocol.TOO_SLOW, reason=str(at or "")))

    def failed(self) -> None:
        self.end(Close(protocol.TRY_LATER, "the server has failed: try again later"))

    def _text(self, text: str) -> None:
        self.outlet.text(text)

    # The end
    # --------------------------------------------------------------------------------------------------------

    async def _close(self, close: Close) -> None:
        self._ending = close  # end() would cut the goodbye off
        if close.error is not None:
            self._text(protocol.error(close.error))
        if not self.direct:
            with suppress(TimeoutError):
                async with asyncio.timeout(GOODBYE_TIMEOUT):
                    await self.outlet.flush()
        await self.send({"type": "websocket.close", "code": close.code, "reason": close.reason})

    async def _goodbye(self) -> None:
        """Tell the client to come back to another process, and see the closing handshake through."""
        await self._close(Close(protocol.RESTART))
        with suppress(TimeoutError):
            async with asyncio.timeout(GOODBYE_TIMEOUT):
                while (await self.receive())["type"] != "websocket.disconnect":
                    pass

    async def _clean_up(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        sockets().discard(self)
        entry, self.entry = self.entry, None
        if self.outlet is not None:
            self.outlet.end()
            sockets().station.hub.subscribe(self.outlet, frozenset())
            if not self.direct:
                self.outlet.cancel()
        if entry is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(GOODBYE_TIMEOUT):
                    await presence().leave(entry)


def allowed_limits() -> protocol.Limits:
    """What one socket may ask for, as the settings say."""
    return protocol.Limits(
        message_bytes=conf.MESSAGE_BYTES,
        groups=conf.GROUPS_PER_SOCKET,
        nonsense_burst=conf.NONSENSE_BURST,
        nonsense_rate=conf.NONSENSE_RATE,
        message_burst=conf.MESSAGE_BURST,
        message_rate=conf.MESSAGE_RATE,
        # A subscription that may be held must be one that can be asked for.
        key_burst=max(conf.KEY_BURST, conf.GROUPS_PER_SOCKET),
        key_rate=conf.KEY_RATE,
    )


def count_refusal(error: Exception) -> None:
    """A client was not let in."""
    if isinstance(error, authentication.NoCredentials):
        reason = "nothing"
    elif isinstance(error, TooManySockets):
        reason = "quota"
    elif isinstance(error, authentication.IssuerAway):
        reason = "unavailable"
    elif isinstance(error, authentication.Refused):
        reason = "origin" if error.code == protocol.FORBIDDEN_ORIGIN else "invalid"
    else:
        reason = "unavailable"
    names.REFUSED.labels(reason).inc()


def look_later(socket: Asked, wait: float | None = None) -> asyncio.TimerHandle:
    """Look at the identity when it expires, and now and then, even if no word came that it changed."""
    wait = (conf.RECHECK_SECONDS if wait is None else wait) * random.uniform(0.8, 1.2)  # noqa: S311  (spreads load, hides nothing)
    wait = min(wait, max(seconds_until(socket.identity.expires), 0.0) + 0.05)
    return asyncio.get_running_loop().call_later(wait, sockets().look, socket)


def seconds_until(moment: datetime | None) -> float:
    return float("inf") if moment is None else (moment - timezone.now()).total_seconds()


async def serve(
    scope: Mapping[str, Any],
    receive: Callable[[], Awaitable[Message]],
    send: Callable[[Message], Awaitable[None]],
    *,
    limits: protocol.Limits | None = None,
) -> None:
    """The ASGI application of a websocket."""
    await Session(scope, receive, send, limits or allowed_limits()).run()
