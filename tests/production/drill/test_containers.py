"""Production in containers: from an older release to this one and back, under load, as the how-to says it."""

from __future__ import annotations

import pytest

from dev import production_testing
from tests.production.containers import stack_of
from tests.production.drill.conftest import image, installation, under_load


@pytest.fixture(scope="module")
def settings():
    return production_testing.stack("drill")


@pytest.fixture(scope="module")
def make(settings, releases):
    with installation(settings, releases.clone, "make") as make:
        yield make


@pytest.fixture(scope="module")
def stack(releases, settings, make):
    releases.older()
    make("production")
    return stack_of(settings)


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
