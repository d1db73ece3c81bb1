"""The browser's way to an OpenID provider and back: `carillon.accounts.oidc` between two redirects."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.contrib.auth import load_backend, login
from django.core import signing
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import render, resolve_url
from django.urls import reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET

from carillon.accounts import identities, logins, oidc
from carillon.accounts.kept import Away
from carillon.api.addresses import safe_target

SALT = "carillon.oidc"
SECONDS = 600
"""For which a login may be under way."""

LONGEST_TARGET = 1000
ATTEMPT = "single sign-on"
"""What the budget of logins calls an attempt, of which nobody knows yet whose it is. No user's name has a
space."""


@never_cache
@require_GET
def start(request: HttpRequest) -> HttpResponse:
    """To the provider; `next` is where to go afterwards, if it is ours."""
    if not oidc.is_configured():
        raise Http404
    target = request.GET.get("next", "")
    try:
        location, pending = oidc.begin(_back(request), safe_target(request, target[:LONGEST_TARGET]))
    except Away as away:
        return _unavailable(request, away)
    response = HttpResponseRedirect(location)
    response.set_cookie(
        _cookie(),
        signing.dumps(vars(pending), salt=SALT),
        max_age=SECONDS,
        path=reverse("oidc"),
        secure=settings.SESSION_COOKIE_SECURE,
        httponly=True,
        samesite="Lax",
    )
    return response


@never_cache
@require_GET
def callback(request: HttpRequest) -> HttpResponse:
    """Back from the provider: a session as by a password, or a page that says why not. What the browser had
    kept is good for once."""
    if not oidc.is_configured():
        raise Http404
    response = _finish(request)
    response.delete_cookie(_cookie(), path=reverse("oidc"), samesite="Lax")
    return response


def _finish(request: HttpRequest) -> HttpResponse:
    try:
        kept = signing.loads(request.COOKIES.get(_cookie(), ""), salt=SALT, max_age=SECONDS)
        pending = oidc.Pending(**kept)
    except signing.BadSignature:
        return _failed(request, "This browser has no login under way, or it took too long: start again.")
    where = logins.place(request)
    try:
        attempt = logins.admit(ATTEMPT, where)
        claims = oidc.finish(pending, request.GET.dict(), _back(request))
        user = identities.find(claims).user
    except (oidc.Failed, identities.Unwelcome) as error:
        logins.tell("wrong", ATTEMPT, where, str(error))
        return _failed(request, str(error))
    except logins.TooManyLogins as refused:
        return _failed(request, str(refused.detail), 429, Retry_After=str(refused.wait))
    except Away as away:
        return _unavailable(request, away)
    identities.follow_groups(user, claims)
    login(request, user, backend=_backend())
    logins.proven(attempt)
    logins.tell("let in", user.get_username(), where, ATTEMPT)
    return HttpResponseRedirect(safe_target(request, pending.target))


def _backend() -> str:
    """Whose the session is: of the first backend that knows users. The gate knows none."""
    known = (path for path in settings.AUTHENTICATION_BACKENDS if hasattr(load_backend(path), "get_user"))
    return next(known)


def _back(request: HttpRequest) -> str:
    return request.build_absolute_uri(reverse("oidc-callback"))


def _cookie() -> str:
    return f"{settings.SESSION_COOKIE_NAME}_oidc"


def _failed(request: HttpRequest, why: str, status: int = 403, **headers: str) -> HttpResponse:
    context: dict[str, Any] = {"why": why, "login": resolve_url(settings.LOGIN_URL)}
    response = render(request, "carillon/sign_on_failed.html", context, status=status)
    for name, value in headers.items():
        response[name.replace("_", "-")] = value
    return response


def _unavailable(request: HttpRequest, away: Away) -> HttpResponse:
    why = f"The sign-on server cannot be reached now ({away}). You can log in with a password of this server."
    return _failed(request, why, 503, Retry_After="10")
