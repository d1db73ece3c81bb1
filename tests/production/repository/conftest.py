"""A host, and a repository of a team's own that is deployed to it."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import ansible_collections.community.docker
import pytest
import yaml

from tests.production import hosts, playbooks
from tests.production.containers import docker, operator_environment

HOST = "carillon-prod-repository"
SECONDS = 1800


@pytest.fixture(scope="module")
def machine():
    docker("network", "create", HOST)
    try:
        yield hosts.start(HOST, HOST)
    finally:
        if not os.environ.get("CARILLON_KEEP"):
            docker("rm", "--force", "--volumes", HOST)
            docker("network", "rm", HOST)


def put_host(site: Path) -> None:
    """This host is the one of the repository's inventory."""
    example = f"{site.name}.example.org"
    file = site / "inventory" / "hosts.yml"
    inventory = yaml.safe_load(file.read_text().replace(example, HOST))
    inventory["all"]["children"]["carillon"]["vars"] = {
        "ansible_connection": "community.docker.docker",
        "ansible_user": "deploy",
        # The tests come by address.
        "tls_names": ["site.test", "{{ ansible_facts.default_ipv4.address }}"],
        "nginx_server_names": "{{ tls_names }}",
    }
    file.write_text(yaml.safe_dump(inventory))
    variables = site / "inventory" / "group_vars" / "all.yml"
    variables.write_text(variables.read_text().replace(example, "site.test"))


@pytest.fixture(scope="module")
def deploy(site, tmp_path_factory):
    """deploy(PLAYBOOK=…) is the output of `make deploy`."""
    # A repository has Ansible itself; how a container is reached, the environment of these tests has.
    collections = Path(ansible_collections.community.docker.__path__[0]).parents[2]
    prefix, operator = playbooks.control_node(str(tmp_path_factory.mktemp("home")))

    def deploy(*variables):
        start = time.monotonic()
        done = subprocess.run(
            [*prefix, "make", "deploy", *variables],
            cwd=site,
            env={**operator_environment(), **operator, "ANSIBLE_COLLECTIONS_PATH": str(collections)},
            capture_output=True, text=True, timeout=SECONDS, check=False,
        )  # fmt: skip
        print(f"make deploy {' '.join(variables)}: {time.monotonic() - start:.0f} s")
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
        return done.stdout

    return deploy
