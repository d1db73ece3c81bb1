"""All sockets of this process: what reaches several of them at once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from carillon.events import access
from carillon.events.event import Event
from carillon.events.families import Family, Key
from carillon.fanout.station import Station, station
from carillon.sockets import authentication
from carillon.sockets.batching import Batched

if TYPE_CHECKING:
    from carillon.sockets.session import Session

CHANGES = 4096
"""Users and groups whose last change of rights is remembered; of the others it may have been just now."""


class Sockets:
    """The sockets of one event loop, by user and by outlet."""

    def __init__(self, here: Station) -> None:
        self.station = here
        self.changes = 0
        """Number of the last change of rights that this process has heard of: see changed_since()."""
        self._changed: dict[int | str, int] = {}  # user or group: number of its last change; the newest last
        self._forgotten = 0
        self._by_user: dict[int, set[Session]] = {}
        self._by_outlet: dict[object, Session] = {}
        self._waiting: set[Session] = set()
        here.hub.on(access.ACCESS.encode(), self._access_changed)
        here.gaps.append(self._interrupted)
        # Not the function itself: it is looked up when it is called.
        self._logins = Batched(lambda handshakes: authentication.authenticate(handshakes))
        self._rights = Batched(_allowed)

    def add(self, socket: Session) -> None:
        self._by_user.setdefault(socket.identity.user.pk, set()).add(socket)
        self._by_outlet[socket.outlet] = socket

    def discard(self, socket: Session) -> None:
        self._by_outlet.pop(socket.outlet, None)
        if socket.identity is not None:
            mine = self._by_user.get(socket.identity.user.pk)
            if mine is not None:
                mine.discard(socket)
                if not mine:
                    del self._by_user[socket.identity.user.pk]

    def wait_for(self, socket: Session, waits: bool) -> None:
        """Note whether some of the socket's groups are not live: the hub does not know of them then."""
        if waits:
            self._waiting.add(socket)
        else:
            self._waiting.discard(socket)

    def changed_since(self, before: int, user: int, groups: Iterable[str] = ()) -> bool:
        """Whether rights of this user or in these groups changed after change number `before`.

        Who asks the database about rights notes `changes` first and asks this afterwards: a change that comes
        in between does not reach a socket that is not registered for it yet.
        """
        if self.changes == before:
            return False
        return before < self._forgotten or any(
            self._changed.get(what, 0) > before for what in (user, *groups)
        )

    async def authenticate(self, handshake: authentication.Handshake) -> authentication.Identity:
        """Who a handshake is. Raises Refused, DatabaseError."""
        return await self._logins.ask(handshake)

    async def allowed(self, family: Family, user: Any, keys: set[Key]) -> set[Key]:
        """Those of a family's keys that a user may hear. Raises DatabaseError."""
        return await self._rights.ask((family, user, keys))

    def _access_changed(self, event: Event) -> None:
        """Somebody's rights have changed: those whom it concerns look again."""
        what = json.loads(event.text)
        self._note((*what["users"], *what["groups"]))
        concerned = set()
        for user in what["users"]:
            concerned |= self._by_user.get(user, set())
        for group in what["groups"]:
            for listener in self.station.hub.members(group.encode()):
                socket = self._by_outlet.get(listener)
                if socket is not None:
                    concerned.add(socket)
        concerned.update(
            socket for socket in self._waiting if not socket.groups.keys().isdisjoint(what["groups"])
        )
        for socket in concerned:
            socket.access_changed(event.number)

    def _note(self, whose: Iterable[int | str]) -> None:
        self.changes += 1
        changed = self._changed
        for each in whose:
            changed.pop(each, None)
            changed[each] = self.changes
        while len(changed) > CHANGES:
            oldest = next(iter(changed))
            self._forgotten = changed.pop(oldest)

    def _interrupted(self, reason: str) -> None:
        self.changes += 1
        self._forgotten = self.changes  # whose rights changed meanwhile is not known: perhaps everybody's
        for socket in list(self._by_outlet.values()):
            socket.interrupted(reason)


def _allowed(questions: Sequence[tuple[Family, Any, set[Key]]]) -> list[set[Key] | Exception]:
    """An answer to each; those of a family whose rule is for many, in one question to it."""
    together: dict[object, list[int]] = {}
    for place, (family, _, _) in enumerate(questions):
        together.setdefault(place if family.permitted_many is None else family, []).append(place)
    answers: list[set[Key] | Exception] = [set()] * len(questions)
    for places in together.values():
        asked = [questions[place] for place in places]
        found: Sequence[set[Key] | Exception]
        try:
            found = asked[0][0].allowed_each([(user, keys) for _, user, keys in asked])
        except Exception as error:
            found = [error] * len(asked)  # of these alone
        for place, answer in zip(places, found, strict=True):
            answers[place] = answer
    return answers


_sockets: WeakKeyDictionary[asyncio.AbstractEventLoop, Sockets] = WeakKeyDictionary()


def sockets() -> Sockets:
    """Those of the running loop."""
    loop = asyncio.get_running_loop()
    found = _sockets.get(loop)
    if found is None:
        found = _sockets[loop] = Sockets(station())
    return found
