"""`carillon top`: the table, and what it says where there is nothing to show."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge

import carillon
from carillon import top
from carillon.metrics import shared
from carillon.metrics.shared import Writer


@pytest.fixture
def daphne(tmp_path):
    registry = CollectorRegistry()

    class Daphne:
        delivered = Counter("carillon_fanout_deliveries", "", registry=registry)
        position = Gauge("carillon_fanout_position", "", registry=registry)
        sockets = Gauge("carillon_sockets", "", ["protocol"], registry=registry)
        writer = Writer(tmp_path, "daphne", registry)

    yield Daphne
    Daphne.writer._leave()


def table(directory, before, seconds=1.0) -> tuple[dict, str]:
    now = top.add_up(shared.read(directory).collect())
    return now, "\n".join(top.lines(now, before, seconds))


def test_rates_are_of_the_time_between_and_the_rest_is_of_now(daphne, tmp_path):
    daphne.position.set(90)
    daphne.sockets.labels("v1").set(3)
    daphne.sockets.labels("v2").set(1200)
    daphne.delivered.inc(100)
    daphne.writer.once()
    before, _ = table(tmp_path, {})
    daphne.delivered.inc(3000)
    daphne.writer.once()
    relay = CollectorRegistry()
    Gauge("carillon_relay_position", "", registry=relay).set(100)
    Gauge("carillon_relay_active", "", registry=relay).set(1)
    former = CollectorRegistry()
    Gauge("carillon_relay_position", "", registry=former).set(5000)
    Gauge("carillon_relay_active", "", registry=former).set(0)
    others = [Writer(tmp_path, "runworker", registry) for registry in (relay, former)]
    for other in others:
        other.once()
    _, text = table(tmp_path, before, 2.0)
    for other in others:
        other._leave()
    assert "delivered 1,500/s" in text
    assert "emitted 0/s" in text
    (row,) = [line.split() for line in text.splitlines() if line.startswith("daphne 0")]
    assert row[:6] == ["daphne", "0", "yes", "90", "10", "1,203"]
    assert [line.split()[:4] for line in text.splitlines() if line.startswith("runworker 0")] == [
        ["runworker", "0", "yes", "100"]
    ]


def test_one_that_is_gone_is_seen(daphne, tmp_path, monkeypatch):
    daphne.writer.once()
    monkeypatch.setattr(shared, "SILENT", 0.0)
    _, text = table(tmp_path, {})
    assert [line.split()[:3] for line in text.splitlines() if line.startswith("daphne")] == [
        ["daphne", "0", "NO"]
    ]


def test_a_counter_that_began_anew_is_no_negative_rate(daphne, tmp_path):
    daphne.writer.once()
    _, text = table(tmp_path, {("carillon_fanout_deliveries_total", ""): 50.0})
    assert "delivered 0/s" in text


def test_once_is_one_table_without_a_terminal_s_codes(daphne, tmp_path, capsys):
    daphne.writer.once()
    assert top.run(0.1, once=True, directory=tmp_path) == 0
    assert "\x1b" not in (shown := capsys.readouterr().out)
    assert shown.startswith("emitted 0/s")


def test_where_there_is_nothing_it_says_so(tmp_path, capsys):
    assert top.run(0.1, once=True) == 75
    assert "CARILLON_METRICS_DIRECTORY is none" in capsys.readouterr().err
    assert top.run(0.1, once=True, directory=tmp_path / "gone") == 75
    assert "where Carillon's processes run" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["top", "explain"])
def test_a_command_reads_only_what_carillon_counts(command):
    """A metric that was renamed would show as 0."""
    source = (Path(carillon.__file__).parent / f"{command}.py").read_text()
    page = (Path(__file__).parents[3] / "docs/reference/metrics.md").read_text()
    read = set(re.findall(r'"(carillon_[a-z_]+)"', source))
    assert read
    assert [name for name in sorted(read) if f"`{name}`" not in page] == []
