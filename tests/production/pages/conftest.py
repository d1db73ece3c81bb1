"""A newcomer: who has a control node, a bare host that SSH leads to, and the pages."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dev.production_testing import PAGES_CLONE, clean_pages
from tests.production import hosts
from tests.production.conftest import Machine
from tests.production.containers import docker
from tests.production.drill.conftest import git
from tests.production.hosts import must
from tests.production.how_to import filled, program

NETWORK = "carillon-prod-pages"
CONTROL, HOST = f"{NETWORK}-control", NETWORK
# The name of the host on the pages, and of the copy of the inventory.
DOMAIN, INVENTORY = "chimes.example.org", "chimes"
CHECKOUT = "/home/newcomer/carillon"
AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt"
# A page names no program of the host by its host: one may know.
ON_THE_HOST = {
    *("apt-get", "carillon", "carillon-ctl", "carillon-roll", "journalctl", "rabbitmq-diagnostics"),
    *("rabbitmq-upgrade", "rabbitmqctl", "readlink", "ss", "systemctl"),
}
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SECONDS = 1200


@pytest.fixture(scope="session")
def clone() -> Iterator[Path]:
    """A clone of this commit, with a release after it: the branch `next`."""
    clean_pages()
    git("clone", "--quiet", "--no-hardlinks", ".", str(PAGES_CLONE))
    git("checkout", "--quiet", "-b", "next", folder=PAGES_CLONE)
    (PAGES_CLONE / "src/carillon/next.py").write_text('"""A release that differs from the one before."""\n')
    git("add", "--all", folder=PAGES_CLONE)
    who = ("-c", "user.name=newcomer", "-c", "user.email=newcomer@example.org")
    git(*who, "commit", "--quiet", "--message", "The next release", folder=PAGES_CLONE)
    git("checkout", "--quiet", "-b", "now", "HEAD^", folder=PAGES_CLONE)
    yield PAGES_CLONE
    if not os.environ.get("CARILLON_KEEP"):
        clean_pages()


@dataclass(frozen=True)
class Newcomer:
    """Types what a page prints: on the control node, or as root on the host."""

    control: Machine
    host: Machine
    words: dict[str, str] = field(default_factory=dict)

    def types(self, command: str) -> str:
        """The output of a command as printed, with the words in the place of <placeholders>."""
        command = filled(command, self.words)
        if program(command) in ON_THE_HOST and not command.startswith("systemctl --user"):
            return self._run(command, HOST, "root", "/root")
        # As the pages say: in ansible/, unless they go there themselves, or into another folder.
        in_ansible = program(command) == "ansible-playbook"
        return self._run(command, CONTROL, "newcomer", f"{CHECKOUT}/ansible" if in_ansible else CHECKOUT)

    def _run(self, command: str, name: str, user: str, folder: str) -> str:
        start = time.monotonic()
        environ = {"PATH": f"{CHECKOUT}/.venv/bin:{PATH}", "EDITOR": "/usr/local/bin/edit"}
        if user == "newcomer":
            # A login would have these.
            environ |= {
                "XDG_RUNTIME_DIR": "/run/user/1500",
                "PIP_CERT": AUTHORITIES,
                "HOME": "/home/newcomer",
            }
        done = subprocess.run(
            [
                *("docker", "exec", "--interactive", "--user", user, "--workdir", folder),
                *(word for pair in environ.items() for word in ("--env", "=".join(pair))),
                *(name, "bash", "-euo", "pipefail", "-c", command),
            ],
            input="y\n", capture_output=True, text=True, timeout=SECONDS, check=False,
        )  # fmt: skip
        print(f"{time.monotonic() - start:6.1f} s  {name}: {' '.join(command.split())}")
        assert done.returncode == 0, f"{command}\n{(done.stdout + done.stderr)[-6000:]}"
        return done.stdout


# What the newcomer changes in the files of the inventory, hosts.yml and group_vars/all.yml.
EDITOR = f"""#!/bin/sh -e
test -f "$1" -a -f "$2"
grep -q {DOMAIN} "$1" "$2"
echo 'ansible_user: deploy' >> "$2"
"""


@pytest.fixture(scope="session")
def newcomer(clone) -> Iterator[Newcomer]:
    keep = bool(os.environ.get("CARILLON_KEEP"))
    if keep and docker("inspect", CONTROL, HOST).returncode == 0:
        yield Newcomer(Machine(CONTROL), Machine(HOST))
        return
    docker("rm", "--force", "--volumes", CONTROL, HOST)
    docker("network", "rm", NETWORK)
    must("network", "create", NETWORK)
    try:
        host = hosts.start(HOST, NETWORK, "--network-alias", DOMAIN, hostname="chimes")
        control = hosts.start(
            CONTROL, NETWORK, "--volume", f"{AUTHORITIES}:{AUTHORITIES}:ro", hostname="control"
        )
        _prepare(control, host, clone)
        yield Newcomer(control, host)
    finally:
        if not keep:
            docker("rm", "--force", "--volumes", CONTROL, HOST)
            docker("network", "rm", NETWORK)


def _prepare(control: Machine, host: Machine, clone: Path) -> None:
    """What a control node and a host are before the pages begin."""
    install = (
        "apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends"
    )
    control.run(f"{install} curl git openssh-client python3-venv libpam-systemd")
    host.run(f"{install} openssh-server && systemctl start ssh")
    control.run("useradd --uid 1500 --create-home --shell /bin/bash newcomer")
    must("cp", f"{clone}/.", f"{CONTROL}:{CHECKOUT}", seconds=120)
    control.run(f"chown -R newcomer: {CHECKOUT}")
    # A host image has no logins at a console, and so no logind; a user's timers need it.
    control.run("systemctl unmask systemd-logind && systemctl start systemd-logind")
    control.run("loginctl enable-linger newcomer")
    control.run("runuser -u newcomer -- ssh-keygen -q -t ed25519 -N '' -f /home/newcomer/.ssh/id_ed25519")
    key = control.run("cat /home/newcomer/.ssh/id_ed25519.pub").strip()
    host.run(f"install -d -o deploy -m 700 ~deploy/.ssh && echo '{key}' > ~deploy/.ssh/authorized_keys")
    known = host.run("cat /etc/ssh/ssh_host_ed25519_key.pub").strip()
    control.run(f"echo '{DOMAIN} {known}' > /home/newcomer/.ssh/known_hosts")
    edit = EDITOR.replace("'", "'\\''")
    control.run(f"printf %s '{edit}' > /usr/local/bin/edit && chmod 755 /usr/local/bin/edit")
