"""Development, the production container and a converged host (as `single` has described it): the same."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from dev import development as dev_stack
from dev import production_testing, project
from dev import stack as compose_stack
from tests.infra.stack import Stack, docker
from tests.production.parity import (
    ALLOWED_ENVIRONMENT,
    ALLOWED_FILES,
    ALLOWED_NGINX,
    ALLOWED_SERVICES,
    describe,
    differences,
)

HOST = Path(__file__).resolve().parents[3] / "build/parity/host.json"


def shell(container: str, command: str) -> str:
    return docker("exec", container, "sh", "-c", command)


def described(stack, *apps: str) -> dict:
    nginx, broker, database = (
        partial(shell, stack.container(service)) for service in ("nginx", "rabbitmq", "postgresql")
    )
    return describe(nginx, [partial(shell, stack.container(app)) for app in apps], broker, database)


@pytest.fixture(scope="module")
def container(stack) -> dict:
    return described(stack, "app")


@pytest.fixture(scope="module")
def development() -> dict:
    """The development stack, started for this."""
    config = production_testing.stack("parity")
    try:
        dev_stack.up(config)
        stack = Stack({}, config.project, config.state)
        return described(stack, "uwsgi", "daphne", "runworker", *project.declared().processes)
    finally:
        compose_stack.down(config, volumes=True)


@pytest.fixture(scope="module")
def host() -> dict:
    if not HOST.is_file():
        pytest.skip("no host has been converged (`make test-production` does it first)")
    return json.loads(HOST.read_text())


def test_something_was_compared(container):
    assert len(container["nginx"]) > 10
    assert len(container["files"]) > 50
    assert {"/etc/nginx/carillon/site.conf", "/etc/nginx/nginx.conf"} <= set(container["nginx"])
    assert "CARILLON_SECRET_KEY_FILE" in container["environment"]
    assert "permission carillon .* .* .*" in container["broker"]
    assert "setting data_checksums = on" in container["database"]


def test_the_production_container_is_development(container, development):
    assert differences(development, container) == []


def test_what_the_project_declares_runs(container):
    assert set(container["argv"]) == {"uwsgi", "daphne", "runworker", *project.declared().processes}


def test_a_host_is_the_production_container(container, host):
    assert differences(container, host) == []


def test_no_exception_outlives_its_reason(container, development, host):
    used: set[str] = set()
    differences(development, container, used)
    differences(container, host, used)
    differences(development, host, used)
    tables = (ALLOWED_NGINX, ALLOWED_FILES, ALLOWED_ENVIRONMENT, ALLOWED_SERVICES)
    assert {words for table in tables for words in table} - used == set()
