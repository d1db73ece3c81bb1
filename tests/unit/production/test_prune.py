"""prune.yml: one host deletes for all, and what it says is shown."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.unit.production.test_control_node import ANSIBLE, TOOLS


@pytest.fixture
def prune(tmp_path):
    """A function that runs the playbook where `carillon prune` says and ends as it is told."""

    def run(said: str, code: int = 0, *arguments: str) -> tuple[int, str, list[str]]:
        (tmp_path / "runuser").write_text(
            f'#!/bin/sh\necho "$*" >> {tmp_path}/told\ncat <<end\n{said}\nend\nexit {code}\n'
        )
        (tmp_path / "runuser").chmod(0o755)
        (tmp_path / "told").unlink(missing_ok=True)
        done = subprocess.run(
            [
                *(str(TOOLS / "ansible-playbook"), "-i", "inventories/example-cluster", "prune.yml"),
                *("-e", "ansible_connection=local ansible_become=false", *arguments),
            ],
            cwd=ANSIBLE,
            env={
                **os.environ,
                "ANSIBLE_CONFIG": str(ANSIBLE / "ansible.cfg"),
                "PATH": f"{tmp_path}:{os.environ['PATH']}",
            },
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr, (tmp_path / "told").read_text().splitlines()

    return run


def test_one_host_deletes_for_all(prune):
    code, said, told = prune("jobs: 3 jobs, 9 job events deleted, ended before 2026-05-30 03:30 UTC")
    assert code == 0, said
    assert told == ["-u carillon -- /usr/local/bin/carillon prune"]
    assert "jobs: 3 jobs, 9 job events deleted" in said
    assert "changed=1" in said
    said = prune("jobs: none deleted, ended before 2026-05-30 03:30 UTC\ndead letters: none deleted")[1]
    assert "changed=1" not in said


@pytest.mark.parametrize("how", [("-e", "prune_dry_run=true"), ("--check",)])
def test_a_dry_run(prune, how):
    code, said, told = prune("jobs: 3 jobs would be deleted, ended before 2026-05-30", 0, *how)
    assert code == 0, said
    assert told == ["-u carillon -- /usr/local/bin/carillon prune --dry-run"]
    assert "changed=1" not in said


def test_one_that_fails_is_a_unit_that_failed(prune):
    assert prune("", 75)[0] == 2
