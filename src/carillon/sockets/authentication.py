"""Who is at the other end of a handshake: the first credential present decides.

1. `?token=` in the URL (the last one) 2. `Authorization: Bearer` 3. cookie `token` 4. the session cookie.
One that is present and wrong is refused; the next is not tried.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from django.conf import settings
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY, load_backend
from django.contrib.auth.models import AnonymousUser
from django.db import DataError, Error
from django.http import parse_cookie
from django.http.request import split_domain_port, validate_host
from django.utils import timezone
from django.utils.crypto import constant_time_compare

from carillon.accounts import identities, jwts, sessions
from carillon.accounts.models import ApiToken, ExternalIdentity, Team
from carillon.events.event import EVERYONE
from carillon.sockets.protocol import FORBIDDEN_ORIGIN, TRY_LATER, UNAUTHENTICATED


class Refused(Exception):
    """The handshake is refused: `reason` for the client, and the close code."""

    def __init__(self, reason: str, code: int = UNAUTHENTICATED) -> None:
        self.reason = reason
        self.code = code
        super().__init__(reason)


class NoCredentials(Refused):
    """The handshake presents nothing."""


class IssuerAway(Refused):
    """Whether the token is good cannot be told now: its issuer's keys are not here."""

    def __init__(self, why: object) -> None:
        super().__init__(f"the token cannot be checked now: {why}", TRY_LATER)


@dataclass(frozen=True)
class Credential:
    """What a handshake presents. `kind`: `token` or `session`; `by_cookie`: a browser adds it by itself."""

    kind: str
    value: str
    by_cookie: bool

    def __repr__(self) -> str:
        return f"Credential({self.kind})"


@dataclass(frozen=True)
class Identity:
    """A user, for as long as `token_id`, `session_key` or, of an issuer outside, `external_id` with `key_id`
    is good for him; with none of them it is nobody."""

    user: Any
    team_ids: frozenset[int]
    expires: datetime | None
    token_id: int | None = None
    session_key: str | None = None
    external_id: int | None = None
    key_id: str | None = None

    def __repr__(self) -> str:
        return f"Identity(user {self.user.pk})"

    @cached_property
    def tags(self) -> frozenset[str]:
        """What an event's audience is matched against."""
        if self.user.pk is None:
            return frozenset()
        rank = (EVERYONE,) if self.user.is_superuser else ()
        return frozenset((f"u{self.user.pk}", *(f"t{team}" for team in self.team_ids), *rank))


def anonymous() -> Identity:
    """Who presents nothing."""
    return Identity(AnonymousUser(), frozenset(), None)


class Handshake:
    """The parts of an ASGI scope that speak of identity."""

    def __init__(self, scope: Mapping[str, Any]) -> None:
        self._headers = [(name.lower(), value.decode("latin1")) for name, value in scope["headers"]]
        self.cookies = parse_cookie("; ".join(self._all(b"cookie")))
        self._query = scope.get("query_string", b"").decode("latin1")
        self.origin = next(iter(self._all(b"origin")), None)
        self.host = next(iter(self._all(b"host")), "")
        self.user_agent = next(iter(self._all(b"user-agent")), "")
        self.claims: jwts.Claims | jwts.Refused | None = None
        """What an issuer's token says, once it was looked at: carillon.sockets.sockets."""

    @classmethod
    def by(cls, token: str) -> Handshake:
        """Of who shows nothing but a token."""
        return cls({"headers": [(b"authorization", b"Bearer " + token.encode("latin1", "replace"))]})

    def _all(self, name: bytes) -> list[str]:
        return [value for key, value in self._headers if key == name]

    @property
    def csrftoken(self) -> str:
        return self.cookies.get(settings.CSRF_COOKIE_NAME, "")

    def foreign_token(self) -> str | None:
        """The token that it presents, if that is one of an issuer outside."""
        if jwts.is_configured():
            with suppress(Refused):
                credential = self.credential()
                if credential.kind == "token" and jwts.is_one(credential.value):
                    return credential.value
        return None

    def credential(self) -> Credential:
        """The first credential present. Raises NoCredentials when there is none, Refused."""
        try:
            in_url = parse_qs(self._query, max_num_fields=50).get("token")
        except ValueError:
            raise Refused("too many fields in the URL's query") from None
        if in_url:
            return Credential("token", in_url[-1], by_cookie=False)
        for value in self._all(b"authorization"):
            scheme, _, token = value.partition(" ")
            if scheme.lower() == "bearer" and token.strip():
                return Credential("token", token.strip(), by_cookie=False)
        if in_cookie := unquote(self.cookies.get("token", "")).strip('"'):
            return Credential("token", in_cookie, by_cookie=True)
        if session_key := self.cookies.get(settings.SESSION_COOKIE_NAME, ""):
            return Credential("session", session_key, by_cookie=True)
        raise NoCredentials("no credentials: give ?token=, an Authorization header, or log in first")


