"""Leaves a description of the host for the test of parity (tests/production/container/test_parity.py)."""

from __future__ import annotations

import json

from tests.production.conftest import ROOT
from tests.production.parity import MARKS, describe


def test_describe(machine):
    description = describe(machine.run, [machine.run], machine.run, machine.run)
    target = ROOT / "build/parity/host.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(description, indent=1))
    assert set(description["argv"]) == set(MARKS)
