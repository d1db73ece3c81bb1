"""`make test`: a stack of its own beside a running one, every check against it, then down with it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from dev import account, base_image, debian, development, images, preflight, stack
from dev.config import COMPOSE_FILE, DEFAULT_PORTS, ROOT, Config
from dev.output import Failure, say, step

PROJECT = "carillon-test"
STATE = ".dev-test"
# Programs that tests, the documentation and a release run, by the Debian package that has one: any of the
# names will do.
_PROGRAMS = {
    "curl": ("curl",),
    "chromium": ("chromium", "chromium-browser", "google-chrome"),
    "nodejs": ("node",),
    "graphviz": ("dot",),
    "minisign": ("minisign",),
    "openssl": ("openssl",),
}
_SHIFT = 1000


@dataclass(frozen=True)
class Suite:
    """A check and its command, run in `folder` with the programs of the environment that we are in."""

    name: str
    command: tuple[str, ...]
    folder: str = "."
    environ: tuple[tuple[str, str], ...] = ()


SITE = ".dev/docs"


def _documentation() -> Suite:
    # Not at the top: a team may throw the folder away, and develop without it.
    from release import make

    return Suite("docs", (*make.SITE, "--doctree-dir", ".dev/doctrees", ".", SITE))


def suites(kinds: tuple[str, ...]) -> list[Suite]:
    """A pytest run for each folder of tests/ that exists, without what is a suite of its own."""
    found = []
    for kind in kinds:
        inner = [name for name in (*CODE, *ALONE) if name.startswith(f"{kind}/")]
        command = ("pytest", "-q", f"tests/{kind}", *(f"--ignore=tests/{name}" for name in inner))
        if (ROOT / "tests" / kind).is_dir():
            found.append(Suite(kind, command))
    return found


def unit() -> int:
    return run(suites(("unit",)), {})


def documentation(config: Config) -> int:
    """The documentation as a site, in SITE; a link or an anchor that leads nowhere fails it."""
    ensure_programs(config, ("graphviz",))
    return run([_documentation()], {})


# `make test` in parts, for a machine with something else to do: what only makes ready, what comes to no harm
# beside another suite, and what measures, counts or breaks things and runs alone.
CODE = ("unit", "packages", "integration/asgi_amqp")
ALONE = ("simulation", "integration", "infra", "security", "chaos", "browser")
PARTS = ("prepare", "code", "alone")


def everything(config: Config, lints: list[Suite], part: str = "") -> int:
    """The `lints` and all suites, or one of `PARTS`; 0 when all passed. Takes down the stack that it started
    in any case."""
    programs = ensure_programs(config)
    if part == "prepare":
        base_image.ensure(config)
        images.ensure(config)
        return 0
    code = [*lints, _documentation(), *suites(CODE)]
    alone = suites(ALONE)
    with interruptible():
        try:
            development.up(config)
            chosen = {"code": code, "alone": alone}.get(part, [*code, *alone])
            return run(chosen, {**exported(config), "CARILLON_BROWSER": programs["chromium"]})
        finally:
            step("Taking down the test stack")
            stack.down(config, volumes=True)


def exported(config: Config) -> dict[str, str]:
    """What the tests are told of the stack: where it is, and the contents of its environment file."""
    values = account.read(config.environment_file)
    return {
        "CARILLON_STACK_ENV": str(config.environment_file),
        "CARILLON_STACK_PROJECT": config.project,
        "CARILLON_STACK_COMPOSE": str(COMPOSE_FILE),
        "CARILLON_STACK_STATE": str(config.state),
        "CARILLON_STACK_LISTEN": config.listen,
        **{name.replace("CARILLON_", "CARILLON_STACK_"): str(port) for name, port in config.ports.items()},
        "CARILLON_TEST_AMQP_URL": values["CARILLON_AMQP_URL"],
    }


def ensure_programs(config: Config, wanted: Iterable[str] = tuple(_PROGRAMS)) -> dict[str, str]:
    """The path of each of these of `_PROGRAMS`, by package; from Debian's where one is missing and we may."""
    found = {package: _program(package) for package in wanted}
    if missing := [package for package, path in found.items() if path is None]:
        if debian.can_install():
            debian.install(missing, config.logs)
            found = {package: _program(package) for package in found}
        if still := [package for package, path in found.items() if path is None]:
            raise Failure(f"this needs {', '.join(still)}: install the package{'s' * (len(still) > 1)}")
    return {package: path for package, path in found.items() if path}


def _program(package: str) -> str | None:
    return next((path for name in _PROGRAMS[package] if (path := shutil.which(name))), None)


def free_ports(config: Config) -> Mapping[str, int]:
    """The ports as configured, all moved by the same thousands when one is in use (by `make dev`)."""
    for shift in range(0, 40_000, _SHIFT):
        ports = {name: port + shift for name, port in config.ports.items()}
        if max(ports.values()) > 65535:
            break
        if not any(preflight.in_use(config.address_of(name), port) for name, port in ports.items()):
            return ports
    raise Failure(f"no free ports for a test stack: set {', '.join(DEFAULT_PORTS)}")


def run(chosen: list[Suite], environ: Mapping[str, str]) -> int:
    """Every suite, also after one that failed, then one line for each. 0 when all passed."""
    results: list[tuple[Suite, int, float]] = []
    path = f"{Path(sys.prefix, 'bin')}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    for suite in chosen:
        step(f"{suite.name}: {' '.join(suite.command)}")
        start = time.monotonic()
        answer = subprocess.run(
            suite.command,
            cwd=ROOT / suite.folder,
            env={**os.environ, **environ, **dict(suite.environ), "PATH": path},
            check=False,
        )
        results.append((suite, answer.returncode, time.monotonic() - start))
    say()
    for suite, code, seconds in results:
        say(f"  {'passed' if code == 0 else 'FAILED'}  {suite.name:<12} {seconds:6.0f} s")
    bad = [suite.name for suite, code, _ in results if code]
    say(f"\n{'All passed.' if not bad else 'Failed: ' + ', '.join(bad)}")
    return 1 if bad else 0


@contextmanager
def interruptible() -> Iterator[None]:
    """TERM ends us as an interrupt does, through the `finally` that takes the stack down."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
