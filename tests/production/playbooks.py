"""Playbooks, run as an operator runs them."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.production.conftest import ROOT

# Any user that every system has and that may do nothing.
_NOBODY = "65534"


def _control_node(home: str) -> tuple[list[str], dict[str, str]]:
    """The beginning of the argv, and the environment, of an operator who is not root on the control node.

    Where root runs the tests, the playbook gets a user namespace: there it is somebody else, who owns the
    checkout and the engine's socket as before, and who can become nobody.
    """
    if os.geteuid() != 0:
        return [], {}
    docker = os.environ.get("DOCKER_CONFIG", str(Path.home() / ".docker"))
    return (
        ["unshare", "--user", f"--map-user={_NOBODY}", f"--map-group={_NOBODY}", "--"],
        {"USER": "nobody", "LOGNAME": "nobody", "HOME": home, "DOCKER_CONFIG": docker},
    )


def runner(inventory: Path, secrets_dir: Path) -> Callable[..., str]:
    """A function that runs a playbook: run("rotate.yml", "-e", "…"), against another `inventory` if asked. It
    returns the output; the playbook must end with the code `expect`.
    """

    def run(name: str, *arguments: str, inventory: Path = inventory, expect: int = 0) -> str:
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as home:
            prefix, environ = _control_node(home)
            done = subprocess.run(
                [*prefix, "ansible-playbook", "-i", str(inventory), name, *arguments],
                cwd=ROOT / "ansible",
                capture_output=True,
                text=True,
                check=False,
                timeout=1800,
                env={
                    **os.environ,
                    **environ,
                    "ANSIBLE_CONFIG": str(ROOT / "ansible/ansible.cfg"),
                    "CARILLON_SECRETS_DIR": str(secrets_dir),
                },
            )
        print(f"{name}: {time.monotonic() - start:.0f} s")
        assert done.returncode == expect, (done.stdout + done.stderr)[-6000:]
        return done.stdout

    return run
