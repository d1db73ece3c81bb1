"""Who may hear what, as the database has it, and what is written to whom after it has changed.

A change is made at once, and its word is sent again and again until the queue has it, as the outbox does it.
"""

import asyncio
import itertools
import json
from types import SimpleNamespace
from unittest import mock

from carillon.client import protocol
from carillon.events import access
from carillon.events.families import Family, registry
from carillon.sockets import authentication

FAMILY = "bells"
NOBODY = SimpleNamespace(join=lambda *about: None)
"""Of presence: nobody is noted."""


class People:
    """The users of a world, one for each client. Everybody may hear everything in the beginning."""

    def __init__(self, world) -> None:
        self.world = world
        self.denied: dict[tuple[int, str], float] = {}  # user and group, since when
        self.logins: dict[int, authentication.Identity] = {}
        self.ended: dict[int, float] = {}  # token, since when it is no longer good
        self._tokens = itertools.count(1)
        self.words: dict[
            bytes, tuple[tuple, float]
        ] = {}  # by id: a user, or one in one group; and since when
        family = Family(FAMILY, ("<id>",), permitted_many=self._permitted)
        modules = [
            f"carillon.sockets.{name}.database_sync_to_async" for name in ("batching", "sockets")
        ]
        self.patches = [
            mock.patch.dict(registry._families, {FAMILY: family}),
            *(mock.patch(name, world.database.wrap) for name in modules),
            mock.patch.object(authentication, "authenticate", self._authenticate),
            mock.patch.object(authentication, "revalidate_each", self._revalidate),
            mock.patch("carillon.sockets.session.presence", return_value=NOBODY),
        ]

    def may(self, user: int, group: str) -> bool:
        return (user, group) not in self.denied

    # What the database answers

    def _permitted(self, questions):
        return [
            {key for key in keys if self.may(user.pk, f"{FAMILY}-{key.text}")} for user, keys in questions
        ]

    def _authenticate(self, handshakes):
        logins = [self.logins[int(handshake.credential().value)] for handshake in handshakes]
        return [authentication.Refused("ended") if each.token_id in self.ended else each for each in logins]

    def _revalidate(self, identities):
        return [None if each.token_id in self.ended else each for each in identities]

    # What changes

    def scope(self, user: int, outlet) -> dict:
        """Of a handshake of this user's."""
        if user not in self.logins:
            self.log_in(user)
        return {
            "subprotocols": ["carillon.v2"],
            "headers": [(b"authorization", b"Bearer %d" % user)],
            "carillon.outlet": outlet,
        }

    def log_in(self, user: int) -> None:
        """With a token that is new, and so good."""
        person = SimpleNamespace(pk=user, is_superuser=False)
        token = next(self._tokens)
        self.logins[user] = authentication.Identity(person, frozenset(), None, token_id=token)

    def change(self, user: int, chance) -> str:
        """Something about this user changes, perhaps nothing; what it is, in words."""
        now = asyncio.get_running_loop().time()
        group = chance.choice(self.world.clients[user - 1].groups)
        if chance.often(0.15):
            if user in self.logins:
                self.ended.setdefault(self.logins[user].token_id, now)
            self.tell((user,), now)
            return f"the login of user {user} ends"
        if chance.often(0.2):
            what = f"the rights of user {user} are said to have changed"
        elif self.denied.pop((user, group), None):
            what = f"user {user} may hear {group} again"
        else:
            self.denied[user, group] = now
            what = f"user {user} may no longer hear {group}"
        self.tell(chance.choice([(user,), (user, group)]), now)
        return what

    def tell(self, whom: tuple, now: float) -> None:
        """The word of a change that was made just now: of a user, or of who hears a group."""
        id = b"word%12d" % len(self.words)
        self.words[id] = whom, now
        user, *groups = whom
        text = json.dumps({"users": [] if groups else [user], "groups": groups})
        office = self.world.emitters[0]
        office.process.start(office.send(id, access.ACCESS, text))

    # What must not be

    def judge(self, socket, frames) -> None:
        """What is written to a socket, by the rights that its process has heard of."""
        groups = {each.group for each in frames if isinstance(each, protocol.Event)}
        if not groups:
            return
        client, daphne = socket.client, socket.daphne
        session = socket.owner
        known = daphne.told.get((client.user,), -1.0)
        for group in groups:
            both = client.user, group
            if both in self.denied and self.denied[both] <= max(known, daphne.told.get(both, -1.0)):
                self.world.wrong(f"{client.name} hears {group} after the word that it may not")
        if self.ended.get(session.identity.token_id, known + 1) <= known:
            self.world.wrong(f"{client.name} hears {sorted(groups)} after the word that its login has ended")
        if daphne.sockets.rights.holds(session):
            self.world.wrong(f"{client.name} hears something while its rights are not known")
