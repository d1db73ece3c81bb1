"""The parts of `make test`, which the gate runs at different times."""

from __future__ import annotations

import re

import pytest

from dev import __main__ as command
from dev import testing
from dev.config import ROOT
from dev.output import Failure


def test_every_folder_of_tests_is_in_one_part():
    folders = {path.parent.relative_to(ROOT / "tests").parts[0] for path in ROOT.glob("tests/*/**/test_*.py")}
    parts = [*testing.CODE, *testing.ALONE]
    assert sorted(part for part in parts if "/" not in part) == sorted(folders - {"production"})
    commands = {suite.name: suite.command for suite in testing.suites(tuple(parts))}
    assert list(commands) == parts
    assert "--ignore=tests/integration/asgi_amqp" in commands["integration"]
    assert commands["integration/asgi_amqp"] == ("pytest", "-q", "tests/integration/asgi_amqp")
    assert commands["unit"] == ("pytest", "-q", "tests/unit")


def test_the_gate_runs_every_part():
    gate = (ROOT / ".ci/run").read_text()
    assert re.findall(r"^make .*\btest PART=(\w+)", gate, re.M) == list(testing.PARTS)


def test_a_part_that_is_none_is_named():
    with pytest.raises(Failure, match="PART=chaos: there are prepare, code, alone"):
        command.everything(["chaos"])
