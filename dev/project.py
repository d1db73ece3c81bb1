"""What the project declares of itself, for whatever is made from it here."""

from __future__ import annotations

from carillon.process import declared as declaration
from dev.config import ROOT
from dev.output import Failure

FILE = ROOT / "src" / "project" / declaration.FILE


def declared() -> declaration.Declared:
    """Raises `Failure` with what is wrong; of several things the first is its line."""
    found, problems = declaration.read(FILE)
    if problems:
        raise Failure(problems[0], problems[1:])
    return found
