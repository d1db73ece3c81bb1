"""A converged cluster. Molecule (ansible/molecule/cluster) makes it and calls these tests as its verifier."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

os.environ.setdefault("CARILLON_STACK_PLAIN", "redirect")

from tests.infra.stack import Stack
from tests.production import playbooks
from tests.production.conftest import ROOT, Machine, wait_for

NAMES = ("carillon-prod-c1", "carillon-prod-c2", "carillon-prod-c3")
PROXY = "carillon-prod-c3"
INVENTORY = ROOT / "tests/production/cluster/hosts.yml"


class ClusterStack(Stack):
    __hash__ = Stack.__hash__

    def logs(self, service: str, *options: str) -> str:
        assert service == "nginx"
        return subprocess.check_output(
            ["docker", "exec", PROXY, "tail", "-n", "5000", "/var/log/nginx/carillon.log"], text=True
        )

    def healthy(self, service: str) -> bool:
        return True


@pytest.fixture(scope="session")
def machines() -> dict[str, Machine]:
    return {name: Machine(name) for name in NAMES}


@pytest.fixture(scope="session")
def secrets_dir() -> Path:
    return Path(os.environ["CARILLON_SECRETS_DIR"])


@pytest.fixture(scope="session")
def playbook(secrets_dir):
    return playbooks.Playbooks(INVENTORY, secrets_dir)


@pytest.fixture(scope="session")
def stack(machines, secrets_dir) -> ClusterStack:
    address = machines[PROXY].address
    return ClusterStack(
        {
            "CARILLON_URL": f"https://{address}",
            "CARILLON_HTTP_URL": f"http://{address}",
            "CARILLON_CA_CERT": str(secrets_dir / "tls/authority.crt"),
            "CARILLON_USERNAME": "admin",
            "CARILLON_PASSWORD": (secrets_dir / "admin-password").read_text().strip(),
            "CARILLON_TOKEN": machines[NAMES[1]]
            .run(
                "runuser -u carillon -- carillon manage create_token --username admin"
                " --scope 'read write publish'"
            )
            .strip(),
        },
        "cluster",
        secrets_dir,
    )


@pytest.fixture
def delivered(stack, machines):
    def wait(seconds: float = 120) -> None:
        wait_for(stack.deliver, seconds, "an event goes all the way", machines[NAMES[0]].logs)

    return wait
