"""A clone of this repository, in which an operator checks out one release after the other.

The older one is what CARILLON_DRILL_FROM names, a commit or a tag. Otherwise it is the newest release that
is kept (a tag `v*`), or, where none is, the commit before the newest migration: the step that is hardest to
go and to come back. The newer one is the commit of this checkout.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dev.production_testing import DRILL_CLONE, clean_drill
from tests.production.conftest import ROOT


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
