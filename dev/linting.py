"""What `make lint` looks at: code, and files that their own programs take in silence when they are wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dev import yours
from dev.config import ROOT
from dev.testing import Suite

# Where scripts without a suffix lie.
_SCRIPTS = (".ci", "bin", "images", "ansible/roles", "src/carillon/starter/bin")
# Unit tests that are lints: supervisor, uwsgi --strict, nginx -t, gixy, roles against their specifications.
_CONFIGURATION = (
    "tests/unit/production/test_supervisord.py",
    "tests/unit/production/test_uwsgi.py",
    "tests/unit/production/test_roles.py",
    "tests/unit/nginx/test_lint.py",
    "tests/unit/nginx/test_gixy.py",
)


def sources() -> list[Suite]:
    """Those that are no tests."""
    return [
        Suite("ruff", ("ruff", "check", ".", *(f"--extend-exclude=src/{name}" for name in theirs()))),
        Suite("mypy", ("mypy",)),
        Suite("imports", ("lint-imports", "--no-cache"), environ=(("PYTHONPATH", "src"),)),
        Suite("yamllint", ("yamllint", "--strict", ".")),
        Suite("shellcheck", ("shellcheck", *shell_scripts())),
        Suite("hadolint", ("hadolint", *dockerfiles())),
    ]


def everything() -> list[Suite]:
    return [*sources(), Suite("configuration", ("pytest", "-q", *_CONFIGURATION))]


def theirs(root: Path = ROOT) -> list[str]:
    """A team's packages beside Carillon's: its code has its own rules."""
    ours = {*yours.CARILLONS, "project"}
    return sorted(
        path.parent.name for path in (root / "src").glob("*/__init__.py") if path.parent.name not in ours
    )


def shell_scripts(root: Path = ROOT) -> list[str]:
    """By their first line. A template is no script before it is rendered."""
    return [
        str(path.relative_to(root))
        for folder in _SCRIPTS
        for path in _files(root / folder)
        if path.suffix != ".j2" and _is_shell(path)
    ]


def dockerfiles(root: Path = ROOT) -> list[str]:
    folders = (root / "images", root / "tests/production")
    return [
        str(path.relative_to(root))
        for folder in folders
        for path in _files(folder)
        if path.name == "Dockerfile"
    ]


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _is_shell(path: Path) -> bool:
    with path.open("rb") as file:
        line = file.readline(80)
    return line.startswith(b"#!") and line.split(b"/")[-1].split()[-1] in (b"sh", b"bash")
