"""An older release, as a clone of this repository has it.

CARILLON_DRILL_FROM names its commit or tag. Otherwise it is the newest release that is kept (a tag `v*`), or,
where none is, the commit before the newest migration: the step that is hardest to go and to come back.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.production.conftest import ROOT


def git(*arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()


def older_commit() -> str:
    if named := os.environ.get("CARILLON_DRILL_FROM"):
        return named
    if tags := git("tag", "--list", "v*", "--sort=-version:refname", "--no-contains", "HEAD"):
        return tags.split()[0]
    return git("log", "-1", "--format=%H", "--", ":(glob)src/**/migrations/0*.py") + "^"


@pytest.fixture(scope="session")
def older(tmp_path_factory) -> Path:
    try:
        commit = git("rev-parse", "--verify", f"{older_commit()}^{{commit}}")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no older release in this checkout: {error.stderr.strip()}")
    folder = tmp_path_factory.mktemp("older") / "carillon"
    git("clone", "--quiet", "--no-checkout", ".", str(folder))
    git("-C", str(folder), "checkout", "--quiet", commit)
    print("older release:", git("-C", str(folder), "log", "-1", "--format=%h of %cI"))
    return folder
