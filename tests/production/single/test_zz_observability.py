"""The group observability comes to a host that runs: Prometheus asks all of it, and Alertmanager is told."""

from __future__ import annotations

import json
import os
from urllib.parse import quote

import pytest
import yaml

from tests.production.conftest import ROOT, wait_for
from tests.production.single.conftest import NAME

pytestmark = pytest.mark.skipif(
    not os.environ.get("CARILLON_PRODUCTION_FULL"), reason="it takes minutes: make test-production-full"
)

JOBS = {
    job["job_name"]
    for job in yaml.safe_load((ROOT / "observability/prometheus.yml").read_text())["scrape_configs"]
}


@pytest.fixture(scope="module")
def watched(machine, playbook, inventory):
    hosts = inventory / "hosts.yml"
    before = hosts.read_text()
    found = yaml.safe_load(before)
    found["all"]["children"]["carillon"]["children"]["observability"] = {"hosts": {NAME: {}}}
    hosts.write_text(yaml.safe_dump(found))
    try:
        playbook("site.yml")
        yield playbook
    finally:
        hosts.write_text(before)


def ask(machine, path: str, port: int = 9090):
    return json.loads(machine.run(f"curl --silent --show-error --fail '127.0.0.1:{port}{path}'"))


def query(machine, text: str) -> list[dict]:
    return ask(machine, f"/api/v1/query?query={quote(text)}")["data"]["result"]


def test_every_target_is_up(watched, machine):
    wait_for(
        lambda: {row["metric"]["job"] for row in query(machine, "up == 1")} == JOBS, 60, "every target is up"
    )
    assert query(machine, "pg_up == 1")
    assert query(machine, "nginx_up == 1")
    assert query(machine, 'carillon_process_up{process="runworker"} == 1')


def test_it_has_the_rules_of_the_checkout(watched, machine):
    groups = ask(machine, "/api/v1/rules")["data"]["groups"]
    alerts = {rule["name"] for group in groups for rule in group["rules"] if rule["type"] == "alerting"}
    assert len(alerts) == len(list((ROOT / "observability/alerts").glob("*.yml")))


def test_all_of_it_listens_on_the_loopback_alone(watched, machine):
    for port in (9090, 9093, 9113, 9187, 8113, 15692):
        lines = machine.run(f"ss -Hltn 'sport = :{port}'").splitlines()
        assert [line.split()[3] for line in lines] == [f"127.0.0.1:{port}"], port


def test_a_runworker_that_is_away_raises_its_alert_and_it_resolves(watched, machine, healthy):
    machine.run("carillon-ctl stop runworker")

    def firing() -> set[str]:
        return {alert["labels"]["alertname"] for alert in ask(machine, "/api/v2/alerts", 9093)}

    try:
        wait_for(lambda: "CarillonNoActiveRelay" in firing(), 120, "Alertmanager has heard of it")
    finally:
        machine.run("carillon-ctl start runworker")
    wait_for(lambda: not query(machine, "ALERTS"), 120, "nothing fires any more")
    healthy()


def test_a_second_run_changes_nothing(watched):
    output = watched("site.yml")
    assert "changed=0" in output, "\n".join(line for line in output.splitlines() if "changed:" in line)
