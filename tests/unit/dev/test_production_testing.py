"""What the production tests make is what is cleared: by name, so the names must be the same."""

from __future__ import annotations

import pytest
import yaml

from dev import production_testing
from dev.config import ROOT
from dev.output import Failure


def scenarios() -> list[dict]:
    files = sorted((ROOT / "ansible/molecule").glob("*/molecule.yml"))
    return [yaml.safe_load(file.read_text()) for file in files]


def test_every_host_and_network_of_molecule_is_cleared():
    platforms = [platform for scenario in scenarios() for platform in scenario["platforms"]]
    assert platforms
    assert {platform["name"] for platform in platforms} <= set(production_testing.HOSTS)
    networks = {network["name"] for platform in platforms for network in platform["networks"]}
    assert networks <= set(production_testing.NETWORKS)


def test_stacks_of_the_tests_share_no_port_and_no_name_with_anything():
    configs = [production_testing.stack(name) for name in production_testing.STACKS]
    ports = [port for config in configs for port in config.ports.values()]
    assert len(ports) == len(set(ports))
    assert (
        len({config.project for config in configs})
        == len({config.state for config in configs})
        == len(configs)
    )
    assert all(config.state.name.startswith(".dev-prod-") for config in configs)


def test_the_state_of_somebodys_own_stack_is_never_the_tests(monkeypatch):
    monkeypatch.setenv("CARILLON_STATE", "mine")
    monkeypatch.setenv("CARILLON_PROJECT", "mine")
    assert production_testing.load().state == ROOT / ".dev-production-test"
    assert production_testing.load().project == "carillon-production-test"


def test_suites_are_chosen_by_name_and_an_unknown_one_is_named():
    chosen = production_testing.suites(full=True, only=["hosts", "yamllint"])
    assert [suite.name for suite in chosen] == ["yamllint", "hosts"]
    with pytest.raises(Failure, match=r"SUITES: no suite hosts; there are .*container"):
        production_testing.suites(full=False, only=["hosts"])
