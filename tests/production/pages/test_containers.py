"""Every command that the page of the container production prints for Docker, typed as it is printed."""

from __future__ import annotations

import os
import subprocess
import time

import pytest

from dev import production_testing
from tests.production.containers import operator_environment
from tests.production.how_to import commands, filled
from tests.production.pages.plans import CONTAINER_PAGES, not_typed


@pytest.fixture(scope="module")
def types(clone):
    """A function that types a command in the clone; the stack has a name and ports of its own."""
    settings = production_testing.stack("pages")
    environ = operator_environment() | {
        "CARILLON_PROJECT": settings.project,
        **{name: str(port) for name, port in settings.ports.items()},
    }
    words = {"<release>": "next", "carillon-production-app-1": f"{settings.project}-app-1"}
    words |= {"-p carillon-production": f"-p {settings.project}", "exec app": "exec -T app"}

    def types(command: str) -> str:
        backups = clone / ".dev-production/backups"
        words["<time>"] = max((path.name for path in backups.glob("*")), default="<time>")
        start = time.monotonic()
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", filled(command, words)],
            cwd=clone, env=environ, capture_output=True, text=True, timeout=900, check=False,
        )  # fmt: skip
        print(f"{time.monotonic() - start:6.1f} s  {command}")
        assert done.returncode == 0, f"{command}\n{(done.stdout + done.stderr)[-6000:]}"
        return done.stdout

    try:
        yield types
    finally:
        if not os.environ.get("CARILLON_KEEP"):
            types("make production-clean")


@pytest.mark.parametrize("page", CONTAINER_PAGES)
def test_its_commands_do_what_the_page_says(types, page):
    for command in commands(page):
        if not not_typed(page, command):
            types(command)
    # As a user finds it afterwards.
    types("docker compose -p carillon-production exec app carillon probe uwsgi daphne runworker")
