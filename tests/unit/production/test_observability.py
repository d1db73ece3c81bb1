"""What the role observability makes of the files of `make observe`, for the hosts of an inventory."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.unit.production.test_control_node import ANSIBLE, ROOT

ROLE = ANSIBLE / "roles/observability"
CHECKOUT = yaml.safe_load((ROOT / "observability/prometheus.yml").read_text())
HOSTS = {"app1": "10.0.0.1", "app2": "10.0.0.2", "db": "10.0.0.3", "watch": "10.0.0.4"}
CLUSTER = {
    "topology_single": False,
    "topology_hosts": list(HOSTS),
    "topology_addresses": HOSTS,
    "topology_proxies": ["app1", "app2"],
    "topology_apps": ["app1", "app2"],
    "topology_brokers": ["app1", "app2", "db"],
    "topology_databases": ["db"],
    "topology_watchers": ["watch"],
}
SINGLE = {
    **{name: ["chimes"] for name in CLUSTER if name != "topology_addresses"},
    "topology_single": True,
    "topology_hosts": ["chimes"],
    "topology_addresses": {"chimes": "192.0.2.7"},
}


@pytest.fixture
def made(play, tmp_path):
    """The configuration, and the arguments of each program of a host of these groups."""

    def make(topology: dict, shown: str, groups: list[str]) -> tuple[dict, dict]:
        shown_of = {"content": "{{ [observability_config, observability_defaults] | to_json }}"}
        code, said = play(
            {"ansible.builtin.include_vars": str(ROLE / "defaults/main.yml")},
            {"ansible.builtin.include_vars": str(ROLE / "vars/main.yml")},
            {"ansible.builtin.copy": {**shown_of, "dest": str(tmp_path / "made")}},
            **topology,
            topology_shown=shown,
            topology_source=str(ROOT),
            group_names=groups,
        )
        assert code == 0, said
        config, files = yaml.safe_load(Path(tmp_path, "made").read_text())
        return config, {Path(file["dest"]).name: file["content"] for file in files}

    return make


def targets(config: dict) -> dict[str, list[str]]:
    return {job["job_name"]: job["static_configs"][0]["targets"] for job in config["scrape_configs"]}


def test_of_several_hosts_each_is_asked_for_its_own(made):
    config, programs = made(CLUSTER, "10.0.0.4", ["carillon", "observability"])
    assert targets(config) == {
        "carillon": ["10.0.0.1:8113", "10.0.0.2:8113"],
        "rabbitmq": ["10.0.0.1:15692", "10.0.0.2:15692", "10.0.0.3:15692"],
        "postgresql": ["10.0.0.3:9187"],
        "nginx": ["10.0.0.1:9113", "10.0.0.2:9113"],
        "prometheus": ["127.0.0.1:9090"],
        "alertmanager": ["127.0.0.1:9093"],
    }
    assert config["alerting"]["alertmanagers"] == [{"static_configs": [{"targets": ["127.0.0.1:9093"]}]}]
    assert set(programs) == {"prometheus", "prometheus-alertmanager"}
    assert "--web.listen-address=127.0.0.1:9090" in programs["prometheus"]


def test_exporters_stand_beside_what_they_ask(made):
    _, programs = made(CLUSTER, "10.0.0.1", ["carillon", "nginx", "app", "rabbitmq"])
    assert set(programs) == {"prometheus-nginx-exporter"}
    assert "http://10.0.0.1:8113/nginx/status" in programs["prometheus-nginx-exporter"]
    _, programs = made(CLUSTER, "10.0.0.3", ["carillon", "postgresql"])
    assert set(programs) == {"prometheus-postgres-exporter"}
    # By the socket, as the system's user: there is no password.
    assert "host=/var/run/postgresql user=prometheus" in programs["prometheus-postgres-exporter"]


def test_on_one_host_all_of_it_is_on_the_loopback(made):
    config, programs = made(SINGLE, "127.0.0.1", ["carillon", "nginx", "postgresql", "observability"])
    assert {one.rpartition(":")[0] for found in targets(config).values() for one in found} == {"127.0.0.1"}
    assert len(programs) == 4
    assert all("--web.listen-address=127.0.0.1:" in text for text in programs.values())


def test_all_else_is_as_make_observe_has_it(made):
    """One definition: jobs, their paths and intervals, and the rules."""
    config, _ = made(SINGLE, "127.0.0.1", ["observability"])

    def rest(config: dict) -> dict:
        own = ("static_configs", "authorization")
        jobs = [
            {name: value for name, value in job.items() if name not in own}
            for job in config["scrape_configs"]
        ]
        return {**config, "scrape_configs": jobs, "alerting": None}

    assert rest(config) == rest(CHECKOUT)
