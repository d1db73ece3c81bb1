"""A host with systemd and Podman, and no Docker, on which the words of `make quadlets` are followed."""

from __future__ import annotations

import os
import re
import subprocess
import time

import pytest

os.environ.setdefault("CARILLON_STACK_PLAIN", "redirect")

from dev import production, production_testing, secret_files
from tests.infra.stack import Stack
from tests.production import hosts
from tests.production.conftest import ROOT
from tests.production.containers import docker, operator_environment

HOST = "carillon-prod-quadlet"
# Beside those of dev.production_testing.STACKS.
PORTS = {"CARILLON_HTTP_PORT": "51680", "CARILLON_HTTPS_PORT": "51681"}
# As Debian has it: netavark and what it needs are recommended only.
PACKAGES = "podman netavark aardvark-dns nftables"
COMMAND = re.compile(r"^  (\S.*)$", re.MULTILINE)


@pytest.fixture(scope="session")
def machine():
    published = [word for port in PORTS.values() for word in ("--publish", f"127.0.0.1:{port}:{port}")]
    docker("network", "create", HOST)
    try:
        # A volume, because overlays do not lie in one another.
        machine = hosts.start(HOST, HOST, "--volume", "/var/lib/containers", *published)
        machine.run(
            "apt-get update -q && DEBIAN_FRONTEND=noninteractive "
            f"apt-get install -q -y --no-install-recommends {PACKAGES}"
        )
        yield machine
    finally:
        if not os.environ.get("CARILLON_KEEP"):
            docker("rm", "--force", "--volumes", HOST)
            docker("network", "rm", HOST)


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """The state folder of `make quadlets`, and the commands that it says."""
    state = tmp_path_factory.mktemp("quadlets") / "state"
    done = subprocess.run(
        ["make", "quadlets"], cwd=ROOT, env={**operator_environment(), "CARILLON_STATE": str(state), **PORTS},
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return state, COMMAND.findall(done.stdout.partition("On the host")[2])


@pytest.fixture(scope="session")
def stack(machine, made) -> Stack:
    """Started as it is said, from nothing."""
    state, commands = made
    config = production_testing.load()
    for image in production.IMAGES:
        tag = image.tag(config)
        piped(["docker", "save", tag], "podman", "load", "--quiet")
        machine.run(f"podman tag {tag} localhost/carillon/{image.name}:carillon")
    machine.run(f"mkdir -p {state}")
    piped(["tar", "-C", str(state), "-c", "."], "tar", "-C", str(state), "-x", "--no-same-owner")
    assert commands[-1] == "systemctl start carillon-nginx"
    begun = time.monotonic()
    machine.run("set -e\n" + "\n".join(commands))
    print(f"from nothing to served: {time.monotonic() - begun:.0f} s")
    # As docs/how-to/production-container.md has it.
    machine.run(
        "podman exec -i carillon-app carillon manage ensure_admin --password-file - "
        "< /etc/carillon/secrets/admin_password"
    )
    token = machine.run(
        "podman exec carillon-app carillon manage create_token --username admin --scope 'read write publish'"
    )
    values = {
        "CARILLON_URL": f"https://localhost:{PORTS['CARILLON_HTTPS_PORT']}",
        "CARILLON_HTTP_URL": f"http://localhost:{PORTS['CARILLON_HTTP_PORT']}",
        "CARILLON_CA_CERT": str(state / "certificates" / "ca.pem"),
        "CARILLON_USERNAME": "admin",
        "CARILLON_PASSWORD": secret_files.read(state / "secrets", "admin_password"),
        "CARILLON_TOKEN": token.splitlines()[-1].strip(),
    }
    return Stack(values, "carillon", state)


def piped(here: list[str], *there: str) -> None:
    """What a command writes on this machine is what another reads on that one."""
    with subprocess.Popen(here, stdout=subprocess.PIPE) as writer:
        done = subprocess.run(
            ["docker", "exec", "-i", HOST, *there],
            stdin=writer.stdout, capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
    assert done.returncode == writer.returncode == 0, done.stderr
