"""Production in containers, for tests: started, described, taken down."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from dev import production, project, secret_files, stack
from dev.config import Config
from tests.infra.stack import Stack


def programs() -> set[str]:
    """The declared processes of production, as supervisorctl names them."""
    return {
        f"{name}:{name}_{place}"
        for name, process in project.declared().processes.items()
        for place in range(process.number)
    }


@contextmanager
def running(settings: Config) -> Iterator[None]:
    """From nothing, and to nothing at the end, unless CARILLON_KEEP says that somebody wants to look."""
    keep = bool(os.environ.get("CARILLON_KEEP"))
    if not keep:
        stack.down(settings, volumes=True)
    try:
        production.up(settings)
        yield
    finally:
        if not keep:
            stack.down(settings, volumes=True)


def operator_environment() -> dict[str, str]:
    """What a command of an operator's finds: nothing that these tests have set for themselves."""
    ours = ("CARILLON_", "MAKE", "PYTHONPATH", "ANSIBLE_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


def stack_of(settings: Config, **group: str | int) -> Stack:
    """What the tests of routes and the ledger ask of a stack."""
    token = stack.compose(
        settings,
        *("exec", "-T", "app", "carillon", "manage", "create_token", "--username", "admin"),
        *("--scope", "read write publish"),
        seconds=60,
    )
    values = {
        "CARILLON_URL": f"https://localhost:{settings.https_port}",
        "CARILLON_HTTP_URL": f"http://localhost:{settings.http_port}",
        "CARILLON_CA_CERT": str(settings.certificates / "ca.pem"),
        "CARILLON_USERNAME": "admin",
        "CARILLON_PASSWORD": secret_files.read(settings.secrets, "admin_password"),
        "CARILLON_TOKEN": token.strip(),
    }
    return Stack(values, settings.project, settings.state, **group)


def docker(*arguments: str, seconds: float = 60) -> subprocess.CompletedProcess[str]:
    """Like docker itself: the exit code is the caller's to judge."""
    return subprocess.run(
        ["docker", *arguments], capture_output=True, text=True, timeout=seconds, check=False
    )
