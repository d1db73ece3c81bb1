"""A host: from an older release to this checkout and back, under load. No request fails on the way."""

from __future__ import annotations

import pytest

from tests.production import playbooks
from tests.production.hosts import current
from tests.production.ledger import Ledger
from tests.production.single import conftest as single

machine, secrets_dir, stack, healthy = single.machine, single.secrets_dir, single.stack, single.healthy


@pytest.fixture(scope="session")
def inventory(releases, machine, secrets_dir):
    """The older release's, kept over the upgrade."""
    releases.older()
    return single.edited_example(releases.clone, secrets_dir)


@pytest.fixture(scope="session")
def playbook(releases, inventory, secrets_dir):
    """The older release has installed the host."""
    run = playbooks.Playbooks(inventory, secrets_dir, releases.clone)
    run("site.yml")
    return run


def test_an_upgrade_and_back_lose_no_request_and_no_event(playbook, releases, machine, stack, healthy):
    healthy()
    first = current(machine)
    job = stack.api("/api/v2/jobs/", {"name": "of the older release"})
    releases.newer()
    with Ledger(stack) as ledger:
        playbook("upgrade.yml")
    ledger.assert_nothing_lost()
    assert current(machine) != first
    healthy()
    with Ledger(stack) as ledger:
        playbook("rollback.yml")
    ledger.assert_nothing_lost()
    assert current(machine) == first
    assert stack.api(f"/api/v2/jobs/{job['id']}/")["name"] == "of the older release"
    healthy()
