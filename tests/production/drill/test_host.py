"""A host: from an older release to this checkout and back, under load. No request fails on the way."""

from __future__ import annotations

import pytest

from tests.production import playbooks
from tests.production.ledger import Ledger
from tests.production.single.conftest import (  # noqa: F401
    edited_example, healthy, machine, playbook, secrets_dir, stack,
)  # fmt: skip


@pytest.fixture(scope="session")
def inventory(older, machine, secrets_dir):  # noqa: F811
    """The older release's, kept over the upgrade; it has installed the host."""
    folder = edited_example(older, secrets_dir)
    playbooks.Playbooks(folder, secrets_dir, older)("site.yml")
    return folder


def current(machine) -> str:  # noqa: F811
    return machine.run("readlink /opt/carillon/current").strip()


def test_an_upgrade_and_back_lose_no_request_and_no_event(inventory, machine, stack, playbook, healthy):  # noqa: F811
    healthy()
    first = current(machine)
    job = stack.api("/api/v2/jobs/", {"name": "of the older release"})
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
