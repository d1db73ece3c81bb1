"""A team's own repository, made by an older release: its one line names this one, and then it goes back.

Under load, with the team's own event in the ledger. What else happens to such a repository on a host is in
tests/production/repository.
"""

from __future__ import annotations

import pytest

from dev import production_testing
from tests.production import containers
from tests.production.conftest import wait_for
from tests.production.drill.conftest import Team, image, installation, page, under_load
from tests.production.hosts import current
from tests.production.ledger import Ledger
from tests.production.repository import conftest as repository
from tests.production.single import conftest as single

machine, deploy = repository.machine, repository.deploy


@pytest.fixture(scope="module")
def team(releases, tmp_path_factory):
    return Team.new(tmp_path_factory.mktemp("team") / "drill_site", releases)


@pytest.fixture(scope="module")
def site(team):
    repository.put_host(team.site)
    return team.site


def test_in_containers_an_upgrade_and_back_are_one_line_and_keep_every_event(releases):
    production_testing.DRILL_SITE.parent.mkdir()
    team = Team.new(production_testing.DRILL_SITE, releases)
    settings = production_testing.stack("drill-site")
    # Not make: the Makefile of an older release may know fewer commands.
    with installation(settings, team.site, "bin/carillon") as carillon:
        carillon("production")
        stack = containers.stack_of(settings, family=team.family, key=team.key)
        first = image(settings)
        assert team.greeting() in page(stack)
        team.go_on()
        under_load(stack, carillon, "production-upgrade")
        assert image(settings) != first
        assert team.greeting(edited=True) in page(stack)
        under_load(stack, carillon, "production-rollback")
        assert image(settings) == first
        assert team.greeting() in page(stack)


def test_on_a_host_they_lose_no_request_either(team, machine, deploy):
    deploy()
    stack = single.stack_of(machine, team.site / "inventory/secrets", family=team.family, key=team.key)
    wait_for(stack.deliver, 120, "an event goes all the way", machine.logs)
    assert team.greeting() in page(stack)
    first = current(machine)
    team.go_on()
    with Ledger(stack) as ledger:
        deploy("PLAYBOOK=upgrade.yml")
    ledger.assert_nothing_lost()
    assert current(machine) != first
    assert team.greeting(edited=True) in page(stack)
    with Ledger(stack) as ledger:
        deploy("PLAYBOOK=rollback.yml")
    ledger.assert_nothing_lost()
    assert current(machine) == first
    assert team.greeting() in page(stack)
