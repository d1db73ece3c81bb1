"""A socket: the wire protocol between one client and the groups it subscribes to.

Not one of Channels' consumer classes. Events do not pass through here: the hub writes them to the socket's
outlet. What is left is a reader of the client's messages, and a timer that looks at who the user is now and
then.
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
from django.db import DatabaseError
from django.utils import timezone

from asgi_amqp.exceptions import LayerError
from asgi_amqp.position import Position
from carillon.conf import conf
from carillon.events.families import registry
from carillon.fanout.forms import Frames1, Frames2, Texts1, Texts2
from carillon.fanout.replay import Past, Unrecoverable
from carillon.fanout.station import StreamUnavailable
from carillon.sockets import authentication, protocol
from carillon.sockets.asgi_outlet import AsgiOutlet
from carillon.sockets.presence import presence
from carillon.sockets.sockets import sockets

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


class Late(Past):
    """Groups of a socket that are not live: their past comes first. `asked`: the client asked for it, and is
    told how that ended."""

    __slots__ = ("asked", "ended")

    def __init__(self, groups: frozenset[bytes], since: Position, asked: bool = False) -> None:
        super().__init__(groups, since)
        self.asked = asked
        self.ended = asyncio.Event()

    def anew(self) -> Late:
        """The same, for whoever goes on with it; to this one nothing more is written."""
        self.closed = True
        other = Late(self.groups, self.since, self.asked)
        other.ended = self.ended
        return other


class Session:
    """One connection, from handshake to goodbye.

    Each of its groups is in one of three states. *Live*: the hub writes its events as they come. *Late*: its
    past is written first, then it goes live. *Held*: somebody's rights have changed, and until the database
    has said what is left of them, nothing is written; then what was held back is late.
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
        # One change of `groups` or `identity` at a time. Never held while a past is written: a change of
        # rights must not wait for that.
        self.changing = asyncio.Lock()
        self.messages = protocol.Allowance(limits.message_burst, limits.message_rate)
        self.nonsense = protocol.Allowance(limits.nonsense_burst, limits.nonsense_rate)
        self.task: asyncio.Task[None] | None = None
        self._ending: Close | None = None
        self._gone = False
        self._timer: asyncio.TimerHandle | None = None
        self._checking: asyncio.Task[None] | None = None
        self._asked = 0  # how often it was asked to look at the identity
        self._must = False  # whether a word of changed rights was among that
        self._held = False
        self._late: list[Late] = []
        self._catching_up: asyncio.Task[None] | None = None

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
        except (DatabaseError, LayerError, TimeoutError) as error:
            logger.warning("Socket closed, to come back later: %s", type(error).__name__)
            await self._close(Close(protocol.TRY_LATER, "the server cannot reach its database or broker"))
        except Exception:
            logger.exception("A socket fails")
            await self._close(Close(protocol.TRY_LATER, "the server has failed: try again later"))
        finally:
            await self._clean_up()

    def end(self, close: Close) -> None:
        """Close this socket, from outside of its own task."""
        if self._ending is None and self.task is not None and not self.task.done():
            self._ending = close
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
                raise Close(protocol.POLICY, "too many messages")
            try:
                wanted = protocol.parse(message.get("text"), self.limits, self._xrftoken(), self.version)
                if isinstance(wanted, protocol.Refresh):
                    await self._refresh(wanted)
                elif late := await self._subscribe(wanted):
                    await late.ended.wait()
            except protocol.Refusal as refusal:
                if not self.nonsense.spend(asyncio.get_running_loop().time()):
                    raise Close(protocol.POLICY, "too many invalid messages") from None
                self._text(protocol.error(refusal.error))

    # The handshake
    # -------------------------------------------------------------------------------------------

    async def _connect(self) -> bool:
        """Accept, then say who it is or why not: a browser is shown no reason for a refused handshake."""
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
                self._too_slow,
                self._fall_behind,
                budget=conf.SOCKET_BACKLOG_BYTES,
            )
        elif self.version == 2:
            self.outlet.form = Frames2
        else:
            self.outlet.form = Frames1
        here = sockets()
        before = here.changes
        try:
            async with asyncio.timeout(conf.LOGIN_SECONDS):
                self.identity = await here.authenticate(self.handshake)
                await here.station.ready(conf.LOGIN_SECONDS)
        except authentication.Refused as refused:
            self._text(protocol.refused(refused.reason))
            await self._close(Close(refused.code))
            return False
        except (DatabaseError, LayerError, StreamUnavailable, TimeoutError) as error:
            logger.warning("A client is sent away for now: %s", type(error).__name__)
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
        self.outlet.tags = self.identity.tags
        self.entry = presence().join(self.identity.user.pk, self.address, self.handshake.user_agent)
        self.handshake = None
        here.add(self)
        if here.changed_since(before, self.identity.user.pk):
            self.access_changed(here.station.hub.number)

    # What the client says
    # ---------------------------------------------------------------------------------------

    def _xrftoken(self) -> str | None:
        """What a message must carry: only a session's socket can be opened by somebody else's page."""
        return self.csrftoken if self.identity.session_key is not None else None

    async def _subscribe(self, wanted: protocol.Subscribe) -> Late | None:
        """Replace the subscription. A group in both the old and the new one loses nothing; one that is new
        begins at `since`, or now. Returns what is on its way, where there is a `since`."""
        while self._held and self._checking is not None:
            await asyncio.wait({self._checking})
        here = sockets()
        async with self.changing:
            before = here.changes
            groups, errors = await self._permitted(
                (family, key) for family, keys in wanted.groups.items() for key in keys
            )
            if here.changed_since(before, self.identity.user.pk, groups):
                # Of one of these groups, perhaps, which this socket was not yet among the listeners of.
                self.access_changed(here.station.hub.number)
            unknown = [protocol.unknown_family(name) for name in wanted.groups if not registry.get(name)]
            late = None
            if wanted.since is not None:
                late = Late(_names(groups.keys() - self.groups.keys()), wanted.since, asked=True)
            self._replace(groups, [*unknown, *errors], late)
            return late

    async def _permitted(
        self, wanted: Iterable[tuple[str, str]]
    ) -> tuple[dict[str, tuple[str, str]], list[str]]:
        """Of (family, key)s: those that the user may hear, by group name, and an error frame for each other
        one."""
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
            if not family.asks:
                allowed = family.allowed(user, known)
            else:
                allowed = await sockets().allowed(family, user, known) if known else set()
            for text, key in keys.items():
                if key in allowed:
                    groups[f"{name}-{text}"] = (name, text)
                else:
                    errors.append(protocol.denied(name, text))
        return groups, errors

    def _replace(
        self, groups: dict[str, tuple[str, str]], errors: Iterable[str], late: Late | None = None
    ) -> None:
        """In one step: what is no longer wanted is left, what is new is joined, and the client is told."""
        old = self.groups
        for frame in errors:
            self._text(frame)
        self._text(protocol.groups_reply(old, groups))
        if late is not None:
            self._late.append(late)
        self._listen(groups)

    def _listen(self, groups: dict[str, tuple[str, str]]) -> None:
        """Be subscribed to these: those that are late as soon as they are level, the others now."""
        self.groups = groups
        if self.entry is not None:
            presence().watch(self.entry, groups)
        hub = sockets().station.hub
        wanted = _names(groups)
        for late in self._late:
            late.groups &= wanted
        self._late = [late for late in self._late if late.groups or late.asked]
        live = wanted.difference(*(late.groups for late in self._late))
        if self._held:
            if live:
                self._late.append(Late(live, Position(hub.epoch, hub.number)))
            live = frozenset()
        hub.subscribe(self.outlet, live)
        self.outlet.level = not self._held and not self._late
        sockets().wait_for(self, not self.outlet.level)
        if self._late and not self._held and self._catching_up is None:
            self._catching_up = asyncio.get_running_loop().create_task(self._catch_up())

    async def _catch_up(self) -> None:
        """Write what is late, one after the other."""
        station = sockets().station
        try:
            # Held meanwhile, or cancelled: then it is no longer this task's to write.
            while self._late and self._catching_up is asyncio.current_task():
                late = self._late[0]

                def join(late: Late = late) -> None:
                    self._leave_behind(late)
                    if late.asked:
                        self._text(protocol.recovered(station.position))

                try:
                    await station.resume(self.outlet, late, join)
                except Unrecoverable as gone:
                    self._leave_behind(late)
                    if late.asked:
                        self._text(protocol.unrecoverable(station.position, gone.reason))
                    else:
                        self.interrupted(gone.reason)
        except Exception:
            logger.exception("A socket cannot be brought up to date")
            self.end(Close(protocol.TRY_LATER, "the server has failed: try again later"))
        finally:
            if self._catching_up is asyncio.current_task():
                self._catching_up = None

    def _leave_behind(self, late: Late) -> None:
        """These groups are live from here on."""
        self._late.remove(late)
        self._listen(self.groups)
        late.ended.set()

    def _set_back(self, number: int) -> None:
        """What is live becomes late, from behind `number`."""
        hub = sockets().station.hub
        if self.outlet.groups:
            self._late.append(Late(self.outlet.groups, Position(hub.epoch, number)))

    def _fall_behind(self, number: int) -> None:
        """The reader is slower than the events: it gets them at its own pace, beginning behind `number`."""
        self._set_back(number)
        self._listen(self.groups)

    async def _refresh(self, wanted: protocol.Refresh) -> None:
        """Version 2: the socket lives on with a new token of the same user."""
        async with self.changing:
            identity = await database_sync_to_async(authentication.by_token)(wanted.token)
            if identity is None or identity.user.pk != self.identity.user.pk:
                raise protocol.Refusal("refresh refused: not a valid token of this user")
            await self._become(identity)
        expires = identity.expires
        self._text(protocol.refreshed(expires.isoformat() if expires else None))

    # Who it is, now
    # ---------------------------------------------------------------------------------------------

    def _watch(self, wait: float | None = None) -> None:
        """Look at the identity when it expires, and now and then, even if no word came that it changed."""
        if self._timer is not None:
            self._timer.cancel()
        wait = (conf.RECHECK_SECONDS if wait is None else wait) * random.uniform(0.8, 1.2)  # noqa: S311  (spreads load, hides nothing)
        left = _seconds_until(self.identity.expires)
        self._timer = asyncio.get_running_loop().call_later(min(wait, max(left, 0.0) + 0.05), self.recheck)

    def recheck(self, must: bool = False) -> None:
        """Look at the identity and the groups now; the socket goes on, with less, or ends. `must`: something
        has changed, so an answer of before will not do."""
        if self._gone:
            return
        self._asked += 1
        self._must |= must
        if self._checking is None or self._checking.done():
            self._checking = asyncio.get_running_loop().create_task(self._recheck())

    def access_changed(self, number: int) -> None:
        """Rights changed with the event at `number`. What follows it is held back until it is clear who may
        hear it, and is then read from the window: neither too much is heard nor too little."""
        if self._gone:
            return
        if not self._held:
            self._set_back(number)
            self._held = True
            # Whoever writes its past at the moment stops here, even before he hears that he is cancelled.
            self._late = [late.anew() for late in self._late]
            if self._catching_up is not None:
                self._catching_up.cancel()
                self._catching_up = None
            self._listen(self.groups)
        self.recheck(must=True)

    async def _recheck(self) -> None:
        """Is the user still who he was, and may he still hear what he subscribed to? Again, until nothing has
        changed since the last answer was asked for."""
        answered = -1
        try:
            while answered != self._asked:
                answered = self._asked
                async with self.changing:
                    identity = await database_sync_to_async(authentication.revalidate)(self.identity)
                    if identity is None:
                        self.end(
                            Close(protocol.UNAUTHENTICATED, "the session or token has ended: log in again")
                        )
                        return
                    await self._become(identity)
        except DatabaseError as error:
            # A database that is away for a moment is no reason to send everybody away: a change is, and an
            # expiry.
            if self._must or _seconds_until(self.identity.expires) <= 0:
                logger.warning("A socket's login cannot be checked: %s", type(error).__name__)
                self.end(Close(protocol.TRY_LATER, "the server cannot reach its database or broker"))
                return
            self._watch(RECHECK_SOON)
        except Exception:  # a project's rule, or its session engine
            logger.exception("A socket's rights cannot be checked")
            self.end(Close(protocol.TRY_LATER, "the server cannot tell what you may hear: try again later"))
        else:
            self._must = False
            if self._held:
                self._held = False
                self._listen(self.groups)
            self._watch()

    async def _become(self, identity: authentication.Identity) -> None:
        """Go on as this identity: hear what it may hear of what was subscribed to, and no more."""
        here = sockets()
        self.identity = identity
        if identity.tags != self.outlet.tags:
            here.station.hub.retag(self.outlet, identity.tags)
        groups, errors = await self._permitted(self.groups.values())
        if groups.keys() != self.groups.keys():
            self._replace(groups, errors)
        self._watch()

    def _text(self, text: str) -> None:
        self.outlet.text(text)

    # The end
    # --------------------------------------------------------------------------------------------------------

    def _too_slow(self, number: int) -> None:
        """An outlet that is not our server's has given up on the reader."""
        at = sockets().station.position._replace(number=number)
        self.end(Close(protocol.TOO_SLOW, reason=str(at) if number else ""))

    def interrupted(self, reason: str) -> None:
        """This process cannot know what the client missed: version 2 is told, version 1 is to come back and
        look. A change of rights may be among it."""
        if self.version == 2:
            for late in self._late:
                late.closed = True
                late.ended.set()
            self._late = []
            self._text(protocol.unrecoverable(sockets().station.position, reason))
            if self._held:
                self._listen(self.groups)
            self.access_changed(sockets().station.hub.number)
        else:
            self.end(Close(protocol.TRY_LATER, "the server lost the event stream: events may be missing"))

    async def _close(self, close: Close) -> None:
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
        self._gone = True  # whoever still looks at the identity must not bring it back to the hub
        if self._timer is not None:
            self._timer.cancel()
        for task in (self._checking, self._catching_up):
            if task is not None:
                task.cancel()
        sockets().discard(self)
        entry, self.entry = self.entry, None
        if self.outlet is not None:
            for late in self._late:
                late.closed = True
            self._late, self._held = [], False
            self._listen({})
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
    )


def _names(groups: Iterable[str]) -> frozenset[bytes]:
    return frozenset(name.encode() for name in groups)


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
    await Session(scope, receive, send, limits or allowed_limits()).run()
