"""What can be said of a project before its first request: Django's system checks, as `make test`, `migrate`
and `collectstatic` run them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from django.conf import settings
from django.contrib.staticfiles import finders
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.template import engines
from django.template.backends.django import DjangoTemplates
from django.urls.resolvers import RoutePattern

from carillon.conf import conf
from carillon.process import declared as declaration
from carillon.process import launcher

TAG = "carillon"
PROJECT = "carillon-project"
"""The distribution that a checkout deploys, with the team's code (pyproject.toml)."""
_STATIC = re.compile(r"""\{%\s*static\s+(["'])([^"'{}]+)\1""")
_PLAIN = re.compile(r"[A-Za-z0-9_/-]*")


def beginning(pattern: Any) -> str | None:
    """What every path that a route of Channels serves begins with, as far as it is plain; None: anything."""
    if isinstance(pattern, RoutePattern):
        return f"/{str(pattern).partition('<')[0]}"
    regex = str(pattern)
    if "|" in regex or (not regex.startswith("^") and not regex.endswith("$")):
        return None  # one of several, or searched for anywhere
    plain = _PLAIN.match(regex.removeprefix("^"))
    assert plain is not None
    text, rest = plain[0], regex.removeprefix("^")[plain.end() :]
    return f"/{text[:-1] if rest[:1] in tuple('?*{') else text}"


def _lost(routes: Iterable[Any], prefixes: tuple[str, ...]) -> Iterator[str]:
    """Routes that none of these paths leads to."""
    for route in routes:
        start = beginning(route.pattern)
        if start is not None and not any(start.startswith(one) or one.startswith(start) for one in prefixes):
            yield str(route.pattern)


@register(TAG)
def routes_are_reached(**_: Any) -> list[CheckMessage]:
    """nginx sends what is declared to daphne, and all else to uwsgi, which answers 404."""
    declared = launcher.declared()
    if not conf.WEBSOCKET_URLCONF or declared is declaration.NONE:
        return []
    module = import_module(conf.WEBSOCKET_URLCONF)
    found = []
    for name, key, own in (
        ("websocket_urlpatterns", "websocket_prefixes", (declaration.OWN,)),
        ("http_urlpatterns", "http_prefixes", ()),
    ):
        for route in _lost(getattr(module, name, ()), (*own, *getattr(declared, key))):
            first = route.lstrip("^/").partition("/")[0]
            hint = f'Declare where it begins in {declaration.FILE}, such as {key} = ["/{first}/"].'
            if route.lstrip("^").startswith("/"):
                hint = "Take the slash at its beginning away: Channels matches paths without it."
            where = f"{conf.WEBSOCKET_URLCONF}.{name}"
            found.append(
                Error(
                    f"{where}: nobody reaches {route!r}: nginx sends no such path to daphne",
                    hint=hint,
                    id="carillon.E001",
                )
            )
    return found


@register(Tags.security)
def browsers_keep_the_sessions_cookie(**_: Any) -> list[CheckMessage]:
    """Browsers drop one that its name does not fit, without a word: a login would last for one answer."""
    name = settings.SESSION_COOKIE_NAME
    wrong = [
        setting
        for setting, bad in (
            ("SESSION_COOKIE_SECURE", not settings.SESSION_COOKIE_SECURE),
            ("SESSION_COOKIE_DOMAIN", settings.SESSION_COOKIE_DOMAIN and name.startswith("__Host-")),
            ("SESSION_COOKIE_PATH", settings.SESSION_COOKIE_PATH != "/" and name.startswith("__Host-")),
        )
        if bad
    ]
    if not wrong or not name.startswith(("__Host-", "__Secure-")):
        return []
    return [
        Error(
            f"Browsers drop the session's cookie {name}: {', '.join(wrong)} does not fit its name",
            hint="Leave out these settings, or give the cookie another name: CARILLON_SESSION_COOKIE_NAME.",
            id="carillon.E003",
        )
    ]


@register(Tags.staticfiles)
def static_names_are_there(**_: Any) -> list[CheckMessage]:
    """A name that a template has and nobody else would be an error of its page, once names have hashes."""
    found = []
    for path in sorted(_templates()):
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue  # whoever renders it says so
        for _quote, name in _STATIC.findall(text):
            if finders.find(name) is None:
                kind = Warning if _is_a_package_s(path) else Error
                found.append(
                    kind(
                        f"{path}: there is no static file {name!r}",
                        hint="Add it to static/ of an app, or correct the name. For a template that is never "
                        'shown: SILENCED_SYSTEM_CHECKS = ["carillon.E002"].',
                        id="carillon.E002",
                    )
                )
    return found


def _is_a_package_s(template: Path) -> bool:
    """Whether it is in a package of somebody else's: that may have templates which nobody uses here."""
    _, _, inside = template.as_posix().rpartition("/site-packages/")
    owners = metadata.packages_distributions().get(inside.partition("/")[0], [])
    return bool(owners) and PROJECT not in owners


def _templates() -> Iterator[Path]:
    if "django.contrib.staticfiles" not in settings.INSTALLED_APPS:
        return
    for engine in engines.all():
        if isinstance(engine, DjangoTemplates):
            for folder in engine.template_dirs:
                yield from (path for path in Path(folder).rglob("*") if path.is_file())
