"""One host for everything, bare when the tests begin: test_aa_converge.py is the first of them.

CARILLON_KEEP=1 leaves it to be looked at, and goes on with one that is there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("CARILLON_STACK_PLAIN", "redirect")
os.environ.setdefault("CARILLON_STACK_HSTS", "1")

from tests.infra.stack import Stack
from tests.production import hosts, playbooks
from tests.production.conftest import ROOT, Machine, wait_for
from tests.production.containers import docker

NAME = "carillon-prod-single"


def database_version(machine: Machine) -> str:
    """PostgreSQL's, which is in the names of its unit and folders: each distribution has its own."""
    return machine.run("pg_lsclusters --no-header").split()[0]


class HostStack(Stack):
    """What the tests of routes and the ledger ask of a stack, of a host."""

    __hash__ = Stack.__hash__

    def logs(self, service: str, *options: str) -> str:
        assert service == "nginx"
        return subprocess.check_output(
            ["docker", "exec", self.project, "tail", "-n", "5000", "/var/log/nginx/carillon.log"], text=True
        )

    def healthy(self, service: str) -> bool:
        return service in ("nginx", "rabbitmq", "postgresql") or (
            subprocess.run(
                ["docker", "exec", "-u", "carillon", self.project, "carillon", "probe", service],
                check=False,
                capture_output=True,
            ).returncode
            == 0
        )


@pytest.fixture(scope="session")
def machine() -> Iterator[Machine]:
    keep = bool(os.environ.get("CARILLON_KEEP"))
    if keep and docker("inspect", NAME).returncode == 0:
        yield Machine(NAME)
        return
    docker("network", "create", NAME)
    try:
        yield hosts.start(NAME, NAME)
    finally:
        if not keep:
            docker("rm", "--force", "--volumes", NAME)
            docker("network", "rm", NAME)


@pytest.fixture(scope="session")
def secrets_dir() -> Path:
    """Beside the inventory, where they are unless somebody says otherwise."""
    return Path(os.environ["CARILLON_SECRETS_DIR"])


@pytest.fixture(scope="session")
def inventory(secrets_dir) -> Path:
    return edited_example(ROOT, secrets_dir)


def edited_example(checkout: Path, secrets_dir: Path) -> Path:
    """The example, copied and edited as docs/how-to/production-host.md says."""
    copy = secrets_dir.parent
    shutil.copytree(checkout / "ansible/inventories/example-single", copy, dirs_exist_ok=True)
    shutil.copyfile(ROOT / "tests/production/single/hosts.yml", copy / "hosts.yml")
    variables = copy / "group_vars/all.yml"
    variables.write_text(variables.read_text().replace("chimes.example.org", "chimes.test"))
    return copy


@pytest.fixture(scope="session")
def stack(machine, secrets_dir) -> HostStack:
    return stack_of(machine, secrets_dir)


def stack_of(machine: Machine, secrets_dir: Path, **group: str | int) -> HostStack:
    """`group`: `family` and `key` of the application, where it is another."""
    return HostStack(
        {
            "CARILLON_URL": f"https://{machine.address}",
            "CARILLON_HTTP_URL": f"http://{machine.address}",
            "CARILLON_CA_CERT": str(secrets_dir / "tls/authority.crt"),
            "CARILLON_USERNAME": "admin",
            "CARILLON_PASSWORD": (secrets_dir / "admin-password").read_text().strip(),
            "CARILLON_TOKEN": machine.run(
                "runuser -u carillon -- carillon manage create_token --username admin"
                " --scope 'read write publish'"
            ).strip(),
        },
        machine.name,
        secrets_dir,
        **group,
    )


@pytest.fixture
def healthy(machine, stack):
    """A function that waits until the whole of it answers: an event goes from the API to a websocket."""

    def wait(seconds: float = 120) -> None:
        wait_for(lambda: stack.deliver(), seconds, "an event goes all the way", machine.logs)
        wait_for(
            lambda: machine.host.run("runuser -u carillon -- carillon probe uwsgi daphne runworker").rc == 0,
            seconds,
            "carillon probe",
            machine.logs,
        )

    return wait


@pytest.fixture(scope="session")
def playbook(inventory, secrets_dir):
    return playbooks.Playbooks(inventory, secrets_dir)
