"""The reference table and the code say the same, and the names keep Prometheus' rules."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prometheus_client import REGISTRY
from prometheus_client.metrics import MetricWrapperBase

from carillon.metrics import names

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "metrics.md"
METRICS = [value for value in vars(names).values() if isinstance(value, MetricWrapperBase)]
UNITS = ("_seconds", "_bytes", "_info")


def full_name(metric: MetricWrapperBase) -> str:
    return metric._name + ("_total" if metric._type == "counter" else "")


def table() -> list[str]:
    """The rows that the reference must have."""
    rows = []
    for metric in METRICS:
        owners = names.OWNERS[metric._name]
        of = "every process" if owners == names.EVERYWHERE else ", ".join(owners)
        labels = ", ".join(f"`{label}`" for label in metric._labelnames)
        rows.append(f"| `{full_name(metric)}` | {metric._type} | {labels} | {of} | {metric._documentation} |")
    name, text = names.UP
    return [*rows, f"| `{name}` | gauge |  | every process | {text} |"]


def test_the_reference_has_each_of_them_and_no_other():
    found = [line for line in PAGE.read_text().splitlines() if line.startswith("| `carillon_")]
    assert found == table()


@pytest.mark.parametrize("metric", METRICS, ids=full_name)
def test_a_name_keeps_the_rules(metric):
    name = full_name(metric)
    assert re.fullmatch(r"carillon(_[a-z]+)+", name)
    assert metric._documentation
    assert not metric._documentation.endswith(".")
    if metric._type == "histogram":
        assert name.endswith(UNITS)
    if metric._type == "gauge":
        assert not name.endswith("_total")
    assert not {"user", "group", "id", "token", "address", "le", "process", "slot"} & set(metric._labelnames)


def test_each_is_registered_with_its_owners():
    shown = {family.name for family in REGISTRY.collect() if family.name.startswith("carillon_")}
    assert shown == {metric._name for metric in METRICS} == names.OWNERS.keys()


@pytest.mark.parametrize("metric", [each for each in METRICS if each._labelnames], ids=full_name)
def test_what_can_be_known_is_there_from_the_start(metric):
    """Else the first of its kind is no increase to Prometheus."""
    open_ended = {
        "carillon_http_requests",
        "carillon_http_request_seconds",
        "carillon_build_info",
        "carillon_retention_overdue_seconds",  # a gauge; a project may have kinds of its own
    }
    assert (metric._name in open_ended) or metric._metrics


@pytest.mark.parametrize(
    ("code", "label"), [(None, "1000"), (4408, "4408"), ("dead", "dead"), (4999, "other"), (3000, "other")]
)
def test_a_project_s_own_close_code_makes_no_label_of_its_own(code, label):
    counter = names.CLOSED.labels(label)
    before = counter._value.get()
    names.closed(code)
    assert counter._value.get() == before + 1
    assert {values for (values,) in names.CLOSED._metrics} == set(names.CODES)
