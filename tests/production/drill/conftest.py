"""A clone of this repository, in which an operator checks out one release after the other.

The older one is what CARILLON_DRILL_FROM names, a commit or a tag. Otherwise it is the newest release that
is kept (a tag `v*`), or, where none is, the commit before the newest migration: the step that is hardest to
go and to come back. The newer one is the commit of this checkout.
"""

from __future__ import annotations

import os
import re
import subprocess
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from dev.config import Config
from dev.production_testing import DRILL_CLONE, clean_drill
from tests.infra.stack import Stack, wait
from tests.production.conftest import ROOT
from tests.production.containers import docker, operator_environment
from tests.production.ledger import Ledger

SECONDS = 1800
# What docs/how-to/production-container.md says of the while in which the container is replaced.
OUTAGE = re.compile("HTTPError 50[234]|refused|reset|closed|timed out|EOF", re.IGNORECASE)
Run = Callable[..., None]


def git(*arguments: str, folder: Path = ROOT) -> str:
    return subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()


def older_commit() -> str:
    if named := os.environ.get("CARILLON_DRILL_FROM"):
        return named
    if tags := git("tag", "--list", "v*", "--sort=-version:refname", "--no-contains", "HEAD"):
        return tags.split()[0]
    return git("log", "-1", "--format=%H", "--", ":(glob)src/**/migrations/0*.py") + "^"


@dataclass(frozen=True)
class Releases:
    clone: Path
    older: Callable[[], None]
    newer: Callable[[], None]

    @property
    def commit(self) -> str:
        """Of the release that is checked out."""
        return git("rev-parse", "HEAD", folder=self.clone)


@pytest.fixture(scope="session")
def releases() -> Iterator[Releases]:
    try:
        commits = [git("rev-parse", "--verify", f"{each}^{{commit}}") for each in (older_commit(), "HEAD")]
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no older release in this checkout: {error.stderr.strip()}")
    clean_drill()
    git("clone", "--quiet", "--no-checkout", ".", str(DRILL_CLONE))
    print("from", *(git("log", "-1", "--format=%h of %cI", commit) for commit in commits))
    older, newer = (
        lambda commit=commit: git("checkout", "--quiet", commit, folder=DRILL_CLONE) and None
        for commit in commits
    )
    yield Releases(DRILL_CLONE, older, newer)
    if not os.environ.get("CARILLON_KEEP"):
        clean_drill()


def run(*command: str, folder: Path, values: dict[str, str] | None = None) -> None:
    """As an operator would, whichever release is there."""
    done = subprocess.run(
        command,
        cwd=folder,
        env=operator_environment() | (values or {}),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@dataclass(frozen=True)
class Team:
    """A repository of a team's own, as the older release has made it, with the event that it comes with."""

    site: Path
    releases: Releases
    family = "bells"
    key = 1

    @classmethod
    def new(cls, folder: Path, releases: Releases) -> Team:
        releases.older()
        run("make", "new", f"SITE={folder}", folder=releases.clone)
        team = cls(folder, releases)
        assert f"@{releases.commit}\n" in team.line.read_text()
        assert team.greeting() in team.views.read_text()
        return team

    @property
    def line(self) -> Path:
        return self.site / "carillon.version"

    @property
    def views(self) -> Path:
        return self.site / "src" / self.site.name / "views.py"

    def greeting(self, *, edited: bool = False) -> str:
        """What the page says: before, and after `go_on`."""
        return f"{self.site.name} {'was edited' if edited else 'is up'}"

    def go_on(self) -> None:
        """Its line names this release, and its own code is another."""
        older = self.releases.commit
        self.releases.newer()
        self.line.write_text(self.line.read_text().replace(older, self.releases.commit))
        text = self.views.read_text().replace(self.greeting(), self.greeting(edited=True))
        self.views.write_text(text)


def page(stack: Stack) -> str:
    with urllib.request.urlopen(stack.values["CARILLON_URL"], context=stack.tls(), timeout=10) as answer:
        return answer.read().decode()


@contextmanager
def installation(settings: Config, folder: Path, program: str) -> Iterator[Run]:
    """A function that has `program` in `folder` do a command to these containers; at the end they go."""
    ports = {name: str(port) for name, port in settings.ports.items()}
    own = {"CARILLON_PROJECT": settings.project, "CARILLON_STATE": str(settings.state), **ports}

    def command(name: str) -> None:
        run(program, name, folder=folder, values=own)
        Stack.container.cache_clear()  # containers are others than before

    try:
        yield command
    finally:
        if not os.environ.get("CARILLON_KEEP"):
            command("production-clean")  # before a host needs the machine


def image(settings: Config) -> str:
    return docker("inspect", "--format", "{{.Image}}", f"{settings.project}-app-1").stdout.strip()


def under_load(stack: Stack, command: Run, name: str) -> None:
    """An outage is the container's; what was accepted is heard after it, once."""
    with Ledger(stack) as ledger:
        command(name)
        wait("an event goes all the way", stack.deliver, 120)
    missing = ledger.wait_until_heard(60)
    print(f"{name}: {ledger.report()}", Counter(line.split(": ", 1)[1] for line in ledger.failures))
    assert missing == set()
    assert len(ledger.heard) == len(set(ledger.heard)), "an event came twice"
    assert len(ledger.accepted) > 20
    assert [line for line in ledger.failures if not OUTAGE.search(line)] == []
