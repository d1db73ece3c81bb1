"""Production in containers: from an older release to this one and back, under load, as the how-to says it."""

from __future__ import annotations

import os
import re
import subprocess
from collections import Counter

import pytest

from dev import production_testing
from tests.infra.stack import Stack, wait
from tests.production.containers import docker, stack_of
from tests.production.ledger import Ledger

SECONDS = 1800
# What docs/how-to/production-container.md says of the while in which the container is replaced.
OUTAGE = re.compile("HTTPError 50[234]|refused|reset|closed|timed out|EOF", re.IGNORECASE)


@pytest.fixture(scope="module")
def settings():
    return production_testing.stack("drill")


@pytest.fixture(scope="module")
def make(settings, releases):
    """make(target): as an operator of this installation would, whichever release is checked out."""
    theirs = ("CARILLON_", "MAKE", "PYTHONPATH", "ANSIBLE_")
    keep = {name: value for name, value in os.environ.items() if not name.startswith(theirs)}
    ports = {name: str(port) for name, port in settings.ports.items()}
    own = {"CARILLON_PROJECT": settings.project, "CARILLON_STATE": str(settings.state), **ports}

    def make(target):
        done = subprocess.run(
            ["make", target],
            cwd=releases.clone,
            env={**keep, **own},
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        Stack.container.cache_clear()  # containers are others than before
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

    yield make
    if not os.environ.get("CARILLON_KEEP"):
        make("production-clean")  # before a host needs the machine


@pytest.fixture(scope="module")
def stack(releases, settings, make):
    releases.older()
    make("production")
    return stack_of(settings)


def image(settings) -> str:
    name = f"{settings.project}-app-1"
    return docker("inspect", "--format", "{{.Image}}", name).stdout.strip()


def under_load(stack, make, target) -> None:
    """An outage is the container's; what was accepted is heard after it, once."""
    with Ledger(stack) as ledger:
        make(target)
        wait("an event goes all the way", stack.deliver, 120)
    missing = ledger.wait_until_heard(60)
    print(f"{target}: {ledger.report()}", Counter(line.split(": ", 1)[1] for line in ledger.failures))
    assert missing == set()
    assert len(ledger.heard) == len(set(ledger.heard)), "an event came twice"
    assert len(ledger.accepted) > 20
    assert [line for line in ledger.failures if not OUTAGE.search(line)] == []


def test_an_upgrade_and_back_keep_every_event_that_was_accepted_and_the_rows(stack, settings, make, releases):
    first = image(settings)
    before = stack.api("/api/v2/jobs/", {"name": "of the older release"})
    releases.newer()
    under_load(stack, make, "production-upgrade")
    assert image(settings) != first
    assert stack.api(f"/api/v2/jobs/{before['id']}/")["name"] == "of the older release"
    during = stack.api("/api/v2/jobs/", {"name": "of this one"})
    under_load(stack, make, "production-rollback")
    assert image(settings) == first
    names = [stack.api(f"/api/v2/jobs/{job['id']}/")["name"] for job in (before, during)]
    assert names == ["of the older release", "of this one"]
