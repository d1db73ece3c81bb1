"""The rules as files: one alert each, said whole, about metrics that there are, and on its page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

from carillon.metrics import names

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "observability"
FILES = sorted((FOLDER / "alerts").glob("*.yml"))
PAGE = ROOT / "docs/how-to/watch-it.md"
FORM = re.compile(r"(?P<query>.+) (?P<operator><|>) (?P<bound>[0-9.]+)", re.DOTALL)


def rules(path: Path) -> list[dict]:
    return [rule for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


def known() -> set[str]:
    """Every name of ours that a query may have."""
    found = {names.UP[0], *(rule["record"] for rule in rules(FOLDER / "recording.yml"))}
    for metric in vars(names).values():
        if isinstance(metric, MetricWrapperBase):
            suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(
                metric._type, ("",)
            )
            found.update(metric._name + suffix for suffix in suffixes)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_alert_is_a_file_that_says_why_and_what_to_do(path):
    (alert,) = rules(path)
    assert re.sub(r"(?<=[a-z])(?=[A-Z])", "-", alert["alert"]).lower() == f"carillon-{path.stem}"
    assert alert["labels"]["severity"] in ("warning", "critical")
    said = alert["annotations"]
    assert set(said) == {"summary", "why", "action", "page"}
    assert all(text.endswith(".") for name, text in said.items() if name != "page")
    page, _, anchor = said["page"].partition("#")
    assert ROOT / page == PAGE
    section = f"### {alert['alert']} {said['why']} **Do:** {said['action']}"
    assert section in " ".join(PAGE.read_text().split())
    assert anchor == alert["alert"].lower()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_its_query_has_data_when_all_is_well(path):
    """A comparison at the end, and nothing else that drops series: tests/infra asks for what is before."""
    (alert,) = rules(path)
    match = FORM.fullmatch(alert["expr"])
    assert match
    assert not re.search(r" (<|>|==|!=) ", match["query"])


@pytest.mark.parametrize("path", [FOLDER / "recording.yml", *FILES], ids=lambda path: path.stem)
def test_it_asks_for_what_there_is(path):
    for rule in rules(path):
        asked = set(re.findall(r"\bcarillon[_:][a-z0-9_:]+", rule["expr"]))
        assert asked <= known(), asked - known()


@pytest.mark.parametrize("path", sorted((FOLDER / "dashboards").glob("*.json")), ids=lambda path: path.stem)
def test_a_dashboard_asks_for_what_there_is(path):
    board = json.loads(path.read_text())
    assert board["uid"] == f"carillon-{path.stem}"
    for panel in board["panels"]:
        assert panel["datasource"]["uid"] == "${datasource}"
        for target in panel["targets"]:
            asked = set(re.findall(r"\bcarillon[_:][a-z0-9_:]+", target["expr"]))
            assert asked <= known(), asked - known()


def test_each_has_a_test_of_its_own():
    tested = yaml.safe_load((FOLDER / "tests/alerts.yml").read_text())["tests"]
    names = {test["name"].partition(",")[0] for test in tested}
    assert names == {rules(path)[0]["alert"] for path in FILES}


def test_the_page_has_no_alert_that_there_is_not():
    headed = re.findall(r"^### (Carillon\w+)$", PAGE.read_text(), re.MULTILINE)
    assert sorted(headed) == sorted(rules(path)[0]["alert"] for path in FILES)
