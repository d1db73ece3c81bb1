"""What is said of a project before its first request: of routes and of static files."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from django.core.checks import Error, Warning, run_checks
from django.core.management import CommandError, call_command
from django.urls import path, re_path

from carillon import checks
from carillon.process.declared import Declared

ROOT = Path(__file__).parents[3]
DECLARED = Declared(websocket_prefixes=("/ws/chat/",), http_prefixes=("/live/",))


def view():
    """Whatever serves it."""


@pytest.fixture
def routing(settings, monkeypatch):
    """routing(websocket=[…], http=[…]) is what the check says."""

    def routing(websocket=(), http=(), declared=DECLARED):
        module = ModuleType("their_routing")
        module.websocket_urlpatterns, module.http_urlpatterns = list(websocket), list(http)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(checks.launcher, "declared", lambda: declared)
        settings.CARILLON = {**settings.CARILLON, "WEBSOCKET_URLCONF": module.__name__}
        return [(found.msg, found.hint) for found in run_checks(tags=["carillon"])]

    return routing


@pytest.mark.parametrize(
    "route",
    [
        path("websocket/yours/<int:pk>/", view),
        path("ws/chat/<room>/", view),
        path("ws/<kind>/", view),  # some of them
        path("<path:all>", view),
        re_path(r"ws/chat/(?P<room>\w+)/$", view),
        re_path(r"^ws/chat/(?P<room>\w+)/$", view),
        re_path(r"^ws/cha?t/", view),
        re_path(r"^(ws|live)/", view),
        re_path(r"^chat/|^ws/chat/", view),
        re_path(r"anywhere", view),
        re_path(r"", view),
    ],
)
def test_a_route_that_is_reached_is_no_problem(routing, route):
    assert routing([route]) == []


@pytest.mark.parametrize(
    ("route", "first"),
    [
        (path("chat/<room>/", view), "chat"),
        (path("ws/notifications/", view), "ws"),
        (re_path(r"^socket/(?P<room>\w+)/$", view), "socket"),
        (re_path(r"socket/(?P<room>\w+)/$", view), "socket"),
        (path("live/<room>/", view), "live"),  # it is declared for the other kind
    ],
)
def test_a_route_that_nobody_reaches_is_named_with_what_to_do(routing, route, first):
    ((said, hint),) = routing([route])
    assert repr(str(route.pattern)) in said
    assert said.startswith("their_routing.websocket_urlpatterns: nobody reaches")
    assert hint == f'Declare where it begins in carillon.toml, such as websocket_prefixes = ["/{first}/"].'


def test_a_slash_at_the_beginning_is_named(routing):
    ((_, hint),) = routing([re_path(r"^/ws/chat/$", view)])
    assert hint.startswith("Take the slash at its beginning away")


def test_http_consumers_likewise(routing):
    assert routing(http=[path("live/<room>/", view)]) == []
    ((said, hint),) = routing(http=[path("websocket/<room>/", view)])
    assert "http_urlpatterns" in said
    assert "http_prefixes = [" in hint


def test_where_there_is_no_carillon_toml_somebody_else_routes(routing):
    assert routing([path("chat/", view)], declared=checks.declaration.NONE) == []


@pytest.mark.parametrize(("owner", "kind"), [(None, Error), (checks.PROJECT, Error), ("a-package", Warning)])
def test_a_package_s_own_template_stops_nothing(settings, tmp_path, monkeypatch, owner, kind):
    folder = tmp_path / "site-packages" / "bells" / "templates" if owner else tmp_path
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "page.html").write_text("{% load static %}{% static 'bells/none.png' %}")
    settings.TEMPLATES = [{**settings.TEMPLATES[0], "DIRS": [folder]}]
    monkeypatch.setattr(checks.metadata, "packages_distributions", lambda: {"bells": [owner]})
    (found,) = run_checks(tags=["staticfiles"])
    assert type(found) is kind


def test_the_project_is_called_as_its_checkout_calls_it():
    described = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert described["project"]["name"] == checks.PROJECT


@pytest.mark.parametrize(
    ("name", "setting", "value", "refused"),
    [
        ("__Host-s", "SESSION_COOKIE_DOMAIN", ".bells.example", True),
        ("__Host-s", "SESSION_COOKIE_PATH", "/bells", True),
        ("__Host-s", "SESSION_COOKIE_SECURE", False, True),
        ("__Secure-s", "SESSION_COOKIE_SECURE", False, True),
        ("__Secure-s", "SESSION_COOKIE_DOMAIN", ".bells.example", False),
        ("s", "SESSION_COOKIE_SECURE", False, False),
    ],
)
def test_a_session_s_cookie_that_browsers_drop(settings, name, setting, value, refused):
    settings.SESSION_COOKIE_NAME = name
    assert run_checks(tags=["security"]) == []
    setattr(settings, setting, value)
    found = run_checks(tags=["security"])
    assert [each.id for each in found] == (["carillon.E003"] if refused else [])
    assert all(setting in each.msg for each in found)


def test_static_names_that_nobody_has_stop_the_build(settings, tmp_path):
    settings.TEMPLATES = [{**settings.TEMPLATES[0], "DIRS": [tmp_path]}]
    page = tmp_path / "page.html"
    page.write_text("{% load static %}{% static 'carillon/error.css' %}{% static name %}")
    assert [found for found in run_checks(tags=["staticfiles"]) if found.id == "carillon.E002"] == []
    page.write_text("<img src=\"{%static 'bells/none.png' %}\">")
    (found,) = run_checks(tags=["staticfiles"])
    assert found.msg == f"{page}: there is no static file 'bells/none.png'"
    settings.STATIC_ROOT = str(tmp_path / "static")
    with pytest.raises(CommandError, match=r"no static file 'bells/none.png'"):
        call_command("collectstatic", "--no-input", skip_checks=False)
    assert not (tmp_path / "static").exists()
