"""A stack that runs the example, for all files of this folder, and the browser of the page's tests."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from dev.config import DEFAULT_PORTS
from tests.browser.conftest import browser, open_page
from tests.infra.stack import Stack

__all__ = ["browser", "open_page"]

ROOT = Path(__file__).parents[3]
PROJECT = "carillon-test-app"
UP_SECONDS = 420  # on a machine that is busy with something else


def free_ports(count):
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [str(each.getsockname()[1]) for each in sockets]


def ports_of_a_stack():
    """Free ones, by the variables that name them."""
    return dict(zip(DEFAULT_PORTS, free_ports(len(DEFAULT_PORTS)), strict=True))


@pytest.fixture(scope="session")
def stack(tmp_path_factory):
    """A stack of its own, of a checkout with the example in it."""
    checkout = tmp_path_factory.mktemp("checkout")
    # Not the tests, the benchmarks or .git: a team may throw them away.
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("ansible", "bin", "compose", "dev", "images", "nginx", "requirements", "src", "supervisord"):
        shutil.copytree(ROOT / name, checkout / name, symlinks=True, ignore=ignored)
    for name in ("Makefile", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout)
    shutil.copytree(ROOT / "examples" / "chat" / "src", checkout / "src", dirs_exist_ok=True)
    # And shown at /bells as well, by a proxy in front that we play.
    site = checkout / "nginx" / "sites" / "development.yml"
    site.write_text(site.read_text().replace('prefix: ""', "prefix: /bells"))
    keep = {name: value for name, value in os.environ.items() if not name.startswith("CARILLON_")}
    environ = {**keep, **ports_of_a_stack(), "CARILLON_PROJECT": PROJECT, "CARILLON_STATE": ".dev"}

    def dev(command):
        return subprocess.run(
            [str(checkout / "bin" / "dev"), command],
            env=environ, capture_output=True, text=True, timeout=UP_SECONDS, check=False,
        )  # fmt: skip

    dev("clean")  # what a run that was cut off has left
    (checkout / ".dev").mkdir(mode=0o700)
    (checkout / ".dev" / "project.env").write_text("PROJECT_CHAT_LONGEST=20\n")
    try:
        up = dev("dev")
        assert up.returncode == 0, up.stdout[-3000:] + up.stderr[-3000:]
        yield Stack.of(checkout / ".dev", PROJECT)
    finally:
        dev("clean")


@pytest.fixture(scope="session")
def me(stack):
    return stack.api("/api/v2/me/")["results"][0]["id"]


@pytest.fixture
def room(stack, me):
    return stack.api("/api/chat/rooms/", {"name": "tower", "members": [me]})["id"]