def origin_is_allowed(origin: str | None) -> bool:
    """May a page of this origin use its visitor's cookies here?

    The host counts, not the scheme: awxkit says `http://` over TLS. No origin at all is not a browser.
    """
    if origin is None:
        return True
    try:
        netloc = urlsplit(origin).netloc.lower()
    except ValueError:
        return False
    if netloc in {urlsplit(trusted).netloc.lower() for trusted in settings.CSRF_TRUSTED_ORIGINS}:
        return True
    return _is_ours(netloc)


def _is_ours(host: str) -> bool:
    """Is this server called so? As Django has it for the API, by ALLOWED_HOSTS."""
    domain, _ = split_domain_port(host.lower())
    allowed = settings.ALLOWED_HOSTS
    if settings.DEBUG and not allowed:
        allowed = [".localhost", "127.0.0.1", "[::1]"]
    return bool(domain) and validate_host(domain, allowed)


def authenticate(handshakes: Sequence[Handshake]) -> list[Identity | Exception]:
    """Who each of them is, or why not: a thousand who come back at once are a few queries. Sessions are asked
    for one by one, and may have an engine that fails. Raises django.db.Error."""
    answers: list[Identity | Exception | None] = [None] * len(handshakes)
    spelled: dict[int, str] = {}
    claimed: dict[int, jwts.Claims] = {}
    for place, handshake in enumerate(handshakes):
        try:
            if handshake.host and not _is_ours(handshake.host):
                raise Refused("forbidden Host: it is not one of this server's", FORBIDDEN_ORIGIN)
            credential = handshake.credential()
            if credential.by_cookie and not origin_is_allowed(handshake.origin):
                raise Refused("forbidden Origin: its host is not one of this server's", FORBIDDEN_ORIGIN)
            if isinstance(handshake.claims, jwts.Refused):
                raise Refused(f"the token {handshake.claims}")
            if handshake.claims is not None:
                claimed[place] = handshake.claims
            elif credential.kind == "token":
                spelled[place] = credential.value
            else:
                if (holder := _holder(credential.value)) is None:
                    raise Refused("the session has ended: log in again")
                user, end = holder
                answers[place] = Identity(user, _teams({user.pk})[user.pk], end, session_key=credential.value)
        except DataError:  # such as of a NUL in a cookie: nobody else has to hear of it
            answers[place] = Refused("the session has ended: log in again")
        except Error:
            raise
        except Exception as error:
            answers[place] = error
    found = ApiToken.find_many(set(spelled.values())) if spelled else {}
    known = identities.find_many(claimed.values()) if claimed else {}
    users = {row.user_id for row in known.values() if isinstance(row, ExternalIdentity)}
    teams = _teams(users | {token.user_id for token in found.values()})
    for place, claims in claimed.items():
        row = known[claims.who]
        if isinstance(row, identities.Unwelcome):
            answers[place] = Refused(str(row))
        elif not jwts.AccessToken(claims.expires).allows("read"):
            answers[place] = Refused("tokens of this issuer have no scope read here (JWT_SCOPE)")
        elif not jwts.access().keys.has(claims.key_id):  # its claims are from before its turn
            answers[place] = Refused("the token is signed with a key that its issuer has withdrawn")
        else:
            answers[place] = Identity(
                row.user, teams[row.user_id], claims.expires, external_id=row.pk, key_id=claims.key_id
            )
    for place, value in spelled.items():
        token = found.get(value)
        if token is None:
            answers[place] = Refused("invalid auth token")
        elif not token.allows("read"):
            answers[place] = Refused("the token's scope does not include read")
        else:
            answers[place] = Identity(token.user, teams[token.user_id], token.expires, token_id=token.pk)
    return answers


