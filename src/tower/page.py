"""The one view: the page itself. Its modules fetch what it shows, with the session of whoever looks."""

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import ensure_csrf_cookie
from django.views.decorators.http import require_safe

from carillon.conf import conf


# The page names its modules by their hash, so a cached page would ask for files of the release before.
@never_cache
# Login and websocket both need the cookie, and a first visit has none.
@ensure_csrf_cookie
@require_safe
def page(request: HttpRequest) -> HttpResponse:
    return render(request, "tower/page.html", {"sign_on": conf.OIDC_NAME if conf.OIDC_ISSUER else ""})
