"""Addresses in the REST API, as an answer or an event names them: below the path that a proxy in front shows
Carillon at."""

from django.conf import settings
from django.http import HttpRequest
from django.shortcuts import resolve_url
from django.urls import get_script_prefix
from django.utils.http import url_has_allowed_host_and_scheme


def api(path: str) -> str:
    """The address of `path` ("jobs/42/") in the API."""
    return f"{get_script_prefix()}api/v2/{path}"


def safe_target(request: HttpRequest, wanted: object) -> str:
    """Where to go after a login: where it was `wanted`, if that is ours."""
    # What cannot be printed is no address, and half a surrogate is not even a header.
    if isinstance(wanted, str) and wanted and wanted.isprintable():
        here = {request.get_host()}
        if url_has_allowed_host_and_scheme(wanted, here, require_https=request.is_secure()):
            return wanted
    return resolve_url(settings.LOGIN_REDIRECT_URL)
