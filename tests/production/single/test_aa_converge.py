"""From a bare host to a running installation: a dry run, a run, and one that changes nothing.

The first of the tests: all others look at what it has made.
"""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def bare(machine):
    if os.environ.get("CARILLON_KEEP") and machine.host.file("/opt/carillon/current").exists:
        pytest.skip("this host was left by a run before")


def test_a_dry_run_on_a_bare_host_touches_nothing(machine, playbook):
    playbook("site.yml", "--check", "--diff")
    assert not machine.host.file("/etc/carillon").exists


def test_a_bare_host_becomes_an_installation(playbook):
    try:
        playbook("site.yml")
    except AssertionError as error:
        # Nothing of what follows would say more than this.
        pytest.exit(f"the host did not converge:\n{error}", returncode=1)


def test_a_second_run_changes_nothing(playbook):
    output = playbook("site.yml")
    assert "changed=0" in output, "\n".join(line for line in output.splitlines() if "changed:" in line)
