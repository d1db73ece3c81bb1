"""prune.yml: one host deletes for all, and what it says is shown."""

from __future__ import annotations

import os
import subprocess

import pytest
import yaml

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


INVALID = "carillon: error: argument command: invalid choice: 'prune' (choose from run, probe)"


@pytest.mark.parametrize(
    ("hours", "said", "code", "refused"),
    [
        (48, "", 0, ""),
        (48, "jobs: due for 60 hours", 1, "jobs: due for 60 hours: check_prune_hours is 48"),
        (48, INVALID, 2, ""),
        (48, "carillon: the database: it is away", 75, "it is away: check_prune_hours is 48"),
        ("2d", "error: argument --check: invalid float value: '2d'", 2, "invalid float value: '2d'"),
        (0, "jobs: due for 60 hours", 1, ""),
    ],
    ids=["well", "due", "a release of before", "no database", "no number", "nobody asks"],
)
def test_check_looks_whether_something_is_due(play, monkeypatch, tmp_path, hours, said, code, refused):
    """The two tasks: the whole playbook asks a host for more than this machine has."""
    playbook = yaml.safe_load((ANSIBLE / "check.yml").read_text())
    tasks = [task for each in playbook for task in each.get("tasks", []) if "check_prune" in str(task)]
    assert len(tasks) == 2
    (tmp_path / "runuser").write_text(f'#!/bin/sh\necho "{said}" >&{1 if code == 1 else 2}\nexit {code}\n')
    (tmp_path / "runuser").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    ended, output = play(*tasks, check_prune_hours=hours)
    assert (ended == 0) == (not refused), output
    assert refused in output
