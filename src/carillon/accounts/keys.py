"""Public keys of an issuer, by id: asked for when they are needed, kept, and not asked for again and again.

    find() ── a key that fits
           ── KeysDue: the id is unknown, and the issuer has not been asked for AGAIN seconds: refresh()
           ── Unfit: the id is unknown, and the issuer has been asked just now
           ── Away: nobody knows, because the issuer does not answer

So tokens with ids that were made up cost one request in AGAIN seconds, however many they are. Who waits for
it is who has such a token: a key that is known is found at once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

try:
    import jwt
except ImportError:  # the extra `oidc`: carillon.accounts.jwts says so, where it is needed
    jwt = None  # type: ignore[assignment]

from carillon.accounts import fetch

logger = logging.getLogger(__name__)

AGAIN = 10.0
"""Seconds between two questions to an issuer, whatever happens."""

FRESH = 300.0
"""Seconds after which it is asked again, while what it said still counts."""

KEPT = 24 * 3600.0
"""Seconds for which it counts while the issuer does not answer: after them, who took its place may have
withdrawn a key for a reason."""

MOST = 100
"""Keys of one issuer."""

WAIT = fetch.SECONDS + 1.0
"""Seconds that one waits for an answer."""

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
    """Perhaps there is one: refresh() first."""


class Away(Exception):
    """Whether there is one cannot be told now. The text says why."""


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
            self.type == type
            and (not curves or self.curve in curves)
            and self.algorithm in (None, algorithm)
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

    def __init__(
        self, source: str | Mapping[str, Any], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`source`: the URL of a set, or the set itself, which stays. Raises ValueError."""
        self._url = source if isinstance(source, str) else None
        self._clock = clock
        self._lock = threading.Lock()
        self._asking: Future[None] | None = None
        self._asked = self._answered = float("-inf")
        self._problem = ""
        self._keys: tuple[Key, ...] = () if isinstance(source, str) else parse(source)
        # Of threads that have nothing else to do: see wait().
        self._waiters = threading.BoundedSemaphore(2)

    def find(self, id: str | None, algorithm: str) -> Key:
        """The key of a token. Raises Unfit, KeysDue, Away."""
        fitting = [key for key in self._keys if key.fits(algorithm)] if self._counts() else []
        named = [key for key in fitting if key.id == id]
        if id is not None and named:
            return named[0]
        if id is None and len(fitting) == 1:
            return fitting[0]
        if self._url is not None:
            if self._may_ask() or self._asking is not None:
                raise KeysDue
            if self._problem:
                raise Away(self._problem)
        if id is None and fitting:
            raise Unfit("it does not say which key it is signed with (no kid)")
        raise Unfit("it is signed with a key that its issuer does not have")

    def has(self, id: str | None) -> bool:
        """Whether a token that was good by this key still is."""
        return self._counts() and any(id is None or key.id == id for key in self._keys)

    @property
    def stale(self) -> bool:
        """Whether it is time to ask, though nobody has to wait for it."""
        return self._url is not None and self._clock() - self._answered >= FRESH and self._may_ask()

    def _counts(self) -> bool:
        return self._url is None or self._clock() - self._answered < KEPT

    def _may_ask(self) -> bool:
        return self._asking is None and self._clock() - self._asked >= AGAIN

    def refresh(self) -> Future[None]:
        """Asks the issuer, in a thread of its own, unless somebody does already: done when it has answered,
        or has not. It raises nothing: find() knows what came of it."""
        with self._lock:
            if self._asking is not None:
                return self._asking
            done: Future[None] = Future()
            if not self._may_ask():
                done.set_result(None)
                return done
            self._asked = self._clock()
            self._asking = done
        threading.Thread(target=self._ask, args=(done,), name="identity-keys", daemon=True).start()
        return done

    def wait(self) -> None:
        """refresh(), for a thread that waits. Two of a process may: the others, of whom a server has few,
        have better things to do. Raises Away."""
        if not self._waiters.acquire(blocking=False):
            raise Away("its keys are being fetched")
        try:
            self.refresh().result(WAIT)
        except TimeoutError:
            raise Away("its keys are being fetched") from None
        finally:
            self._waiters.release()

    def _ask(self, done: Future[None]) -> None:
        problem, keys = "", self._keys
        try:
            keys = parse(fetch.get(self._url or ""))
        except (fetch.Unreachable, ValueError) as error:
            problem = str(error)
        except Exception:
            problem = "its keys cannot be read"
            logger.exception("Keys of an issuer cannot be read")
        if problem and problem != self._problem:
            logger.warning("Keys of an issuer cannot be fetched: %s", problem)
        with self._lock:
            self._problem = problem
            if not problem:
                self._keys, self._answered = keys, self._clock()
            self._asking = None
        done.set_result(None)
