"""A repository of a team's own, from `carillon new` to another version of Carillon beneath its running stack.

Minutes: `CARILLON_LONG=1`, or `make test-long`. What is made and refused is in tests/unit/dev/test_new.py.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import ssl
import subprocess
import urllib.request
from pathlib import Path

import pytest

from carillon import new
from tests.infra.stack import Stack, wait
from tests.integration.your_app.conftest import free_ports, ports_of_a_stack

pytestmark = [
    pytest.mark.stack,
    pytest.mark.skipif(not os.environ.get("CARILLON_LONG"), reason="takes minutes: CARILLON_LONG=1"),
]
ROOT = Path(__file__).parents[3]
NAME = "carillon_test_site"
PROJECT = "carillon-test-site"  # as the folder's name makes it, also the tag of its images
SECONDS = 900


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return new.make(tmp_path_factory.mktemp("team") / NAME, str(ROOT))


@pytest.fixture(scope="module")
def make(site):
    """make("dev") is its output: the command as the README of the repository has it."""
    ports = ports_of_a_stack()
    foreign = ("CARILLON_", "MAKE", "PYTHONPATH")
    keep = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}

    def make(target, *variables, must=True):
        done = subprocess.run(
            ["make", target, *variables],
            cwd=site, env={**keep, **ports}, capture_output=True, text=True, timeout=SECONDS, check=False,
        )  # fmt: skip
        assert done.returncode == 0 or not must, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout + done.stderr

    try:
        yield make
    finally:
        make("clean", must=False)


@pytest.fixture(scope="module")
def stack(site, make):
    assert "Carillon is up" in make("dev")
    return Stack.of(site / ".dev", PROJECT)


def fetch(url, tls):
    with urllib.request.urlopen(url, context=tls, timeout=10) as answer:
        return answer.read().decode()


def page(stack):
    return fetch(stack.values["CARILLON_URL"], stack.tls())


def test_its_tests_are_run_and_one_that_fails_is_a_failure(site, make):
    assert "Ran 3 tests" in make("test")
    tests = site / "src" / NAME / "tests.py"
    before = tests.read_text()
    try:
        tests.write_text(before.replace(" is up", " is down"))
        assert re.search(r"FAILED \(failures=1\)(.|\n)*Error 1", make("test", must=False))
    finally:
        tests.write_text(before)


def test_its_event_arrives(stack):
    with stack.websocket() as socket:
        assert json.loads(socket.recv(10))["accept"] is True
        socket.send(json.dumps({"groups": {"bells": [1]}}))
        assert json.loads(socket.recv(10))["groups_current"] == ["bells-1"]
        stack.api("/api/bells/1/", {})
        assert json.loads(socket.recv(20))["by"] == "admin"


def test_its_code_is_what_runs_and_a_saved_file_is_live(site, stack):
    assert f"{NAME} is up" in page(stack)
    views = site / "src" / NAME / "views.py"
    views.write_text(views.read_text().replace(f"{NAME} is up", "edited, and live"))
    wait("the page as it was saved", lambda: "edited, and live" in page(stack), 60)


def test_another_version_of_carillon_is_one_line(site, make, stack, tmp_path):
    assert stack.api("/api/v2/ping/")["version"] == "0.1.0"
    # Carillon as it will be.
    newer = shutil.copytree(site / ".carillon", tmp_path / "newer", symlinks=True)
    described = newer / "src" / "carillon" / "pyproject.toml"
    described.write_text(described.read_text().replace('version = "0.1.0"', 'version = "0.1.9"'))
    line = site / "carillon.version"
    line.write_text(line.read_text().replace(str(ROOT), str(newer)))
    assert f"Getting Carillon: {newer}" in make("dev")
    assert stack.api("/api/v2/ping/")["version"] == "0.1.9"
    # With the data of before, and the code of the team.
    assert stack.api("/api/v2/me/")["results"][0]["username"] == "admin"
    assert "edited, and live" in page(stack)
    assert "==>" not in make("dev")  # run again, it changes nothing


def test_production_in_containers_has_its_release(site, make):
    http, https = free_ports(2)
    try:
        make("production", f"CARILLON_HTTP_PORT={http}", f"CARILLON_HTTPS_PORT={https}")
        tls = ssl.create_default_context(cafile=site / ".dev-production" / "certificates" / "ca.pem")
        assert "edited, and live" in fetch(f"https://localhost:{https}/", tls)
    finally:
        make("production-clean", must=False)


def test_its_hosts_are_what_the_roles_are_run_on(site, make):
    assert "names example.org: put your host there" in make("deploy", must=False)
    hosts = site / "inventory" / "hosts.yml"
    hosts.write_text(hosts.read_text().replace(f"{NAME}.example.org", "site.test"))
    assert "playbook: upgrade.yml" in make("deploy", "PLAYBOOK=upgrade.yml", "OPTIONS=--syntax-check")
