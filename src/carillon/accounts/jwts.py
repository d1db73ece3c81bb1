"""JSON Web Tokens of an issuer outside: who they speak of, or why they are refused.

An access token of the issuer that `JWT_ISSUER` names is good wherever one of Carillon's own is: in the API,
at a handshake, in `refresh`. What is believed is what a key of the issuer's has signed, for our audience,
now. What the token says of where its key is (`jku`, `x5u`, `jwk`) is not read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from django.core.exceptions import ImproperlyConfigured

from carillon.accounts import tokens
from carillon.accounts.kept import Away
from carillon.accounts.keys import FITS, KeysDue, KeySet, Unfit, jwt
from carillon.conf import conf

SKEW = 10
"""Seconds that an issuer's clock may be ahead of ours: of `nbf` and `iat`. `exp` is held to the second."""

LONGEST_TEXT = 255
"""Characters of an issuer or a subject: what the database has room for."""

# Others that are signed by the same keys are no access tokens: of a logout, say, or of a proof of possession.
_TYPES = frozenset({"jwt", "at+jwt", "application/at+jwt"})
LOGOUT_TYPES = frozenset({"jwt", "logout+jwt"})


class Refused(Exception):
    """The token is not good. The text says why, as the end of a sentence about it."""


@dataclass(frozen=True)
class Claims:
    """What a token that is good says. `key_id`: of the key that it was good by."""

    issuer: str
    subject: str
    expires: datetime
    key_id: str | None
    all: Mapping[str, Any] = field(repr=False, compare=False)

    @property
    def who(self) -> tuple[str, str]:
        """Issuer and subject: who it is, whatever he is called."""
        return self.issuer, self.subject

    @property
    def name(self) -> str:
        """What a user that is made for it would like to be called; "" for nothing."""
        name = self.all.get(conf.IDENTITY_NAME_CLAIM)
        return name if isinstance(name, str) else ""


@dataclass(frozen=True)
class AccessToken:
    """`request.auth` of who came by one."""

    expires: datetime

    def allows(self, scope: str) -> bool:
        return scope in conf.JWT_SCOPE.split()


@dataclass(frozen=True)
class Trust:
    """Who is believed, and what is to be for whom."""

    issuer: str
    audience: str
    keys: KeySet
    algorithms: tuple[str, ...]

    def check(self, token: str, types: frozenset[str] = _TYPES) -> Claims:
        """What it says. Asks nobody. Raises Refused, KeysDue, Away."""
        if len(token) > tokens.LONGEST:
            raise Refused(f"is longer than {tokens.LONGEST} bytes")
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.PyJWTError, ValueError, RecursionError):
            raise Refused("is no JSON Web Token") from None
        algorithm, id = header.get("alg"), header.get("kid")
        if algorithm not in self.algorithms:
            raise Refused(f"is not signed by one of {', '.join(self.algorithms)}")
        if "crit" in header or not isinstance(id, str | None):
            raise Refused("has a header that is not understood")
        if str(header.get("typ", "jwt")).lower() not in types:
            raise Refused("is of another type")
        try:
            key = self.keys.find(id, algorithm)
        except Unfit as unfit:
            raise Refused(f"is refused: {unfit}") from None
        said = self._decoded(token, key.public)
        if "cnf" in said:
            raise Refused("belongs to a key that a bearer does not show (cnf)")
        subject = said["sub"]
        if not 0 < len(subject) <= LONGEST_TEXT or not subject.isprintable():
            raise Refused("has a subject that cannot be stored")
        try:
            expires = datetime.fromtimestamp(said["exp"], UTC)
        except (OverflowError, ValueError, OSError, TypeError):
            raise Refused("has no time at which it ends") from None
        if expires <= datetime.now(UTC):
            raise Refused("has expired")
        return Claims(self.issuer, subject, expires, id, said)

    def _decoded(self, token: str, key: Any) -> dict[str, Any]:
        try:
            return jwt.decode(
                token,
                key,
                algorithms=list(self.algorithms),
                audience=self.audience,
                issuer=self.issuer,
                leeway=SKEW,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except jwt.ExpiredSignatureError:
            why = "has expired"
        except jwt.ImmatureSignatureError:
            why = "is not good yet"
        except jwt.InvalidAudienceError:
            why = "is for another audience"
        except jwt.InvalidIssuerError:
            why = "is of another issuer"
        except jwt.MissingRequiredClaimError as error:
            why = f"does not say {error.claim}"
        except jwt.InvalidSignatureError:
            why = "has a wrong signature"
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError):
            why = "is malformed"
        raise Refused(why)

    def verify(self, token: str, types: frozenset[str] = _TYPES) -> Claims:
        """What it says; for a thread that may wait a moment for keys. Raises Refused, Away."""
        kept = self.keys.kept
        if kept is not None and kept.stale:
            kept.refresh()
        try:
            return self.check(token, types)
        except KeysDue:
            assert kept is not None  # others are never due
            kept.wait()
        try:
            return self.check(token, types)
        except KeysDue:
            raise Away("its issuer is being asked") from None


