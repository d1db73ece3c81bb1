"""One converged host. Molecule (ansible/molecule/single) makes it and calls these tests as its verifier."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

os.environ.setdefault("CARILLON_STACK_PLAIN", "redirect")
os.environ.setdefault("CARILLON_STACK_HSTS", "1")

from tests.infra.stack import Stack
from tests.production import playbooks
from tests.production.conftest import ROOT, Machine, wait_for

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
            ["docker", "exec", NAME, "tail", "-n", "5000", "/var/log/nginx/carillon.log"], text=True
        )

    def healthy(self, service: str) -> bool:
        return service in ("nginx", "rabbitmq", "postgresql") or (
            subprocess.run(
                ["docker", "exec", "-u", "carillon", NAME, "carillon", "probe", service],
                check=False,
                capture_output=True,
            ).returncode
            == 0
        )


@pytest.fixture(scope="session")
def machine() -> Machine:
    return Machine(NAME)


@pytest.fixture(scope="session")
def secrets_dir() -> Path:
    return Path(os.environ["CARILLON_SECRETS_DIR"])


@pytest.fixture(scope="session")
def stack(machine, secrets_dir) -> HostStack:
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
        NAME,
        secrets_dir,
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
def playbook(secrets_dir):
    return playbooks.runner(ROOT / "tests/production/single/hosts.yml", secrets_dir)
