"""The browser's way to an OpenID provider and back: `carillon.accounts.oidc` between two redirects. And the
way out: by a redirect from here, or by the provider's word."""

from __future__ import annotations

import json
from typing import Any

from django.conf import settings
from django.contrib.auth import load_backend, login
from django.core import signing
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect, JsonResponse
from django.shortcuts import render, resolve_url
from django.urls import reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_GET, require_POST

from carillon.accounts import identities, logins, oidc, sessions
from carillon.accounts.kept import Away
from carillon.accounts.models import UserSession
from carillon.api.addresses import safe_target

SALT = "carillon.oidc"
SECONDS = 600
"""For which a login may be under way."""

VISIT = "carillon_oidc"
"""Where a session has its `oidc.Visit`."""

LONGEST_TARGET = 1000
ATTEMPT = "single sign-on"
"""What the log calls an attempt, of which nobody knows yet whose it is."""


@never_cache
@require_GET
def start(request: HttpRequest) -> HttpResponse:
    """To the provider; `next` is where to go afterwards, if it is ours."""
    if not oidc.is_configured():
        raise Http404
    target = request.GET.get("next", "")
    if len(json.dumps(target)) > LONGEST_TARGET:
        target = ""  # the cookie has it, and a browser keeps no cookie of more than 4096 bytes
    try:
        location, pending = oidc.begin(_back(request), safe_target(request, target))
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
        attempt = logins.admit(logins.UNTYPED + ATTEMPT, where)
    except logins.TooManyLogins as refused:
        return _failed(request, str(refused.detail), 429, Retry_After=str(refused.wait))
    try:
        claims, visit = oidc.finish(pending, request.GET.dict(), _back(request))
        user = identities.find(claims).user
    except (oidc.Failed, identities.Unwelcome) as error:
        logins.tell("wrong", ATTEMPT, where, str(error))
        return _failed(request, str(error))
    except Away as away:
        logins.untried(attempt)
        return _unavailable(request, away)
    identities.follow_groups(user, claims)
    login(request, user, backend=_backend())
    request.session[VISIT] = vars(visit)
    logins.proven(attempt)
    logins.tell("let in", user.get_username(), where, ATTEMPT)
    return HttpResponseRedirect(safe_target(request, pending.target))


def way_out(request: HttpRequest) -> str | None:
    """Where the browser goes to end its session at the provider as well; None: it has none there."""
    visit = request.session.get(VISIT)
    login_page = request.build_absolute_uri(resolve_url(settings.LOGIN_URL))
    return oidc.leave(oidc.Visit(**visit), login_page) if visit else None


# The provider has no cookie of ours: what it says is signed.
@csrf_exempt
@never_cache
@require_POST
def logged_out(request: HttpRequest) -> HttpResponse:
    """Somebody has logged out at the provider: his sessions by it end, and their sockets."""
    if not oidc.is_configured():
        raise Http404
    if not sessions.are_rows():
        why = "SESSION_ENGINE keeps no sessions as rows: nobody knows which are this user's"
        return JsonResponse({"error": "unsupported", "error_description": why}, status=400)
    try:
        claims, said = oidc.logged_out(request.POST.get("logout_token", ""))
    except oidc.Failed as error:
        return JsonResponse({"error": "invalid_request", "error_description": str(error)}, status=400)
    except Away as away:
        answer = {"error": "temporarily_unavailable", "error_description": str(away)}
        return JsonResponse(answer, status=503, headers={"Retry-After": "10"})
    if (user := identities.logged_out(claims)) is not None:
        entries = UserSession.objects.filter(user=user).select_related("session")
        visits = ((entry.session_id, entry.session.get_decoded().get(VISIT)) for entry in entries)
        ended = [key for key, visit in visits if visit and oidc.Visit(**visit).ended_by(said)]
        sessions.end_rows(ended)
    return HttpResponse()


def _backend() -> str:
    """Whose the session is: of the first backend that knows users. The gate knows none."""
    known = (path for path in settings.AUTHENTICATION_BACKENDS if hasattr(load_backend(path), "get_user"))
    return next(known)


def _back(request: HttpRequest) -> str:
    return request.build_absolute_uri(reverse("oidc-callback"))


def _cookie() -> str:
    """Beside the session's. It has a path of its own, which browsers refuse with the prefix `__Host-`."""
    return f"{settings.SESSION_COOKIE_NAME.replace('__Host-', '__Secure-')}_oidc"


def _failed(request: HttpRequest, why: str, status: int = 403, **headers: str) -> HttpResponse:
    context: dict[str, Any] = {"why": why, "login": resolve_url(settings.LOGIN_URL)}
    response = render(request, "carillon/sign_on_failed.html", context, status=status)
    for name, value in headers.items():
        response[name.replace("_", "-")] = value
    return response


def _unavailable(request: HttpRequest, away: Away) -> HttpResponse:
    why = f"The sign-on server cannot be reached now ({away}). You can log in with a password of this server."
    return _failed(request, why, 503, Retry_After="10")
