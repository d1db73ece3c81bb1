"""`make test-production`: real hosts by Ansible and the production containers, proved."""

from __future__ import annotations

import shutil
from dataclasses import replace

from dev import base_image, environments, process, production, testing
from dev.config import ROOT, Config
from dev.testing import Suite

LOCK = "requirements/production-test.txt"
HOST_IMAGE = "carillon-prod-host"
# Of ansible/molecule/*/molecule.yml.
HOSTS = ("carillon-prod-single", "carillon-prod-c1", "carillon-prod-c2", "carillon-prod-c3")
NETWORKS = ("carillon-prod-single", "carillon-prod-cluster")

LINTS = (
    Suite("ansible-lint", ("ansible-lint", "--offline", "--profile", "production", "-q"), folder="ansible"),
    Suite("yamllint", ("yamllint", "--strict", "ansible", "compose", "nginx/sites")),
    Suite(
        "syntax",
        (
            "ansible-playbook",
            "--syntax-check",
            "-i",
            "inventories/example-cluster",
            "site.yml",
            "upgrade.yml",
            "rollback.yml",
            "rotate.yml",
            "backup.yml",
            "restore.yml",
            "check.yml",
        ),
        folder="ansible",
    ),
)
# Molecule: a dry run on a fresh host, converge, a second one that changes nothing, and then testinfra looks.
SINGLE = Suite("host", ("molecule", "test", "--scenario-name", "single"), folder="ansible")
CLUSTER = Suite("hosts", ("molecule", "test", "--scenario-name", "cluster"), folder="ansible")
CONTAINER = Suite("container", ("pytest", "-q", "-p", "no:cacheprovider", "tests/production/container"))


def host_image(config: Config) -> None:
    """A Debian host with systemd, for Ansible."""
    process.work(
        ["docker", "build", "--progress", "plain", "--tag", HOST_IMAGE, str(ROOT / "tests/production/host")],
        what="the image of a host",
        log=config.logs / "build-host.log",
        seconds=900,
        env={"DOCKER_BUILDKIT": "1"},
    )


def enter(config: Config) -> None:
    environments.enter(environments.ensure(config, "venv-production", LOCK))


def remove_hosts() -> None:
    """The hosts of these tests, whoever left them: a run that was cut off, or this one."""
    process.ask(["docker", "rm", "--force", "--volumes", *HOSTS], seconds=120)
    process.ask(["docker", "network", "rm", *NETWORKS])


def test(config: Config, *, full: bool) -> int:
    """Lints, a real host, the production container; with `full` the rest. 0 when all passed."""
    base_image.ensure(config)
    host_image(config)
    production.build(config)
    with testing.interruptible():
        remove_hosts()
        try:
            return _test(config, full=full)
        finally:
            remove_hosts()


def _test(config: Config, *, full: bool) -> int:
    secrets = config.state / "host-secrets"
    shutil.rmtree(secrets, ignore_errors=True)
    # Secrets of their own for each: they are installations of their own.
    chosen = [
        replace(suite, environ=(("CARILLON_SECRETS_DIR", str(secrets / suite.name)),))
        for suite in (*LINTS, SINGLE, CONTAINER, *([CLUSTER] if full else []))
    ]
    environ = {"PYTHONPATH": str(ROOT), "ANSIBLE_CONFIG": str(ROOT / "ansible/ansible.cfg")}
    return testing.run(chosen, environ | ({"CARILLON_PRODUCTION_FULL": "1"} if full else {}))
