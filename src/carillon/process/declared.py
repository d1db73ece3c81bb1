"""What a project declares of itself for whoever deploys it: `carillon.toml`, beside its settings.

Development, containers and hosts are made from this one file: `dev`, the release and Ansible's roles read it
through here, and load this module as a file of its own. So: standard library only, nothing of Carillon's.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

FILE = "carillon.toml"
# Addresses that nginx gives to somebody else, in every deployment.
TAKEN = {
    "/api/": "uwsgi",
    "/events/": "the event stream",
    "/nginx/": "nginx itself",
    "/static/": "the files that nginx serves",
}
OWN = "/websocket/"  # leads to daphne without a word of the project's

# Names between slashes: nothing of it means more to nginx, in whose configuration it ends.
_PREFIX = re.compile(r"/(?:[A-Za-z0-9_-]+/)+")


class Declared(NamedTuple):
    websocket_prefixes: tuple[str, ...] = ()


def read(path: Path) -> tuple[Declared, list[str]]:
    """What the file says, and what is wrong with it, one line each. No file: nothing is declared."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Declared(), []
    except OSError as error:
        return Declared(), [f"{path}: cannot be read: {error.strerror}"]
    except ValueError as error:  # not TOML, or not UTF-8
        return Declared(), [f"{path}: is not TOML: {error}"]
    problems = [
        f"{name}: no such entry (there is {', '.join(Declared._fields)})"
        for name in values
        if name not in Declared._fields
    ]
    prefixes = values.get("websocket_prefixes", [])
    problems += prefix_problems(prefixes)
    found = Declared() if problems else Declared(tuple(prefixes))
    return found, [f"{path}: {problem}" for problem in problems]


def prefix_problems(prefixes: Any) -> list[str]:
    """What is wrong with the prefixes, each a line with what to do; empty when nginx can have them."""
    if not isinstance(prefixes, list) or not all(isinstance(prefix, str) for prefix in prefixes):
        return ['websocket_prefixes: must be a list of paths, such as ["/ws/"]']
    problems = []
    for place, prefix in enumerate(prefixes):
        if why := _problem(prefix, prefixes[:place]):
            problems.append(f"websocket_prefixes: {prefix!r} {why}")
    return problems


def _problem(prefix: str, before: list[str]) -> str | None:
    if not prefix.strip("/"):
        return "would take every page away from uwsgi: name a path for websockets alone, such as '/ws/'"
    slashed = f"/{prefix.strip('/')}/"
    if prefix != slashed and _PREFIX.fullmatch(slashed):
        return f"must begin and end with one slash: write {slashed!r}"
    if not _PREFIX.fullmatch(prefix):
        return (
            "is a path and no pattern: between its slashes are letters, digits, '_' and '-', such as '/ws/'"
            " (what follows it is the routing's to say)"
        )
    if prefix.startswith(OWN):
        return f"leads to daphne already, with all of {OWN}: leave it out"
    for taken, whose in TAKEN.items():
        if prefix.startswith(taken):
            return f"lies in {taken}, which leads to {whose}: choose another, such as '/ws/'"
    for other in before:
        if prefix.startswith(other) or other.startswith(prefix):
            return f"overlaps with {other!r}: keep the shorter one"
    return None
