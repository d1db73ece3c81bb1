"""All sockets of this process: what reaches several of them at once."""

from __future__ import annotations

import asyncio
import contextvars
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from channels.db import database_sync_to_async

from carillon import logs
from carillon.accounts import jwts, kept
from carillon.accounts.keys import KeysDue, KeySet
from carillon.conf import conf
from carillon.events import access
from carillon.events.event import Event
from carillon.events.families import registry
from carillon.fanout.station import Station, station
from carillon.metrics import names
from carillon.metrics.sampled import sampled
from carillon.sockets import authentication, protocol, questions
from carillon.sockets.batching import Batched
from carillon.sockets.questions import Groups
from carillon.sockets.rights import Rights

LOGINS = 200
"""Handshakes that are looked at at a time. Of thousands that come at once all would be half done when the
deadline of each has passed: everybody would be sent away, to come again at once."""

TURN_SECONDS = 60.0
"""For which a handshake waits until it is looked at."""

GATHER = 0.05
"""Seconds that changes are gathered for, once an answer has come too late for the last of them."""

SLICE = 50
"""Answers that sockets are given before others have their turn."""


class Asked(Protocol):
    """What has an identity and, perhaps, groups: a socket, or one of a project's consumers."""

    identity: authentication.Identity
    outlet: object
    kind: str

    def hold(self, number: int) -> None:
        """Rights changed with the event of that number: nothing behind it may be heard by the old ones."""

    def question(self) -> tuple[authentication.Identity, Groups]:
        """What to ask the database. The same objects again: nothing has changed here."""

    def answer(self, identity: authentication.Identity | None, groups: set[str]) -> None:
        """Who it is, and which of its groups it may hear. It is no longer held."""

    def unanswered(self, error: Exception, held: bool) -> None:
        """The database could not be asked; `held`: because of a change, which may have taken rights."""

    def interrupted(self, reason: str) -> None:
        """Nobody knows what it missed."""


class TooManySockets(authentication.Refused):
    """The user has all the sockets that he may: when one has ended, there is room again."""

    def __init__(self) -> None:
        super().__init__(
            f"too many sockets of this user: {conf.SOCKETS_PER_USER} at a time are allowed",
            protocol.TRY_LATER,
        )


class Left(Exception):
    """The client has gone while it waited for its turn."""


