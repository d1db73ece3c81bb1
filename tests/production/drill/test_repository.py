"""A team's own repository, made by an older release: its one line names this one, and then it goes back.

In containers, under load, with the team's own event in the ledger. How such a repository is deployed to a
host, and its code there changed, is in tests/production/repository.
"""

from __future__ import annotations

import urllib.request

import pytest

from dev import production_testing
from tests.production.containers import stack_of
from tests.production.drill.conftest import image, installation, run, under_load

NAME = "drill_site"
GREETING, EDITED = f"{NAME} is up", f"{NAME}, edited"


@pytest.fixture(scope="module")
def settings():
    return production_testing.stack("drill-site")


@pytest.fixture(scope="module")
def site(releases, tmp_path_factory):
    folder = tmp_path_factory.mktemp("team") / NAME
    releases.older()
    run("make", "new", f"SITE={folder}", folder=releases.clone)
    assert f"@{releases.commit}\n" in (folder / "carillon.version").read_text()
    return folder


@pytest.fixture(scope="module")
def carillon(settings, site):
    # Not make: a Makefile of the older release may know fewer commands.
    with installation(settings, site, "bin/carillon") as carillon:
        yield carillon


@pytest.fixture(scope="module")
def stack(settings, carillon):
    carillon("production")
    return stack_of(settings, family="bells", key=1)


def page(stack) -> str:
    with urllib.request.urlopen(stack.values["CARILLON_URL"], context=stack.tls(), timeout=10) as answer:
        return answer.read().decode()


def test_an_upgrade_and_back_are_one_line_and_keep_every_event_of_the_team_s(
    stack, settings, carillon, site, releases
):
    first, older = image(settings), releases.commit
    assert GREETING in page(stack)
    releases.newer()
    line = site / "carillon.version"
    line.write_text(line.read_text().replace(older, releases.commit))
    views = site / "src" / NAME / "views.py"
    views.write_text(views.read_text().replace(GREETING, EDITED))
    under_load(stack, carillon, "production-upgrade")
    assert image(settings) != first
    assert EDITED in page(stack)
    under_load(stack, carillon, "production-rollback")
    assert image(settings) == first
    assert GREETING in page(stack)
