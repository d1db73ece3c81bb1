"""What one process says of itself, and what several are together."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_client.parser import text_string_to_metric_families

from carillon.metrics import names, snapshot
from carillon.metrics.snapshot import Snapshot, Together


class Process:
    """One with a counter, a gauge and a histogram of its own."""

    def __init__(self, process: str = "daphne", slot: int = 0) -> None:
        self.process, self.slot = process, slot
        self.registry = CollectorRegistry()
        self.calls = Counter("carillon_calls", "Calls", ["kind"], registry=self.registry)
        self.size = Gauge("carillon_size_bytes", "Size", registry=self.registry)
        self.took = Histogram("carillon_took_seconds", "Took", buckets=(1, 2), registry=self.registry)
        self.of_the_machine = Counter("process_cpu_seconds", "CPU", registry=self.registry)

    def says(self, written: float = 100.0, before=(), inherited=()) -> Snapshot:
        families = snapshot.take(self.registry, self.process, dict(before), dict(inherited))
        said = Snapshot(self.process, self.slot, written, families)
        assert snapshot.unpack(snapshot.pack(said)) == said
        return said


def text(*said: Snapshot, now: float = 101.0, accept: str = "text/plain") -> str:
    encode, _ = choose_encoder(accept)
    return encode(Together(list(said), now, silent=10.0)).decode()


def test_the_samples_of_several_are_told_apart():
    one, other = Process(), Process("uwsgi", 3)
    one.calls.labels("a").inc(2)
    other.calls.labels("a").inc(5)
    one.took.observe(1.5)
    one.size.set(7)
    shown = text(one.says(), other.says())
    assert 'carillon_calls_total{kind="a",process="daphne",slot="0"} 2.0' in shown
    assert 'carillon_calls_total{kind="a",process="uwsgi",slot="3"} 5.0' in shown
    assert 'carillon_took_seconds_bucket{le="2.0",process="daphne",slot="0"} 1.0' in shown
    assert 'carillon_size_bytes{process="daphne",slot="0"} 7.0' in shown
    assert shown.count("# TYPE carillon_calls_total counter") == 1
    assert "_created" not in shown
    assert {family.name for family in text_string_to_metric_families(shown)} >= {"carillon_calls"}


def test_openmetrics_is_had_for_the_asking():
    shown = text(Process().says(), accept="application/openmetrics-text; version=1.0.0")
    assert shown.endswith("# EOF\n")


def test_of_one_that_is_gone_the_counters_stay():
    one = Process()
    one.calls.labels("a").inc(2)
    one.size.set(7)
    one.of_the_machine.inc()
    shown = text(one.says(written=100.0), now=111.0)
    assert 'carillon_calls_total{kind="a",process="daphne",slot="0"} 2.0' in shown
    assert "carillon_took_seconds_count" in shown
    assert "carillon_size_bytes" not in shown
    assert "process_cpu" not in shown
    assert 'carillon_process_up{process="daphne",slot="0"} 0.0' in shown
    assert 'carillon_process_up{process="daphne",slot="0"} 1.0' in text(one.says(written=100.0), now=109.0)


def test_the_next_one_in_the_slot_counts_on():
    before, after = Process(), Process()
    before.calls.labels("a").inc(2)
    before.calls.labels("b").inc(1)
    before.took.observe(1.5)
    before.size.set(7)
    before.of_the_machine.inc(9)
    after.calls.labels("a").inc(1)
    after.took.observe(0.5)
    shown = text(after.says(before=before.says().lasting()))
    assert 'carillon_calls_total{kind="a",process="daphne",slot="0"} 3.0' in shown
    assert 'carillon_calls_total{kind="b",process="daphne",slot="0"} 1.0' in shown
    assert 'carillon_took_seconds_count{process="daphne",slot="0"} 2.0' in shown
    assert 'carillon_took_seconds_sum{process="daphne",slot="0"} 2.0' in shown
    assert 'carillon_took_seconds_bucket{le="1.0",process="daphne",slot="0"} 1.0' in shown
    assert 'carillon_size_bytes{process="daphne",slot="0"} 0.0' in shown
    assert 'process_cpu_seconds_total{process="daphne",slot="0"} 0.0' in shown


def test_a_process_shows_its_own_alone(monkeypatch):
    monkeypatch.setitem(names.OWNERS, "carillon_calls", ("runworker",))
    families = {family.name for family in Process("daphne").says().families}
    assert "carillon_calls" not in families
    assert "carillon_size_bytes" in families
    assert "carillon_calls" in {family.name for family in Process("runworker").says().families}


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b'["daphne", 0, 1.0]', b'["daphne", "x", 1.0, []]', b"\xff", b"[" * 100_000]
)
def test_what_is_no_snapshot_is_said(data):
    with pytest.raises(ValueError, match="no snapshot"):
        snapshot.unpack(data)


def test_one_that_is_too_large_is_not_written(monkeypatch):
    monkeypatch.setattr(snapshot, "MOST_BYTES", 100)
    with pytest.raises(ValueError, match="100 are the most"):
        Process().says()


def test_what_was_inherited_at_a_fork_is_not_counted_again():
    one = Process()
    one.calls.labels("a").inc(5)
    one.took.observe(1.5)
    one.size.set(7)
    one.of_the_machine.inc(9)
    inherited = snapshot.inherited(one.registry)
    one.calls.labels("a").inc(2)
    one.calls.labels("b").inc(3)  # a label of after the fork
    one.took.observe(0.5)
    later = Counter("carillon_later", "Later", registry=one.registry)  # and a metric
    later.inc(4)
    shown = text(one.says(inherited=inherited))
    assert 'carillon_calls_total{kind="a",process="daphne",slot="0"} 2.0' in shown
    assert 'carillon_calls_total{kind="b",process="daphne",slot="0"} 3.0' in shown
    assert 'carillon_later_total{process="daphne",slot="0"} 4.0' in shown
    assert 'carillon_took_seconds_bucket{le="1.0",process="daphne",slot="0"} 1.0' in shown
    assert 'carillon_took_seconds_bucket{le="2.0",process="daphne",slot="0"} 1.0' in shown
    assert 'carillon_took_seconds_bucket{le="+Inf",process="daphne",slot="0"} 1.0' in shown
    assert 'carillon_took_seconds_count{process="daphne",slot="0"} 1.0' in shown
    assert 'carillon_took_seconds_sum{process="daphne",slot="0"} 0.5' in shown
    assert 'carillon_size_bytes{process="daphne",slot="0"} 7.0' in shown
    # The kernel counts that, for each process from 0 on.
    assert 'process_cpu_seconds_total{process="daphne",slot="0"} 9.0' in shown


def test_what_began_anew_after_the_fork_is_not_less_than_nothing():
    one = Process()
    one.calls.labels("a").inc(5)
    one.calls.labels("b").inc(5)
    one.took.observe(1.5)
    inherited = snapshot.inherited(one.registry)
    one.calls.clear()
    one.took.clear()
    one.calls.labels("a").inc(1)
    shown = text(one.says(inherited=inherited))
    assert 'carillon_calls_total{kind="a",process="daphne",slot="0"} 1.0' in shown
    assert 'kind="b"' not in shown
    assert 'carillon_took_seconds_count{process="daphne",slot="0"} 0.0' in shown
    assert 'carillon_took_seconds_sum{process="daphne",slot="0"} 0.0' in shown


def test_a_sum_that_becomes_less_is_less():
    one = Process()
    one.took.observe(1.5)
    inherited = snapshot.inherited(one.registry)
    one.took.observe(-0.5)
    assert 'carillon_took_seconds_sum{process="daphne",slot="0"} -0.5' in text(one.says(inherited=inherited))


def test_a_fork_counts_on_what_its_slot_had_and_not_what_its_parent_has():
    before, forked = Process(), Process()
    before.calls.labels("a").inc(2)
    forked.calls.labels("a").inc(100)
    inherited = snapshot.inherited(forked.registry)
    forked.calls.labels("a").inc(1)
    shown = text(forked.says(before=before.says().lasting(), inherited=inherited))
    assert 'carillon_calls_total{kind="a",process="daphne",slot="0"} 3.0' in shown
