"""`carillon new mysite`: a repository of a team's own, which names Carillon in one line.

Standard library only: it runs where nothing is installed, too.
"""

from __future__ import annotations

import argparse
import keyword
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

STARTER = Path(__file__).parent / "starter"
# Else one `-tpl` would be a module of Carillon's, and a linter's.
SUFFIX = "-tpl"
VERSION = "carillon.version"
# Importable where the project runs, and so no name for a package of the team's: Carillon's own, and what its
# lock brings (tests/unit/dev/test_new.py compares).
TAKEN = frozenset(
    """
    aio_pika aiormq anyio asgi_amqp asgiref attr attrs autobahn automat carillon cbor2 certifi cffi
    channels charset_normalizer constantly cryptography daphne django django_stubs_ext django_tasks
    drf_spectacular drf_spectacular_sidecar google hyperlink idna incremental inflection jsonschema
    jsonschema_specifications jwt msgpack multidict opentelemetry packaging pamqp project
    prometheus_client propcache psycopg psycopg_binary pycparser pyuwsgi referencing requests
    rest_framework rpds service_identity sqlparse supervisor test tests tower twisted txaio
    typing_extensions ujson uritemplate urllib3 uwsgi uwsgidecorators watchfiles websockets yaml yarl zope
    """.split()  # noqa: SIM905 - a list of words
)
_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
_FETCH_SECONDS = 600


class Refused(Exception):
    """One line: what is wrong, and what to do. Nothing was touched."""


def name_problem(name: str) -> str | None:
    """Why this cannot be the name of the project's package."""
    if not _NAME.fullmatch(name) or keyword.iskeyword(name):
        return "is no name of a Python package: lower-case letters, digits and _, a letter first, at most 40"
    if name in TAKEN or name in sys.stdlib_module_names or find_spec(name):
        return "is a module already, which the project's would hide: choose another name"
    return None


def files(name: str, carillon: str) -> dict[str, tuple[str, bool]]:
    """Path to (text, executable) of every file of the repository."""
    made = {}
    for path in sorted(STARTER.rglob(f"*{SUFFIX}")):
        place = path.relative_to(STARTER).as_posix().removesuffix(SUFFIX)
        place = place.replace("dot-", ".").replace("NAME", name)
        text = path.read_text(encoding="utf-8").replace("@NAME@", name).replace("@CARILLON@", carillon)
        made[place] = (text, place.startswith("bin/"))
    return made


def here() -> str | None:
    """The line that names the checkout that this module lies in: its commit, or without git as it is."""
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / "dev" / "yours.py").is_file():
        return None
    try:
        asked = subprocess.run(
            ["git", "-C", str(checkout), "rev-parse", "--show-toplevel", "HEAD"],
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        return str(checkout)
    top, _, commit = asked.stdout.strip().partition("\n")
    return f"{checkout}@{commit}" if asked.returncode == 0 and Path(top) == checkout else str(checkout)


def make(target: Path, carillon: str | None = None) -> Path:
    """The repository, whole and with its Carillon fetched, or Refused."""
    target = target.expanduser().absolute()
    if problem := name_problem(target.name):
        raise Refused(f"{target.name} {problem}")
    if target.is_symlink() or (target.exists() and (not target.is_dir() or any(target.iterdir()))):
        raise Refused(f"{target} is not empty: name a folder that is, or that is not there yet")
    if not target.parent.is_dir():
        raise Refused(f"{target.parent} is no folder: make it first")
    carillon = carillon or here()
    if not carillon:
        raise Refused(
            "which Carillon shall run it? Say --carillon <git repository>@<tag>, or what else "
            f"{VERSION} takes (docs/how-to/own-repository.md)"
        )
    if "\n" in carillon or carillon.startswith("#"):
        raise Refused(f"--carillon {carillon!r} is no line that names a Carillon")
    source = Path(carillon.rpartition("@")[0] or carillon)
    for folder in (Path(carillon), source):
        if folder.is_dir() and target.is_relative_to(folder.resolve()):
            raise Refused(f"{target} lies in Carillon's own checkout {folder}: name a folder outside")
        if folder.is_dir() and not folder.is_absolute():
            raise Refused(f"--carillon {carillon}: name the folder by its whole path, {folder.resolve()}")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as unfinished:
        made = Path(unfinished) / target.name
        for place, (text, executable) in files(target.name, carillon).items():
            path = made / place
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            path.chmod(0o755 if executable else 0o644)
        for folder in (made, *(path for path in made.rglob("*") if path.is_dir())):
            folder.chmod(0o755)
        _fetch(made)
        if target.exists():
            target.rmdir()
        shutil.move(made, target)
    return target


def _fetch(made: Path) -> None:
    try:
        done = subprocess.run(
            [str(made / "bin" / "carillon"), "fetch"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_FETCH_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Refused(f"Carillon could not be had within {_FETCH_SECONDS} s: is there a network?") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["bin/carillon fetch said nothing"]
        raise Refused(said[-1].removeprefix("carillon: "))


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="where it is made; its last part is the name of your app")
    parser.add_argument(
        "--carillon", metavar="LINE", help="the line of carillon.version (the checkout that this runs from)"
    )


def run(options: argparse.Namespace) -> int:
    try:
        target = make(Path(options.folder), options.carillon)
    except Refused as problem:
        print(f"carillon: {problem}", file=sys.stderr)
        return 1
    print(f"{target} is made. Go on there: git init, make dev, make test, make help.")
    return 0


def main(words: list[str]) -> int:
    """Without the rest of the command `carillon`: `make new` of a checkout."""
    parser = argparse.ArgumentParser(prog="carillon new")
    arguments(parser)
    return run(parser.parse_args(words))