class Sockets:
    """The sockets of one event loop, by user and by outlet."""

    def __init__(self, here: Station) -> None:
        self.station = here
        self.rights = Rights()
        self._by_user: dict[int, set[Asked]] = {}
        self._by_outlet: dict[object, Asked] = {}
        # Not the context of whoever asks: a project's consumer has a thread of its own in it. Nor does it
        # name the request that happened to come first.
        self._context = contextvars.copy_context()
        self._context.run(logs.forget)
        self._asking: asyncio.Task[None] | None = None
        self._overdue: asyncio.TimerHandle | None = None
        here.hub.on(access.ACCESS.encode(), self._access_changed)
        here.gaps.append(self._interrupted)
        # Not the functions themselves: they are looked up when they are called.
        self._logins = Batched(lambda handshakes: authentication.authenticate(handshakes))
        self._turns = asyncio.Semaphore(LOGINS)
        # A signature takes a tenth of a millisecond, and thousands may have waited for the same keys.
        self._checks = asyncio.Semaphore(SLICE)
        self._keys_asked: tuple[Future[None], asyncio.Future[None]] | None = None
        self._allowed = Batched(lambda asked: questions.allowed(asked))
        sampled(self)

    def sample(self) -> None:
        """Their part of the metrics."""
        names.SOCKETS_HELD.set(self.rights.held)

    def add(self, socket: Asked) -> None:
        self._by_user.setdefault(socket.identity.user.pk, set()).add(socket)
        self._by_outlet[socket.outlet] = socket
        names.HANDSHAKES.labels(socket.kind).inc()
        names.SOCKETS.labels(socket.kind).inc()

    def admit(self, identity: authentication.Identity) -> None:
        """Before add(): raises TooManySockets. Of nobody there may be any number."""
        user = identity.user.pk
        if user is not None and len(self._by_user.get(user, ())) >= conf.SOCKETS_PER_USER:
            names.OVER_BUDGET.labels("quota_sockets").inc()
            raise TooManySockets

    def discard(self, socket: Asked) -> None:
        self.rights.forget(socket)
        if self._by_outlet.pop(socket.outlet, None) is not None:
            names.SOCKETS.labels(socket.kind).dec()
        if socket.identity is not None:
            mine = self._by_user.get(socket.identity.user.pk)
            if mine is not None:
                mine.discard(socket)
                if not mine:
                    del self._by_user[socket.identity.user.pk]

    async def authenticate(
        self, handshake: authentication.Handshake, has_left: Callable[[], bool] = lambda: False
    ) -> authentication.Identity:
        """Who a handshake is, at most LOGIN_SECONDS after its turn has come. Raises Refused, DatabaseError,
        TimeoutError; Left, if `has_left` by then: clients wait for ten seconds, and come again. An issuer's
        keys are waited for as long, before the turn: nobody else waits for them."""
        if token := handshake.foreign_token():
            async with asyncio.timeout(conf.LOGIN_SECONDS):
                handshake.claims = await self._claims(token)
        async with asyncio.timeout(TURN_SECONDS):
            await self._turns.acquire()
        try:
            if has_left():
                raise Left
            async with asyncio.timeout(conf.LOGIN_SECONDS):
                return await self._logins.ask(handshake)
        finally:
            self._turns.release()

    async def _claims(self, token: str) -> jwts.Claims | jwts.Refused:
        """What an issuer's token says. Not in the database's thread: all would wait for the issuer."""
        trust = jwts.access()
        try:
            for _ in range(2):
                try:
                    async with self._checks:
                        await asyncio.sleep(0)
                        return trust.check(token)
                except jwts.Refused as refused:
                    return refused
                except KeysDue:
                    await asyncio.wait_for(asyncio.shield(self._fetch_keys(trust.keys)), kept.WAIT)
        except kept.Away as away:
            raise authentication.IssuerAway(away) from None
        except TimeoutError:
            pass
        raise authentication.IssuerAway("its issuer is being asked")

    def _fetch_keys(self, known: KeySet) -> asyncio.Future[None]:
        """Asks the issuer, if it is time. Once it has answered, a key that it no longer has is none. However
        many ask for the same answer, the sockets are gone through once."""
        loop = asyncio.get_running_loop()
        assert known.kept is not None  # others are never due
        asking = known.kept.refresh()
        if self._keys_asked is None or self._keys_asked[0] is not asking:

            def answered(_: Future[None]) -> None:
                with suppress(RuntimeError):  # the loop has ended meanwhile
                    loop.call_soon_threadsafe(self._keys_answered, known, context=self._context)

            asking.add_done_callback(answered)
            self._keys_asked = asking, asyncio.wrap_future(asking)
        return self._keys_asked[1]

    def _keys_answered(self, known: KeySet) -> None:
        ended = [
            socket
            for socket in self._by_outlet.values()
            if socket.identity.external_id is not None and not known.has(socket.identity.key_id)
        ]
        if ended:
            self._hold(ended, self.station.hub.number)

    async def permitted(
        self, user: Any, wanted: Mapping[str, Iterable[str]]
    ) -> tuple[dict[str, tuple[str, str]], list[str]]:
        """Of families and their keys: those groups that the user may hear, and an error for the others.
        Raises DatabaseError, and what a project's rule raises."""
        groups: dict[str, tuple[str, str]] = {}
        denied: list[tuple[str, str]] = []
        for name, texts in wanted.items():
            family = registry.get(name)
            if family is None:
                continue
            keys = {text: family.parse_key(text) for text in texts}
            known = {key for key in keys.values() if key is not None}
            if known and family.asks:
                may = await self._allowed.ask((family, user, known))
            else:
                may = family.allowed(user, known)
            for text, key in keys.items():
                if key in may:
                    groups[f"{name}-{text}"] = (name, text)
                else:
                    denied.append((name, text))
        return groups, [protocol.denied(denied)] if denied else []

    # Rights: the shell of their core

    def suspect(self, socket: Asked) -> None:
        """Its rights may have changed just now: it is held, and asked about."""
        self._hold((socket,), self.station.hub.number)

    def look(self, socket: Asked) -> None:
        """Ask about it, without a word that anything has changed."""
        self.rights.doubt(socket)
        self._ask()

    def _access_changed(self, event: Event) -> None:
        """Somebody's rights have changed: those whom it concerns are held."""
        what = json.loads(event.text)
        self.rights.changed((*what["users"], *what["groups"]))
        concerned: set[Asked] = set()
        for user in what["users"]:
            concerned |= self._by_user.get(user, set())
        for group in what["groups"]:
            for listener in self.station.hub.members(group.encode()):
                socket = self._by_outlet.get(listener)
                if socket is not None:
                    concerned.add(socket)
        self._hold(concerned, event.number)

    def _hold(self, sockets: Iterable[Asked], number: int) -> None:
        now = asyncio.get_running_loop().time()
        for socket in sockets:
            if self.rights.doubt(socket, now):
                socket.hold(number)
        if self._overdue is None:
            self._watch_overdue()
        self._ask()

    def _watch_overdue(self) -> None:
        loop = asyncio.get_running_loop()
        self._overdue = loop.call_later(1.0, self._close_overdue, context=self._context)

    def _close_overdue(self) -> None:
        self._overdue = None
        for socket in self.rights.overdue(asyncio.get_running_loop().time()):
            self.rights.forget(socket)
            socket.unanswered(TimeoutError("the database does not answer"), True)
        if self.rights.waiting and self._overdue is None:
            self._watch_overdue()

    def _ask(self) -> None:
        if self._asking is None or self._asking.done():
            loop = asyncio.get_running_loop()
            self._asking = loop.create_task(self._inquire(), context=self._context.copy())

    async def _inquire(self) -> None:
        """One question for all that wait, until nobody does."""
        rights = self.rights
        while asked := rights.ask():
            stale = False
            question = [socket.question() for socket in asked]
            if any(identity.external_id is not None for identity, _ in question):
                self._look_at_keys()
            answers: Sequence[Any]
            begun = time.perf_counter()
            try:
                answers = await database_sync_to_async(questions.again)(question)
            except Exception as error:
                answers = [error] * len(asked)
            names.RECHECK_SECONDS.observe(time.perf_counter() - begun)
            names.RECHECKED.inc(len(asked))
            for place, (socket, was, answer) in enumerate(zip(asked, question, answers, strict=True)):
                if place % SLICE == SLICE - 1:
                    await asyncio.sleep(0)
                if not rights.doubts(socket):
                    continue  # it has left
                if isinstance(answer, Exception):
                    held = rights.holds(socket)
                    rights.forget(socket)
                    socket.unanswered(answer, held)
                    continue
                if any(new is not old for new, old in zip(socket.question(), was, strict=True)):
                    rights.doubt(socket)
                if rights.answered(socket):
                    try:
                        socket.answer(*answer)
                    except Exception as error:  # nobody else is to wait for it
                        socket.unanswered(error, True)
                else:
                    stale = True
            if stale:
                await asyncio.sleep(GATHER)

    def _look_at_keys(self) -> None:
        """Now and then, though nobody comes who has to wait for it."""
        if jwts.is_configured() and (known := jwts.access().keys).stale:
            self._fetch_keys(known)

    def _interrupted(self, reason: str) -> None:
        self.rights.unknown()
        for socket in list(self._by_outlet.values()):
            socket.interrupted(reason)


_sockets: WeakKeyDictionary[asyncio.AbstractEventLoop, Sockets] = WeakKeyDictionary()


def sockets() -> Sockets:
    """Those of the running loop."""
    loop = asyncio.get_running_loop()
    found = _sockets.get(loop)
    if found is None:
        found = _sockets[loop] = Sockets(station())
    return found
