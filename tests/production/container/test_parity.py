"""Development, the production container and a converged host (as `single` has described it): the same."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from dev import site_file
from tests.infra.stack import docker
from tests.production.parity import argv, differences, nginx

ROOT = Path(__file__).resolve().parents[3]
HOST = ROOT / "build/parity/host.json"
ENTRY = {"uwsgi": "bin/uwsgi", "daphne": "bin/daphne", "runworker": "django"}


@pytest.fixture(scope="module")
def container(stack) -> dict:
    app = stack.container("app")
    found: dict[str, list[str]] = {}
    environment: set[str] = set()
    for process in ENTRY:
        name = "daphne:daphne_0" if process == "daphne" else process
        pid = docker(
            "exec", app, "supervisorctl", "-c", "/etc/carillon/supervisord/supervisord.conf", "pid", name
        )
        read = f"import sys; sys.stdout.write(open('/proc/{pid.strip()}/%s').read())"
        found[process] = argv(docker("exec", app, "python3", "-c", read % "cmdline").strip("\0").split("\0"))
        names = docker("exec", app, "python3", "-c", read % "environ").split("\0")
        environment |= {line.partition("=")[0] for line in names if "=" in line}
    return {
        "nginx": nginx(docker("exec", stack.container("nginx"), "nginx", "-e", "stderr", "-T")),
        "argv": found,
        "environment": sorted(environment),
        "files": sums(stack.container("nginx"), "/etc/nginx/nginx.conf", "/etc/nginx/carillon/snippets")
        | sums(app, "/etc/carillon/uwsgi.ini", "/etc/carillon/supervisord"),
    }


def sums(container: str, *paths: str) -> dict[str, str]:
    lines = docker(
        "exec", container, "find", *paths, "-type", "f", "-exec", "sha256sum", "{}", "+"
    ).splitlines()
    return {path: digest for digest, path in (line.split(maxsplit=1) for line in lines)}


@pytest.fixture(scope="module")
def development(settings, tmp_path_factory) -> dict:
    """What compose/dev.yml says: its environment, the launcher's argv for it, nginx with its site file."""
    app = yaml.safe_load((ROOT / "compose/dev.yml").read_text())["x-app"]["environment"]
    folder = tmp_path_factory.mktemp("development")
    folder.chmod(0o755)
    site_file.write(ROOT / "nginx/sites/development.yml", folder / "site.conf")
    text = subprocess.run(
        [
            "docker",
            "run",
            "--rm",
            "--network",
            "none",
            "-v",
            f"{folder}/site.conf:/etc/nginx/carillon/site.conf:ro",
            "-v",
            f"{settings.certificates}:/etc/nginx/carillon/tls:ro",
            "--user",
            "0",
            "carillon/nginx:production",
            "-T",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    script = """
import json, sys
from carillon import environment, launcher
e = environment.load()
print(json.dumps({name: launcher.argv(name, e) for name in launcher.PROCESSES}))
"""
    values = [f"{name}={value}" for name, value in app.items() if not name.endswith("_FILE")]
    values += [
        "CARILLON_SECRET_KEY=k",
        "CARILLON_DATABASE_PASSWORD=k",
        "CARILLON_AMQP_PASSWORD=k",
        "CARILLON_TRUSTED_ORIGINS=",
    ]
    command = [
        "docker",
        "run",
        "--rm",
        "--network",
        "none",
        "--entrypoint",
        "/opt/carillon/current/bin/python",
    ]
    for value in values:
        command += ["--env", value]
    said = subprocess.run(
        [*command, "carillon/app:production", "-c", script], capture_output=True, text=True, check=True
    )
    return {
        "nginx": nginx(text),
        "argv": {name: argv(arguments) for name, arguments in json.loads(said.stdout).items()},
        "environment": sorted(app),
        "files": {},
    }


def test_the_production_container_is_development(container, development):
    container = container | {
        "environment": [
            name
            for name in container["environment"]
            if name not in ("PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE", "CARILLON_ALLOWED_HOSTS")
        ]
    }
    assert differences(development, container) == []


def test_a_host_is_the_production_container(container):
    if not HOST.is_file():
        pytest.skip("no host has been converged (`make test-production` does it first)")
    host = json.loads(HOST.read_text())
    # A host's settings come from its file, read at exec, and are in no process's environment: nothing is
    # compared there but that none is set behind its back.
    assert {name for name in host["environment"] if name.startswith("CARILLON_")} <= {"CARILLON_BIND"}
    assert differences(container | {"environment": []}, host | {"environment": []}) == []
