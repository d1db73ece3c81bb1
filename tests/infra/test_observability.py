"""`make observe` beside the running stack: targets, rules, every alert's query, and one alert, live."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from websockets.exceptions import WebSocketException

from dev import config as configuration
from dev import observe
from dev import stack as containers
from tests.infra.stack import docker, wait
from tests.unit.observability.test_alerts import FILES, FORM, ROOT, rules

HERE = "/etc/carillon/observability"
ROUTE = yaml.safe_load((ROOT / "observability/alertmanager.yml").read_text())["route"]
WAITED = int(ROUTE["group_wait"].removesuffix("s"))
"""Seconds until somebody is told of an alert."""


class Watched:
    def __init__(self, config: configuration.Config) -> None:
        self.config = config
        self.prometheus = f"http://127.0.0.1:{config.ports['CARILLON_PROMETHEUS_PORT']}"
        self.alertmanager = f"http://127.0.0.1:{config.ports['CARILLON_ALERTMANAGER_PORT']}"

    def ask(self, url: str):
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=15) as answer:
            return json.load(answer)

    def query(self, text: str) -> list[dict]:
        found = self.ask(f"{self.prometheus}/api/v1/query?{urllib.parse.urlencode({'query': text})}")
        return found["data"]["result"]

    def firing(self) -> set[str]:
        return {alert["labels"]["alertname"] for alert in self.ask(f"{self.alertmanager}/api/v2/alerts")}

    def told(self) -> set[str]:
        """What somebody is told of: it does not follow from another alert that came meanwhile."""
        now = datetime.now(UTC)
        return {
            alert["labels"]["alertname"]
            for alert in self.ask(f"{self.alertmanager}/api/v2/alerts")
            if alert["status"]["state"] == "active"
            and now - datetime.fromisoformat(alert["startsAt"]) > timedelta(seconds=WAITED)
        }

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
    # A rule that looks back a minute from a minute ago has none before Prometheus has run for two.
    seconds = 150 if " offset " in query else 60
    wait(f"{alert['alert']} has data", lambda: watched.query(query), seconds, 0.5)


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


# Alerts, live


# That events are slow is true of a machine that tests much at once.
OTHERS = 'ALERTS{alertname!="CarillonEventsSlow"}'
FIRING = 'ALERTS{alertname!="CarillonEventsSlow",alertstate="firing"}'


@contextmanager
def load(stack):
    """Events, a few a second, whatever becomes of them."""
    over = threading.Event()

    def emit() -> None:
        while not over.wait(0.3):
            with suppress(OSError, ValueError):
                stack.api("/api/v2/notifications/", {"group": "schedules-changed", "payload": {}})

    thread = threading.Thread(target=emit)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(60)


def serves(stack) -> bool:
    with suppress(WebSocketException):  # nginx answers while daphne does not
        return stack.deliver()
    return False


def only(watched, stack, own: str | None, broken, seconds: float = 60, resolves=150) -> None:
    """While it is broken this alert comes within a minute, and nobody is told of another; then it resolves.
    None: nobody is told of any. An alert that others follow from is kept for 75 s (`keep_firing_for`)."""
    told: set[str] = set()

    def has_come() -> bool:
        told.update(watched.told())
        return own in watched.firing()

    wait("nothing fires before", lambda: not watched.query(OTHERS), 120, 1)
    with load(stack):
        with broken:
            if own:
                wait(f"{own} comes", has_come, seconds, 0.5)
            deadline = time.monotonic() + (2 * WAITED if own else seconds)
            while time.monotonic() < deadline:
                has_come()
                time.sleep(0.5)
        wait("the stack serves", lambda: serves(stack), 120, 1)
        wait("it resolves", lambda: not has_come() and not watched.query(FIRING), resolves, 0.5)
    assert told <= {own, "CarillonEventsSlow"}, f"told of {told}"
    assert own is None or own in told


@contextmanager
def poison(stack):
    uwsgi = stack.container("uwsgi")
    put = (
        "from channels.layers import get_channel_layer as layer\n"
        "layer().publisher.send_many([('notifications', {'group': 5})], timeout=10)"
    )
    docker("exec", uwsgi, "carillon", "manage", "shell", "--command", put)
    try:
        yield
    finally:
        docker("exec", uwsgi, "carillon", "dead-letters", "drop", "all")


@contextmanager
def killed(stack, service):
    container = stack.container(service)
    docker("kill", "--signal", "KILL", container)
    try:
        yield
    finally:
        docker("start", container)


@contextmanager
def disk_full(stack):
    def limit(size: str) -> None:
        docker("exec", stack.container("rabbitmq"), "rabbitmqctl", "-q", "set_disk_free_limit", size)

    limit("1000GB")
    try:
        yield
    finally:
        limit("1GB")


@contextmanager
def log_deleted(stack):
    def rabbitmqctl(*words: str) -> str:
        words = (words[0], "-p", "carillon", *words[1:])
        return docker("exec", stack.container("rabbitmq"), "rabbitmqctl", "-q", *words)

    names = rabbitmqctl("list_queues", "name").split()
    (stream,) = [name for name in names if name.startswith("carillon.events.")]
    rabbitmqctl("delete_queue", stream)
    yield


def test_a_dead_letter_raises_its_own_alert_and_no_other_and_it_resolves(watched, stack):
    only(watched, stack, "CarillonDeadLetters", poison(stack))


long = pytest.mark.skipif(not os.environ.get("CARILLON_LONG"), reason="a minute or two: CARILLON_LONG=1")


@pytest.mark.parametrize(
    ("service", "own"),
    [
        ("runworker", "CarillonNoActiveRelay"),
        pytest.param("daphne", "CarillonProcessGone", marks=long),
        pytest.param("uwsgi", "CarillonMetricsAway", marks=long),
        pytest.param("nginx", "CarillonNginxAway", marks=long),
        pytest.param("rabbitmq", "CarillonBrokerAway", marks=long),
        pytest.param("postgresql", "CarillonDatabaseAway", marks=long),
    ],
)
def test_a_service_that_is_away_raises_its_own_alert_and_no_other_and_it_resolves(
    watched, stack, service, own
):
    only(watched, stack, own, killed(stack, service))


@long
def test_a_full_disk_of_the_broker_raises_its_own_alert_and_no_other_and_it_resolves(watched, stack):
    only(watched, stack, "CarillonBrokerAlarm", disk_full(stack))


@long
@pytest.mark.parametrize("service", ["daphne", "runworker", "rabbitmq"])
def test_what_is_back_at_once_is_told_to_nobody(watched, stack, service):
    with killed(stack, service):
        pass
    only(watched, stack, None, nullcontext(), 45)


@long
def test_a_log_that_is_gone_raises_its_own_alert_and_no_other(watched, stack):
    """It is told for as long as the increase is looked for: ten minutes."""
    only(watched, stack, "CarillonFanoutGap", log_deleted(stack), resolves=660)
