"""A repository of a team's own, deployed to a bare host as its README says; then its code, and the version of
Carillon beneath it, are changed.
"""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
import time
import urllib.request
from pathlib import Path

import ansible_collections.community.docker
import pytest
import yaml

from carillon import new
from tests.production import hosts, playbooks
from tests.production.conftest import ROOT
from tests.production.containers import docker

HOST = "carillon-prod-repository"
NAME = "carillon_prod_site"
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


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """As `carillon new` makes it, with this host in its inventory."""
    folder = new.make(tmp_path_factory.mktemp("team") / NAME, str(ROOT))
    file = folder / "inventory" / "hosts.yml"
    inventory = yaml.safe_load(file.read_text().replace(f"{NAME}.example.org", HOST))
    inventory["all"]["children"]["carillon"]["vars"] = {
        "ansible_connection": "community.docker.docker",
        "ansible_user": "deploy",
        # The tests come by address.
        "tls_names": ["site.test", "{{ ansible_facts.default_ipv4.address }}"],
        "nginx_server_names": "{{ tls_names }}",
    }
    file.write_text(yaml.safe_dump(inventory))
    variables = folder / "inventory" / "group_vars" / "all.yml"
    variables.write_text(variables.read_text().replace(f"{NAME}.example.org", "site.test"))
    return folder


@pytest.fixture(scope="module")
def deploy(site, tmp_path_factory):
    """deploy(PLAYBOOK=…) is the output of `make deploy`."""
    foreign = ("CARILLON_", "MAKE", "PYTHONPATH", "ANSIBLE_")
    keep = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    # A repository has Ansible itself; how a container is reached, the environment of these tests has.
    collections = Path(ansible_collections.community.docker.__path__[0]).parents[2]
    prefix, operator = playbooks.control_node(str(tmp_path_factory.mktemp("home")))

    def deploy(*variables):
        start = time.monotonic()
        done = subprocess.run(
            [*prefix, "make", "deploy", *variables],
            cwd=site, env={**keep, **operator, "ANSIBLE_COLLECTIONS_PATH": str(collections)},
            capture_output=True, text=True, timeout=SECONDS, check=False,
        )  # fmt: skip
        print(f"make deploy {' '.join(variables)}: {time.monotonic() - start:.0f} s")
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
        return done.stdout

    return deploy


@pytest.fixture(scope="module")
def get(site, machine):
    def get(path):
        tls = ssl.create_default_context(cafile=site / "inventory" / "secrets" / "tls" / "authority.crt")
        with urllib.request.urlopen(f"https://{machine.address}{path}", context=tls, timeout=10) as answer:
            return answer.read().decode()

    return get


def test_a_bare_host_runs_the_team_s_code(site, machine, deploy, get):
    deploy()
    assert f"{NAME} is up" in get("/")
    assert '"version":"0.1.0"' in get("/api/v2/ping/").replace(" ", "")
    installed = machine.run(
        "/opt/carillon/current/bin/python -c 'import project, tower; print(project.__file__)'"
    )
    assert installed.startswith("/opt/carillon/")


def test_a_second_deploy_changes_nothing(deploy):
    output = deploy()
    assert "changed=0" in output, "\n".join(line for line in output.splitlines() if "changed:" in line)


def test_an_edit_and_an_upgrade_are_the_page_of_the_host(site, deploy, get):
    views = site / "src" / NAME / "views.py"
    views.write_text(views.read_text().replace(f"{NAME} is up", "edited, and deployed"))
    deploy("PLAYBOOK=upgrade.yml")
    assert "edited, and deployed" in get("/")


def test_another_version_of_carillon_is_one_line_and_an_upgrade(site, deploy, get, tmp_path):
    newer = shutil.copytree(site / ".carillon", tmp_path / "newer", symlinks=True)
    described = newer / "src" / "carillon" / "pyproject.toml"
    described.write_text(described.read_text().replace('version = "0.1.0"', 'version = "0.1.9"'))
    line = site / "carillon.version"
    line.write_text(line.read_text().replace(str(ROOT), str(newer)))
    assert f"Getting Carillon: {newer}" in deploy("PLAYBOOK=upgrade.yml")
    assert '"version":"0.1.9"' in get("/api/v2/ping/").replace(" ", "")
    assert "edited, and deployed" in get("/")


def test_the_release_before_comes_back(deploy, get):
    deploy("PLAYBOOK=rollback.yml")
    assert '"version":"0.1.0"' in get("/api/v2/ping/").replace(" ", "")
    assert "edited, and deployed" in get("/")
