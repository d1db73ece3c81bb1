"""`make observe` beside the running stack: targets, rules, every alert's query, and one alert, live."""

from __future__ import annotations

import json
import os
import subprocess
import urllib.parse
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from dev import config as configuration
from dev import observe
from dev import stack as containers
from tests.infra.stack import docker, wait
from tests.unit.observability.test_alerts import FILES, FORM, ROOT, rules

HERE = "/etc/carillon/observability"


class Watched:
    def __init__(self, config: configuration.Config) -> None:
        self.config = config
        self.prometheus = f"http://127.0.0.1:{config.settings['CARILLON_PROMETHEUS_PORT']}"
        self.alertmanager = f"http://127.0.0.1:{config.settings['CARILLON_ALERTMANAGER_PORT']}"

    def ask(self, url: str):
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=15) as answer:
            return json.load(answer)

    def query(self, text: str) -> list[dict]:
        found = self.ask(f"{self.prometheus}/api/v1/query?{urllib.parse.urlencode({'query': text})}")
        return found["data"]["result"]

    def firing(self) -> set[str]:
        return {alert["labels"]["alertname"] for alert in self.ask(f"{self.alertmanager}/api/v2/alerts")}

    def run(self, *command: str, stdin: str = "") -> subprocess.CompletedProcess:
        container = containers.compose(self.config, "ps", "--quiet", "prometheus", seconds=30).strip()
        return subprocess.run(
            ["docker", "exec", "--interactive", container, *command],
            input=stdin, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip


@pytest.fixture(scope="module")
def watched(stack):
    """As `make observe` starts it, on the stack that is tested."""
    environ = {
        name.replace("CARILLON_STACK_", "CARILLON_"): value
        for name, value in os.environ.items()
        if name.startswith("CARILLON_STACK_") and name != "CARILLON_STACK_ENV"
    }
    shift = int(environ["CARILLON_HTTP_PORT"]) - configuration.DEFAULT_PORTS["CARILLON_HTTP_PORT"]
    ports = {name: str(port + shift) for name, port in observe.PORTS.items()}
    environ["CARILLON_STATE"] = str(Path(environ["CARILLON_STATE"]).resolve())
    config = observe.beside(configuration.load(environ), ports)
    # The unit tests' settings, which this process has in its environment, are not the stack's.
    config = replace(config, settings={**config.settings, "CARILLON_ALLOWED_HOSTS": ""})
    try:
        observe.up(config)
        type(stack).container.cache_clear()  # a checkout that has changed meanwhile makes other containers
        yield Watched(config)
    finally:
        containers.compose(config, "rm", "--stop", "--force", *observe.SERVICES, seconds=60)


def test_every_target_is_up(watched):
    jobs = yaml.safe_load((ROOT / "observability/prometheus.yml").read_text())["scrape_configs"]
    wanted = {job["job_name"] for job in jobs}
    wait(
        "every target is up",
        lambda: {row["metric"]["job"] for row in watched.query("up == 1")} == wanted,
        60,
        0.5,
    )


def test_the_rules_are_good(watched):
    names = [f"{HERE}/recording.yml", *(f"{HERE}/alerts/{path.name}" for path in FILES)]
    checked = watched.run("promtool", "check", "rules", "--lint-fatal", *names)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    config = watched.run("promtool", "check", "config", f"{HERE}/prometheus.yml")
    assert config.returncode == 0, config.stdout + config.stderr
    tested = watched.run("promtool", "test", "rules", f"{HERE}/tests/alerts.yml")
    assert tested.returncode == 0, tested.stdout + tested.stderr


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_query_of_each_alert_has_data(watched, path):
    (alert,) = rules(path)
    query = FORM.fullmatch(alert["expr"])["query"]
    wait(f"{alert['alert']} has data", lambda: watched.query(query), 60, 0.5)


PANELS = {
    f"{path.stem}: {panel['title']}: {target['expr']}": target["expr"]
    for path in sorted((ROOT / "observability/dashboards").glob("*.json"))
    for panel in json.loads(path.read_text())["panels"]
    for target in panel["targets"]
}


def test_the_query_of_each_panel_has_data(watched):
    """All at once: what is counted first by a request or a minute of time comes to all at the same time."""
    missing = dict(PANELS)

    def all_have() -> bool:
        for name, query in list(missing.items()):
            if watched.query(query):
                del missing[name]
        return not missing

    try:
        wait("every panel has data", all_have, 90, 1)
    except AssertionError:
        raise AssertionError(f"no data: {sorted(missing)}") from None


def test_a_dead_letter_raises_its_own_alert_and_no_other_and_it_resolves(watched, stack):
    uwsgi = stack.container("uwsgi")
    poison = (
        "from channels.layers import get_channel_layer as layer\n"
        "layer().publisher.send_many([('notifications', {'group': 5})], timeout=10)"
    )
    docker("exec", uwsgi, "carillon", "manage", "shell", "--command", poison)
    try:
        wait("the alert is there", lambda: watched.firing() == {"CarillonDeadLetters"}, 60, 0.5)
    finally:
        docker("exec", uwsgi, "carillon", "dead-letters", "drop", "all")
    wait("it resolves", lambda: not watched.query('ALERTS{alertname="CarillonDeadLetters"}'), 60, 0.5)
