"""`make help` is the index: every target and every variable is in it, and the targets stand in a column."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "Makefile").read_text()
INSIDE = {"DEV", "TEST_PYTHON"}  # what the Makefile sets itself


def test_every_target_is_documented_and_no_file():
    targets = set(re.findall(r"^([a-z-]+):", TEXT, re.M))
    documented = set(re.findall(r"^([a-z-]+):.* ## ", TEXT, re.M))
    phony = re.search(r"^\.PHONY: (.*)$", TEXT, re.M)[1].split()
    assert targets == documented
    assert sorted(phony) == sorted(targets)


def test_every_variable_is_listed():
    used = set(re.findall(r"\$\((?:or \$\()?([A-Z_]+)\)", TEXT)) | {"CARILLON_RELEASE_KEY", "CARILLON_LONG"}
    listed = re.findall(r"^#: ([A-Z_]+) ", TEXT, re.M)
    assert used - INSIDE <= set(listed)
    assert len(listed) == len(set(listed))


def test_help_has_columns():
    done = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    targets, _, variables = done.stdout.partition("\nvariables ")
    for block in (targets, variables):
        lines = [re.match(r"  \S+ +", line) for line in block.splitlines()]
        assert len({match.end() for match in lines if match}) == 1
