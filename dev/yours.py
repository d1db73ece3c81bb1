"""A team's own repository, whose code the checkout of Carillon in its .carillon/ deploys (`carillon new`).

Nobody edits that checkout. Before every command it gets what is the team's, in place of Carillon's own
project: the packages in `src/`, and what `requirements.txt` adds to the lock. So images, roles and bundles
are made of it as of any checkout.
"""

from __future__ import annotations

import filecmp
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from dev import config as configuration
from dev import environments
from dev.config import ROOT, YOURS
from dev.output import Failure, step

CARILLONS = ("asgi_amqp", "carillon", "tower")
CHECKOUT = ".carillon"
# What must go whatever state the code is in.
WITHOUT_CODE = frozenset(
    (
        *("down", "clean", "logs", "shell", "token", "watch"),
        *(f"production-{verb}" for verb in ("down", "clean", "backup", "rollback")),
    )
)
_PIN = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^]]*\])?==.*\n(?:[ #].*\n)*", re.MULTILINE)
_REQUIREMENT = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)", re.MULTILINE)
# What Django asks of the environment where nothing runs: neither database nor broker.
_NOTHING_RUNS = {
    "CARILLON_ENVIRONMENT_FILE": os.devnull,
    "CARILLON_DEVELOPMENT": "1",
    "CARILLON_SECRET_KEY": "not-a-secret-nothing-is-signed-here-with-this-key",
    "CARILLON_DATABASE_HOST": "sqlite",
    "CARILLON_AMQP_HOSTS": "127.0.0.1:1",
    "CARILLON_AMQP_PASSWORD": "none",
    "DJANGO_SETTINGS_MODULE": "project.testing",
}


def put(checkout: Path = ROOT, yours: Path | None = YOURS, *, locked: bool = True) -> None:
    """What is the team's lies in the checkout. Not `locked`: the lock is about to be made, and may be old.

    Raises `Failure` with what is wrong, before anything is touched.
    """
    if yours is None or checkout != yours / CHECKOUT:
        raise Failure(f"{checkout} is not the {CHECKOUT}/ of CARILLON_YOURS={yours}: use bin/carillon there")
    packages = _packages(yours / "src")
    text = _lock(checkout, yours, locked=locked)
    requirements = checkout / "requirements"
    for name in ("app.in", "app.txt"):
        if not (carillons := _carillons(requirements, name)).exists():
            shutil.copyfile(requirements / name, carillons)
    added = (yours / "requirements.in").read_text()
    _write(requirements / "app.in", _carillons(requirements, "app.in").read_text() + added)
    _write(requirements / "app.txt", text)
    for old in (checkout / "src").iterdir():
        if old.is_dir() and old.name not in (*CARILLONS, *packages):
            shutil.rmtree(old)
    for name in packages:
        _mirror(yours / "src" / name, checkout / "src" / name)


def names(text: str) -> set[str]:
    """The distributions that lines of a requirements file begin with, in one spelling."""
    return {_plain(name) for name in _REQUIREMENT.findall(text)}


def merged(carillons: str, added: str) -> str:
    """Carillon's lock, and the team's pins of what is not in it: of what is, the version was tested."""
    known = {_plain(match[1]) for match in _PIN.finditer(carillons)}
    more = [match[0] for match in _PIN.finditer(added) if _plain(match[1]) not in known]
    return carillons + "".join(more)


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _carillons(requirements: Path, name: str) -> Path:
    """What the checkout had before something was added to it."""
    return requirements / name.replace("app", "carillon")


def _packages(source: Path) -> list[str]:
    found = sorted(path for path in source.iterdir() if path.name[0] != "." and path.name != "__pycache__")
    for path in found:
        if path.name in CARILLONS:
            raise Failure(f"{path}: {path.name} is Carillon's own: give the package another name")
        if not (path / "__init__.py").is_file():
            raise Failure(f"{path}: is no package, so in no release: move it into one, or out of src/")
    if not (source / "project" / "settings.py").is_file():
        raise Failure(f"{source}/project/settings.py is missing: docs/how-to/your-app.md says what is in it")
    return [path.name for path in found]


def _lock(checkout: Path, yours: Path, *, locked: bool) -> str:
    wanted, lock = yours / "requirements.in", yours / "requirements.txt"
    for file in (wanted, lock):
        if not file.is_file():
            raise Failure(f"{file} is missing: an empty one will do where your code needs nothing more")
    requirements = checkout / "requirements"
    own = _carillons(requirements, "app.txt")
    text = merged((own if own.exists() else requirements / "app.txt").read_text(), lock.read_text())
    if locked and (missing := sorted(names(wanted.read_text()) - names(text))):
        text = ", ".join(missing)
        raise Failure(f"requirements.in names {text}, and requirements.txt does not: run `make lock`")
    return text


def _write(path: Path, text: str) -> None:
    """Only what is new: a command beside this one may be reading."""
    if path.read_text() != text:
        path.write_text(text)


def _mirror(source: Path, target: Path) -> None:
    wanted = {
        path.relative_to(source)
        for path in source.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    for old in target.rglob("*"):
        if old.is_file() and old.relative_to(target) not in wanted:
            old.unlink()
    for name in wanted:
        here, there = source / name, target / name
        if not (there.is_file() and filecmp.cmp(here, there, shallow=False)):
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(here, there)
        shutil.copymode(here, there)


def _django(*arguments: str) -> int:
    """A command of Django's with the code of both, where nothing runs."""
    python = environments.ensure(configuration.load(), "venv-project", "requirements/app.txt")
    values = {**os.environ, **_NOTHING_RUNS, "PYTHONPATH": f"{YOURS}/src{os.pathsep}{ROOT}/src"}
    return subprocess.run(
        [str(python), "-m", "django", *arguments], cwd=YOURS, env=values, check=False
    ).returncode


def manage(arguments: list[str]) -> int:
    return _django(*(arguments or ["help"]))


def test(arguments: list[str]) -> int:
    """The project's own tests, and Django's checks with each; Carillon's are run where Carillon is made."""
    for words in (("makemigrations", "--check", "--dry-run"), ("test", *(arguments or [f"{YOURS}/src"]))):
        step(f"django {words[0]}")
        if code := _django(*words):
            return code
    return 0


def lock(_: list[str]) -> int:
    """requirements.txt from requirements.in, with the versions that Carillon has where it has one."""
    step("Locking requirements.in")
    constraint = _carillons(ROOT / "requirements", "app.txt")
    # fmt: off
    command = ["uv", "pip", "compile", "--quiet", "--universal", "--python-version", "3.11",
               "--generate-hashes", "--no-strip-extras", "--no-emit-index-url",
               "--custom-compile-command", "make lock", "--constraint", str(constraint),
               "requirements.in", "--output-file", "requirements.txt"]
    # fmt: on
    try:
        return subprocess.run(command, cwd=YOURS, check=False).returncode
    except FileNotFoundError:
        raise Failure("uv is not installed, which resolves and hashes: `pip install uv`") from None


def deploy(arguments: list[str]) -> None:
    """A playbook of Carillon's (site.yml unless named) on the hosts of inventory/."""
    assert YOURS is not None
    playbook, *options = arguments or ["site.yml"]
    if not (ROOT / "ansible" / playbook).is_file():
        there = sorted(path.name for path in (ROOT / "ansible").glob("*.yml"))
        raise Failure(f"PLAYBOOK={playbook}: there is none of that name, but {', '.join(there)}")
    hosts = YOURS / "inventory" / "hosts.yml"
    if "example.org" in hosts.read_text() and "--syntax-check" not in options:
        raise Failure(f"{hosts} names example.org: put your host there, and its name in group_vars/all.yml")
    environments.enter(configuration.load())
    program = Path(sys.prefix) / "bin" / "ansible-playbook"
    os.chdir(ROOT / "ansible")
    argv = [str(program), "--inventory", str(hosts.parent), playbook, *options]
    os.execv(program, argv)  # noqa: S606 - no shell is the point


COMMANDS: dict[str, Callable[[list[str]], int | None]] = {
    "manage": manage,
    "test": test,
    "lock": lock,
    "deploy": deploy,
}
