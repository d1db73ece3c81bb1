"""Addresses in the REST API, as an answer or an event names them: below the path that a proxy in front shows
Carillon at."""

from django.urls import get_script_prefix


def api(path: str) -> str:
    """The address of `path` ("jobs/42/") in the API."""
    return f"{get_script_prefix()}api/v2/{path}"
