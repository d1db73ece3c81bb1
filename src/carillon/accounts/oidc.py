"""Logins by an OpenID provider: the authorization code flow with PKCE, state and nonce.

A browser is sent to the provider with a `Pending` of its own, which it keeps in a cookie; what it comes back
with is good for that one alone. What is believed of the answer is its ID token, held against the provider's
keys: neither what the browser brings along nor an e-mail address in it.

The session that follows keeps a `Visit`: a logout here goes on to the provider, and one there ends the
session (OpenID Connect RP-Initiated Logout 1.0, Back-Channel Logout 1.0).
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

LOGOUT = "http://schemas.openid.net/event/backchannel-logout"
"""What a logout token says that has happened."""


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
    end_session: str | None


@dataclass(frozen=True)
class Pending:
    """A login under way, in its browser."""

    state: str
    nonce: str
    verifier: str
    target: str


@dataclass(frozen=True)
class Visit:
    """What a session that came by the provider keeps of it. `session`, `at`: its session there, if that has a
    name, and since when, by the provider's clock; `leave`: where a browser ends that, if it can."""

    subject: str
    session: str | None
    at: float
    leave: str | None

    def ended_by(self, said: Visit) -> bool:
        """Whether the logout there was this one's. A later login is none of it, however often it is told."""
        same = said.session is None or self.session in (None, said.session)
        return self.subject == said.subject and same and self.at <= said.at


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
    return _with_query(provider.authorization, query), pending


def finish(pending: Pending, said: Mapping[str, str], redirect_uri: str) -> tuple[jwts.Claims, Visit]:
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
            token = _exchange(provider, code, pending.verifier, redirect_uri)
            claims = trust.verify(token)
        except jwts.Refused as refused:
            raise Failed(f"The ID token of the provider {refused}.") from None
    if not constant_time_compare(str(claims.all.get("nonce", "")), pending.nonce):
        raise Failed("The ID token of the provider is for another login.")
    audience = claims.all.get("aud")
    several = isinstance(audience, list) and len(audience) > 1
    if claims.all.get("azp", None if several else conf.OIDC_CLIENT_ID) != conf.OIDC_CLIENT_ID:
        raise Failed("The ID token of the provider was given to another client.")
    leave = None
    if provider.end_session:
        leave = _with_query(provider.end_session, {"id_token_hint": token, "client_id": conf.OIDC_CLIENT_ID})
    return claims, _visit(claims, leave)


def leave(visit: Visit, target: str) -> str | None:
    """Where to send the browser, to log out there and come back to `target`; None: nowhere."""
    return visit.leave and _with_query(visit.leave, {"post_logout_redirect_uri": target})


def logged_out(token: str) -> tuple[jwts.Claims, Visit]:
    """Who has logged out at the provider, as it says by a logout token. Raises Failed, Away."""
    provider = _provider()
    trust = jwts.of_provider(conf.OIDC_ISSUER, conf.OIDC_CLIENT_ID, provider.keys)
    try:
        claims = trust.verify(token, jwts.LOGOUT_TYPES)
    except jwts.Refused as refused:
        raise Failed(f"The logout token {refused}.") from None
    events = claims.all.get("events")
    if not isinstance(events, dict) or LOGOUT not in events or "nonce" in claims.all:
        raise Failed("The token speaks of no logout.")
    return claims, _visit(claims, None)


def _visit(claims: jwts.Claims, leave: str | None) -> Visit:
    session, at = claims.all.get("sid"), claims.all.get("iat")
    if not isinstance(session, str | None) or isinstance(at, bool) or not isinstance(at, int | float):
        raise Failed("The token of the provider does not say since when, or of which session, it speaks.")
    return Visit(claims.subject, session, at, leave)


def _with_query(url: str, query: Mapping[str, str]) -> str:
    return f"{url}{'&' if '?' in url else '?'}{urlencode(query)}"


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
        end = found.get("end_session_endpoint")
        end = end if isinstance(end, str) and fetch.is_safe(end) else None
        return Provider(*urls, by_form=by_form, says_issuer=says, end_session=end)

    return Kept(f"{issuer.rstrip('/')}/.well-known/openid-configuration", read)