def revalidate_each(identities: Sequence[Identity]) -> list[Identity | Exception | None]:
    """The same identities as the database knows them now; None: no longer good. Some queries for all with
    tokens; sessions are asked for one by one, and may have an engine that fails. Raises DatabaseError."""
    ids = {identity.token_id for identity in identities} - {None}
    tokens = ApiToken.objects.valid().select_related("user").in_bulk(ids) if ids else {}
    holders: dict[str | None, tuple[Any, datetime] | Exception | None] = {}
    for key in {identity.session_key for identity in identities} - {None}:
        try:
            holders[key] = _holder(key)
        except Error:
            raise
        except Exception as error:
            holders[key] = error
    links = {identity.external_id for identity in identities} - {None}
    active = ExternalIdentity.objects.filter(user__is_active=True).select_related("user")
    linked = active.in_bulk(links) if links else {}
    users = {row.user_id for row in (*tokens.values(), *linked.values())}
    users.update(holder[0].pk for holder in holders.values() if isinstance(holder, tuple))
    teams = _teams(users)
    answers: list[Identity | Exception | None] = []
    for identity in identities:
        holder: Any
        if identity.session_key is not None:
            holder = holders[identity.session_key]
        elif identity.external_id is not None:
            row = linked.get(identity.external_id)
            holder = (row.user, identity.expires) if row is not None and _still_good(identity) else None
        elif identity.token_id is None:
            holder = identity
        else:
            token = tokens.get(identity.token_id)
            holder = (token.user, token.expires) if token is not None and token.allows("read") else None
        if isinstance(holder, tuple):
            user, expires = holder
            holder = replace(identity, user=user, team_ids=teams[user.pk], expires=expires)
        answers.append(holder)
    return answers


def _still_good(identity: Identity) -> bool:
    """Of an issuer's token: the time is its own, and its key may have been withdrawn."""
    in_time = identity.expires is not None and timezone.now() < identity.expires
    return in_time and jwts.is_configured() and jwts.access().keys.has(identity.key_id)


def _teams(user_ids: set[int]) -> dict[int, frozenset[int]]:
    """The teams of each of these users."""
    found: dict[int, set[int]] = {id: set() for id in user_ids}
    if user_ids:
        members = Team.members.through.objects.filter(user_id__in=user_ids)
        for user, team in members.values_list("user_id", "team_id"):
            found[user].add(team)
    return {user: frozenset(teams) for user, teams in found.items()}


def _holder(key: str) -> tuple[Any, datetime] | None:
    """Whose session it is, and when it ends. Not `django.contrib.auth.get_user`: that may change the
    session's key, and a socket sets no cookie."""
    found = sessions.find(key)
    if found is None:
        return None
    session, expires = found
    if SESSION_KEY not in session or session.get(BACKEND_SESSION_KEY) not in settings.AUTHENTICATION_BACKENDS:
        return None
    user = load_backend(session[BACKEND_SESSION_KEY]).get_user(session[SESSION_KEY])
    if user is None:
        return None
    known = session.get(HASH_SESSION_KEY, "")
    hashes = [user.get_session_auth_hash(), *user.get_session_auth_fallback_hash()]
    if not any(constant_time_compare(known, valid) for valid in hashes):
        return None
    return user, expires
