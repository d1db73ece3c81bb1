"""The production container, started for these tests beside everything else and taken down after them."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace

import pytest

os.environ.setdefault("CARILLON_STACK_PLAIN", "redirect")

from dev import config as configuration
from dev import production, secret_files
from tests.infra.stack import Stack

PROJECT = "carillon-prod-container"
PORTS = {"CARILLON_HTTP_PORT": 50180, "CARILLON_HTTPS_PORT": 50543}


@pytest.fixture(scope="session")
def config():
    found = configuration.load(project=PROJECT, state=".dev-production-test")
    found = replace(found, project=PROJECT, ports=PORTS)
    production.down(found, volumes=True)
    try:
        production.up(found)
        yield found
    finally:
        if not os.environ.get("CARILLON_KEEP"):
            production.down(found, volumes=True)


@pytest.fixture(scope="session")
def stack(config) -> Stack:
    def manage(*arguments: str, stdin: str = "") -> str:
        return subprocess.run(
            ["docker", "exec", "-i", f"{PROJECT}-app-1", "carillon", "manage", *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    values = {
        "CARILLON_URL": f"https://localhost:{PORTS['CARILLON_HTTPS_PORT']}",
        "CARILLON_HTTP_URL": f"http://localhost:{PORTS['CARILLON_HTTP_PORT']}",
        "CARILLON_CA_CERT": str(config.certificates / "ca.pem"),
        "CARILLON_USERNAME": "admin",
        "CARILLON_PASSWORD": secret_files.read(config.secrets, "admin_password"),
        "CARILLON_TOKEN": manage("create_token", "--username", "admin", "--scope", "read write publish"),
    }
    return Stack(values, PROJECT, config.state)
