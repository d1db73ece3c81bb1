"""Logins by an OpenID provider: the authorization code flow with PKCE, state and nonce.

A browser is sent to the provider with a `Pending` of its own, which it keeps in a cookie; what it comes back
with is good for that one alone. What is believed of the answer is its ID token, held against the provider's
keys: neither what the browser brings along nor an e-mail address in it.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import quote, urlencode

from django.utils.crypto import constant_time_compare

from carillon.accounts import fetch, jwts
from carillon.accounts.kept import WAITERS, Away, Kept
from carillon.conf import conf


class Failed(Exception):
    """This login comes to nothing. The text says why, as a sentence, and names nothing secret."""


@dataclass(frozen=True)
class Provider:
    """What its discovery document says. `by_form`: how it wants to be shown the client's secret."""

    authorization: str
    token: str
    keys: str
    by_form: bool
    says_issuer: bool


@dataclass(frozen=True)
class Pending:
    """A login under way, in its browser."""

    state: str
    nonce: str
    verifier: str
    target: str


def is_configured() -> bool:
    return bool(conf.OIDC_ISSUER)


def begin(redirect_uri: str, target: str) -> tuple[str, Pending]:
    """Where to send the browser, and what it keeps meanwhile. Raises Away."""
    provider = _provider()
    pending = Pending(*(secrets.token_urlsafe(32) for _ in range(3)), target)
    challenge = hashlib.sha256(pending.verifier.encode()).digest()
    query = {
        "response_type": "code",
        "client_id": conf.OIDC_CLIENT_ID,
        "redirect_uri": redirect_uri,
        "scope": conf.OIDC_SCOPE,
        "state": pending.state,
        "nonce": pending.nonce,
        "code_challenge": base64.urlsafe_b64encode(challenge).decode().rstrip("="),
        "code_challenge_method": "S256",
    }
    joint = "&" if "?" in provider.authorization else "?"
    return f"{provider.authorization}{joint}{urlencode(query)}", pending


def finish(pending: Pending, said: Mapping[str, str], redirect_uri: str) -> jwts.Claims:
    """Who has come back, by the query that he came with. Raises Failed, Away."""
    if not constant_time_compare(said.get("state", ""), pending.state):
        raise Failed("This is the answer to another login, perhaps in another tab: start again.")
    provider = _provider()
    # Whoever mixes providers up cannot name the right one (RFC 9207).
    if said.get("iss", conf.OIDC_ISSUER if not provider.says_issuer else None) != conf.OIDC_ISSUER:
        raise Failed("The answer is of another provider.")
    if error := said.get("error"):
        denied = error == "access_denied"
        raise Failed("The provider did not let you in." if denied else "The provider refused the login.")
    if not (code := said.get("code")):
        raise Failed("The answer of the provider has no code.")
    with _turn():
        trust = jwts.of_provider(conf.OIDC_ISSUER, conf.OIDC_CLIENT_ID, provider.keys)
        try:
            claims = trust.verify(_exchange(provider, code, pending.verifier, redirect_uri))
        except jwts.Refused as refused:
            raise Failed(f"The ID token of the provider {refused}.") from None
    if not constant_time_compare(str(claims.all.get("nonce", "")), pending.nonce):
        raise Failed("The ID token of the provider is for another login.")
    audience = claims.all.get("aud")
    several = isinstance(audience, list) and len(audience) > 1
    if claims.all.get("azp", None if several else conf.OIDC_CLIENT_ID) != conf.OIDC_CLIENT_ID:
        raise Failed("The ID token of the provider was given to another client.")
    return claims


def _exchange(provider: Provider, code: str, verifier: str, redirect_uri: str) -> str:
    """The ID token for a code."""
    form = {
        "grant_type": "authorization_code",
        "code": code,
        "redirect_uri": redirect_uri,
        "code_verifier": verifier,
    }
    headers = {}
    id, secret = conf.OIDC_CLIENT_ID, conf.OIDC_CLIENT_SECRET
    if secret and not provider.by_form:
        pair = f"{quote(id, safe='')}:{quote(secret, safe='')}"
        headers["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
    else:
        form["client_id"] = id
        if secret:
            form["client_secret"] = secret
    try:
        answer = fetch.post(provider.token, form, headers)
    except fetch.Unreachable as error:
        if error.status is not None and 400 <= error.status < 500:
            raise Failed("The provider does not take the code, or does not know this client.") from None
        raise Away(str(error)) from None
    token = answer.get("id_token")
    if not isinstance(token, str):
        raise Failed("The provider gives no ID token: OIDC_SCOPE has to name openid.")
    return token


_turns = threading.BoundedSemaphore(WAITERS)


@contextmanager
def _turn() -> Iterator[None]:
    """So many threads of a process may wait for the provider, whoever makes up codes. Raises Away."""
    if not _turns.acquire(blocking=False):
        raise Away("others are logging in just now")
    try:
        yield
    finally:
        _turns.release()


def _provider() -> Provider:
    """Raises Away."""
    kept = _discovered(conf.OIDC_ISSUER)
    if kept.said is None:
        if kept.due:
            kept.wait()
    elif kept.stale:
        kept.refresh()
    if kept.said is None:
        raise Away(kept.problem or "it is being asked")
    return kept.said


@lru_cache(maxsize=4)
def _discovered(issuer: str) -> Kept[Provider]:
    def read(found: dict[str, Any]) -> Provider:
        if found.get("issuer") != issuer:
            raise ValueError("it says that it is another issuer than OIDC_ISSUER")
        urls = [found.get(f"{name}") for name in ("authorization_endpoint", "token_endpoint", "jwks_uri")]
        if not all(isinstance(url, str) and fetch.is_safe(url) for url in urls):
            raise ValueError("its discovery document lacks an https:// address")
        ways = found.get("token_endpoint_auth_methods_supported")
        by_form = (
            isinstance(ways, list) and "client_secret_basic" not in ways and "client_secret_post" in ways
        )
        says = found.get("authorization_response_iss_parameter_supported") is True
        return Provider(*urls, by_form=by_form, says_issuer=says)

    return Kept(f"{issuer.rstrip('/')}/.well-known/openid-configuration", read)
