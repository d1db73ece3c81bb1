"""Tasks and templates of the roles, run by Ansible on this machine."""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from tests.unit.production.test_control_node import ANSIBLE, TOOLS


@pytest.fixture
def play(tmp_path):
    """A function that runs tasks on this machine as a host with nginx; exit code and output."""

    def run(*tasks: dict, **variables) -> tuple[int, str]:
        inventory = {"all": {"children": {"nginx": {"hosts": {"web": {"ansible_connection": "local"}}}}}}
        (tmp_path / "hosts.yml").write_text(json.dumps(inventory))
        (tmp_path / "play.yml").write_text(
            json.dumps([{"hosts": "web", "gather_facts": False, "tasks": list(tasks)}])
        )
        # Stronger than what a role says for itself.
        (tmp_path / "variables.json").write_text(json.dumps(variables))
        done = subprocess.run(
            [
                str(TOOLS / "ansible-playbook"),
                *("-i", str(tmp_path / "hosts.yml"), "-e", f"@{tmp_path}/variables.json"),
                str(tmp_path / "play.yml"),
            ],
            env={**os.environ, "ANSIBLE_CONFIG": str(ANSIBLE / "ansible.cfg")},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, " ".join((done.stdout + done.stderr).split())

    return run
