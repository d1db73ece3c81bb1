"""Public keys of an issuer, by id.

    find() ── a key that fits
           ── KeysDue: the id is unknown, and the issuer may be asked (carillon.accounts.kept)
           ── Unfit: the id is unknown, and the issuer has been asked just now
           ── Away: nobody knows, because the issuer does not answer

So tokens with ids that were made up cost one request in ten seconds, however many they are. Who waits for
it is who has such a token: a key that is known is found at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

try:
    import jwt
except ImportError:  # the extra `oidc`: carillon.accounts.jwts says so, where it is needed
    jwt = None

from carillon.accounts.kept import Away, Kept

MOST = 100
"""Keys of one issuer."""

FITS: dict[str, tuple[str, frozenset[str]]] = {
    "RS256": ("RSA", frozenset()),
    "RS384": ("RSA", frozenset()),
    "RS512": ("RSA", frozenset()),
    "PS256": ("RSA", frozenset()),
    "PS384": ("RSA", frozenset()),
    "PS512": ("RSA", frozenset()),
    "ES256": ("EC", frozenset({"P-256"})),
    "ES384": ("EC", frozenset({"P-384"})),
    "ES512": ("EC", frozenset({"P-521"})),
    "EdDSA": ("OKP", frozenset({"Ed25519", "Ed448"})),
}
"""Algorithms, all of them with a public key, to the type of key and the curves that they go with."""

RSA_BITS = 2048


class Unfit(Exception):
    """There is no key for this token. The text says why."""


class KeysDue(Exception):
    """Perhaps there is one: the issuer is to be asked first."""


@dataclass(frozen=True)
class Key:
    """`algorithm`: the only one that it is for; None: any of its type."""

    id: str | None
    type: str
    curve: str | None
    algorithm: str | None
    public: Any

    def fits(self, algorithm: str) -> bool:
        type, curves = FITS[algorithm]
        return (
            self.type == type and (not curves or self.curve in curves) and self.algorithm in (None, algorithm)
        )


def parse(found: Mapping[str, Any]) -> tuple[Key, ...]:
    """The keys of a JSON Web Key Set that are good for signatures; others are left out, for a set may have
    some for other purposes. Raises ValueError when it is no set."""
    listed = found.get("keys")
    if not isinstance(listed, list):
        raise ValueError("it is no set of keys: it has no list `keys`")
    keys = []
    for item in listed[:MOST]:
        if not isinstance(item, dict) or item.get("use", "sig") != "sig" or "d" in item:
            continue  # `d`: a private key. Who shows it to everybody cannot prove anything by it.
        id, type, algorithm = item.get("kid"), item.get("kty"), item.get("alg")
        fitting = [name for name, (kind, _) in FITS.items() if kind == type]
        if not fitting or algorithm not in (None, *fitting) or not isinstance(id, str | None):
            continue
        try:
            # Which algorithm is asked for decides nothing here but how the key is read.
            public = jwt.PyJWK(item, algorithm=algorithm or fitting[0]).key
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError):
            continue
        if type == "RSA" and public.key_size < RSA_BITS:
            continue
        keys.append(Key(id, type, item.get("crv"), algorithm, public))
    return tuple(keys)


class KeySet:
    """Those of one issuer. Any thread may use it."""

    def __init__(self, source: str | Mapping[str, Any], clock: Callable[[], float] = time.monotonic) -> None:
        """`source`: the URL of a set, or the set itself, which stays. Raises ValueError."""
        self.kept = Kept(source, parse, clock) if isinstance(source, str) else None
        self._fixed = () if isinstance(source, str) else parse(source)

    @property
    def _keys(self) -> tuple[Key, ...]:
        return self._fixed if self.kept is None else self.kept.said or ()

    def find(self, id: str | None, algorithm: str) -> Key:
        """The key of a token. Raises Unfit, KeysDue, Away."""
        fitting = [key for key in self._keys if key.fits(algorithm)]
        named = [key for key in fitting if key.id == id]
        if id is not None and named:
            return named[0]
        if id is None and len(fitting) == 1:
            return fitting[0]
        if self.kept is not None:
            if self.kept.due:
                raise KeysDue
            if self.kept.problem:
                raise Away(self.kept.problem)
        if id is None and fitting:
            raise Unfit("it does not say which key it is signed with (no kid)")
        raise Unfit("it is signed with a key that its issuer does not have")

    def has(self, id: str | None) -> bool:
        """Whether a token that was good by this key still is."""
        return any(id is None or key.id == id for key in self._keys)

    @property
    def stale(self) -> bool:
        """Whether it is time to ask again, though nobody has to wait for it."""
        return self.kept is not None and self.kept.stale