def is_configured() -> bool:
    """Whether anybody's are taken here."""
    return bool(conf.JWT_ISSUER)


def is_one(token: str) -> bool:
    """Whether it is to be looked at as one. Carillon's own tokens have no dots."""
    return is_configured() and token.count(".") == 2


def access() -> Trust:
    """What access tokens are held against."""
    return _trust(conf.JWT_ISSUER, conf.JWT_AUDIENCE, _spelled(conf.JWT_KEYS), tuple(conf.JWT_ALGORITHMS))


def of_provider(issuer: str, audience: str, keys_url: str) -> Trust:
    """What a provider's ID tokens are held against."""
    return _trust(issuer, audience, keys_url, tuple(conf.JWT_ALGORITHMS))


def _spelled(keys: str | Mapping[str, Any]) -> str:
    return keys if isinstance(keys, str) else json.dumps(keys, sort_keys=True)


# One set of keys for each source in a process: what is known of it is known to all.
@lru_cache(maxsize=8)
def _keys(source: str) -> KeySet:
    return KeySet(json.loads(source) if source.startswith("{") else source)


@lru_cache(maxsize=8)
def _trust(issuer: str, audience: str, source: str, algorithms: tuple[str, ...]) -> Trust:
    return Trust(issuer, audience, _keys(source), algorithms)


def check_settings() -> None:
    """Raises ImproperlyConfigured: before the first token comes, not with it."""
    if not (conf.JWT_ISSUER or conf.OIDC_ISSUER):
        return
    if jwt is None:
        raise ImproperlyConfigured("JWT_ISSUER and OIDC_ISSUER need PyJWT: install django-carillon[oidc]")
    if unknown := set(conf.JWT_ALGORITHMS) - FITS.keys():
        raise ImproperlyConfigured(
            f"JWT_ALGORITHMS: {', '.join(sorted(unknown))} is none with a public key: "
            f"there are {', '.join(FITS)}"
        )
    if conf.JWT_ISSUER and not (conf.JWT_AUDIENCE and conf.JWT_KEYS and conf.JWT_ALGORITHMS):
        raise ImproperlyConfigured("JWT_ISSUER needs JWT_AUDIENCE, JWT_KEYS and JWT_ALGORITHMS")
    if conf.OIDC_ISSUER and not conf.OIDC_CLIENT_ID:
        raise ImproperlyConfigured("OIDC_ISSUER needs OIDC_CLIENT_ID")
    if conf.OIDC_ADMIN_GROUP and not conf.OIDC_GROUPS_CLAIM:
        raise ImproperlyConfigured("OIDC_ADMIN_GROUP needs OIDC_GROUPS_CLAIM")
    if conf.IDENTITY_USERS not in ("create", "known"):
        raise ImproperlyConfigured("IDENTITY_USERS is neither 'create' nor 'known'")
    if conf.JWT_ISSUER:
        try:
            if not isinstance(conf.JWT_KEYS, str) and not access().keys.has(None):
                raise ImproperlyConfigured("JWT_KEYS has no key that is good for signatures")
        except ValueError as error:
            raise ImproperlyConfigured(f"JWT_KEYS: {error}") from None
