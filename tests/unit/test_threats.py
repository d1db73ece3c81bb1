"""The threat model says which test shows what: each row has one that is there, each attack has its row."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/why/threat-model.md"
TEST = re.compile(r"^ *(?:async )?def (test_\w+)\(", re.M)


def defined(folder: Path) -> set[str]:
    return {name for path in folder.rglob("test_*.py") for name in TEST.findall(path.read_text())}


ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.read_text().partition("## Threats")[2].splitlines()[4:]
    if line.startswith("|")
]
NAMED = {name for row in ROWS for name in re.findall(r"`([^`]+)`", row[2])}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:60])
def test_a_row_has_a_control_and_a_test(row):
    threat, control, test, _left = row
    assert threat
    assert control
    assert "`" in test


def test_what_they_name_is_there():
    known = defined(ROOT / "tests")
    assert not {name for name in NAMED if name not in known and not (ROOT / name).exists()}


def test_every_attack_has_its_row():
    assert not defined(ROOT / "tests/security") - NAMED
