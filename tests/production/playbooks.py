"""Playbooks, run as an operator runs them."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.production.conftest import ROOT

# Any user that every system has and that may do nothing.
_NOBODY = "65534"


def control_node(home: str) -> tuple[list[str], dict[str, str]]:
    """The beginning of the argv, and the environment, of an operator who is not root on the control node.

    Where root runs the tests, the playbook gets a user namespace: there it is somebody else, who owns the
    checkout and the engine's socket as before, and who can become nobody.
    """
    if os.geteuid() != 0:
        return [], {}
    docker = os.environ.get("DOCKER_CONFIG", str(Path.home() / ".docker"))
    return (
        ["unshare", "--user", f"--map-user={_NOBODY}", f"--map-group={_NOBODY}", "--"],
        {
            "USER": "nobody",
            "LOGNAME": "nobody",
            "HOME": home,
            "DOCKER_CONFIG": docker,
            # Ansible would make the home that the system's own nobody has, which other tests want not to be.
            "ANSIBLE_REMOTE_TMP": "/tmp/.ansible-nobody",
        },
    )


@dataclass(frozen=True)
class Playbooks:
    """Called, it runs one: playbooks("rotate.yml", "-e", "…")."""

    inventory: Path
    secrets_dir: Path
    checkout: Path = ROOT

    def __call__(self, name: str, *arguments: str, inventory: Path | None = None, expect: int = 0) -> str:
        """The output, also against another `inventory`; the playbook must end with the code `expect`."""
        start = time.monotonic()
        with self._started(name, *arguments, inventory=inventory) as process:
            output, _ = process.communicate(timeout=1800)
        print(f"{name}: {time.monotonic() - start:.0f} s")
        assert process.returncode == expect, output[-6000:]
        return output

    def kill_at(self, task: str, name: str, *arguments: str, times: int = 1) -> str:
        """The output of a playbook that was killed when it began `task` for the time `times`."""
        lines = []
        with self._started(name, *arguments) as process:
            for line in process.stdout:
                lines.append(line)
                times -= line.startswith(f"TASK [{task}]")
                if not times:
                    os.killpg(process.pid, signal.SIGKILL)
                    break
            process.wait(60)
        output = "".join(lines)
        assert process.returncode == -signal.SIGKILL, f"{name} has no task {task}:\n{output[-6000:]}"
        return output

    @contextmanager
    def _started(
        self, name: str, *arguments: str, inventory: Path | None = None
    ) -> Iterator[subprocess.Popen[str]]:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
            prefix, environ = control_node(home)
            yield subprocess.Popen(
                [*prefix, "ansible-playbook", "-i", str(inventory or self.inventory), name, *arguments],
                cwd=self.checkout / "ansible",
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                # A group of its own: Ansible's workers, too, die when it is killed.
                start_new_session=True,
                env={
                    **os.environ,
                    **environ,
                    "ANSIBLE_CONFIG": str(self.checkout / "ansible/ansible.cfg"),
                    "CARILLON_SECRETS_DIR": str(self.secrets_dir),
                    "PYTHONUNBUFFERED": "1",
                },
            )
