"""Playbooks, run as an operator runs them."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.production.conftest import ROOT


def runner(inventory: Path, secrets_dir: Path) -> Callable[..., str]:
    """A function that runs a playbook: run("rotate.yml", "-e", "…"), against another `inventory` if asked. It
    returns the output; the playbook must end with the code `expect`.
    """

    def run(name: str, *arguments: str, inventory: Path = inventory, expect: int = 0) -> str:
        start = time.monotonic()
        done = subprocess.run(
            ["ansible-playbook", "-i", str(inventory), name, *arguments],
            cwd=ROOT / "ansible",
            capture_output=True,
            text=True,
            check=False,
            timeout=1800,
            env={
                **os.environ,
                "ANSIBLE_CONFIG": str(ROOT / "ansible/ansible.cfg"),
                "CARILLON_SECRETS_DIR": str(secrets_dir),
            },
        )
        print(f"{name}: {time.monotonic() - start:.0f} s")
        assert done.returncode == expect, (done.stdout + done.stderr)[-6000:]
        return done.stdout

    return run
