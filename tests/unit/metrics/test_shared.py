"""The directory that processes share: faults of it are said, counted, and stop nothing."""

from __future__ import annotations

import logging
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter

import carillon
from carillon.metrics import names, sampled, shared
from carillon.metrics.shared import Slot, Writer

CALLS = ("carillon_calls_total", (("process", "daphne"), ("slot", "0")))


class Process:
    def __init__(self, directory: Path, process: str = "daphne") -> None:
        self.registry = CollectorRegistry()
        self.calls = Counter("carillon_calls", "Calls", registry=self.registry)
        self.writer = Writer(directory, process, self.registry)

    def dies(self) -> None:
        """As a kill does it: the kernel takes the lock, the file stays."""
        self.writer._leave()


def samples(directory: Path) -> dict:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in shared.read(directory).collect()
        for sample in family.samples
    }


def value(directory: Path, name: str, process: str = "daphne", slot: int = 0) -> float | None:
    return samples(directory).get((name, (("process", process), ("slot", str(slot)))))


@pytest.fixture
def directory(tmp_path) -> Path:
    return tmp_path / "metrics"


@pytest.fixture
def failures():
    before = names.METRICS_FAILURES._value.get()
    return lambda: names.METRICS_FAILURES._value.get() - before


def test_the_event_loop_has_turns_while_a_snapshot_is_read(directory, monkeypatch):
    """The thread lets go of the interpreter's lock after every few families, and not only at the end."""
    read: list[str] = []
    turns: list[int] = []

    class Watched(CollectorRegistry):
        def collect(self):
            for metric in super().collect():
                read.append(metric.name)
                yield metric

    registry = Watched()
    for number in range(20):
        Counter(f"carillon_number_{number}", "A number", registry=registry)
    monkeypatch.setattr(shared.time, "sleep", lambda seconds: turns.append(len(read)))
    Writer(directory, "daphne", registry).once()
    assert turns == [6, 12, 18]
    assert len([name for name, _ in samples(directory) if name.startswith("carillon_number_")]) == 20


def test_every_process_has_a_slot_of_its_own(directory):
    one, other, worker = Process(directory), Process(directory), Process(directory, "runworker")
    for number, process in enumerate((one, other, worker), 1):
        process.calls.inc(number)
        process.writer.once()
    assert [
        value(directory, "carillon_calls_total", *where)
        for where in (("daphne", 0), ("daphne", 1), ("runworker", 0))
    ] == [1, 2, 3]
    assert directory.stat().st_mode & 0o777 == 0o700


def test_who_comes_after_one_that_died_counts_on_in_its_slot(directory):
    one = Process(directory)
    one.calls.inc(2)
    one.writer.once()
    one.dies()
    other = Process(directory)
    other.calls.inc(5)
    for _ in range(3):
        other.writer.once()
    assert value(directory, "carillon_calls_total") == 7
    assert value(directory, "carillon_calls_total", slot=1) is None


def test_a_directory_that_cannot_be_written_is_said_once_and_then_that_it_can(directory, caplog, failures):
    directory.write_text("a file in its place")
    process = Process(directory)
    for _ in range(3):
        process.calls.inc()
        process.writer.once()
    said = [record.message for record in caplog.records if record.name == "carillon.metrics.shared"]
    assert len(said) == 1
    assert said[0].startswith(f"Metrics cannot be written to {directory}: ")
    assert said[0].endswith("Events go on")
    assert failures() == 3
    directory.unlink()
    process.writer.once()
    assert caplog.records[-1].message == f"Metrics are written to {directory} again"
    assert value(directory, "carillon_calls_total") == 3


def test_a_directory_that_goes_away_is_made_anew(directory):
    process = Process(directory)
    process.calls.inc(2)
    process.writer.once()
    shutil.rmtree(directory)
    process.writer.once()
    process.writer.once()
    assert value(directory, "carillon_calls_total") == 2


def test_a_full_disk_keeps_the_last_whole_file_and_counts_nothing_twice(directory, caplog, failures):
    """The kernel's own refusal, in a process of its own: no file of it may grow beyond 64 bytes."""
    process = Process(directory)
    process.calls.inc(2)
    process.writer.once()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    process.calls.inc(3)
    logging.getLogger("carillon.metrics.shared").propagate = True
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))
        process.writer.once()
        process.writer.once()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert failures() == 2
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert value(directory, "carillon_calls_total") == 2
    assert not list(directory.glob("*.new"))
    process.writer.once()
    assert value(directory, "carillon_calls_total") == 5


WRITES = """
import sys
from pathlib import Path
from prometheus_client import CollectorRegistry, Counter
from carillon.metrics.shared import Slot
registry = CollectorRegistry()
calls = Counter("carillon_calls", "Calls", registry=registry)
more = Counter("carillon_more", "More", ["n"], registry=registry)
for n in range(2000):
    more.labels(str(n)).inc()
slot = Slot(Path(sys.argv[1]), "daphne")
while True:
    calls.inc()
    slot.write(registry)
    print(flush=True)
"""


def test_one_that_is_killed_while_it_writes_leaves_its_last_whole_file(directory):
    source = Path(__file__).parents[3] / "src"
    chance = random.Random(5)
    last = 0.0
    for _ in range(6):
        killed = subprocess.Popen(
            [sys.executable, "-c", WRITES, str(directory)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(source)},
        )
        for _ in range(chance.randrange(2, 6)):
            killed.stdout.readline()
        deadline = time.monotonic() + chance.random() / 50
        while time.monotonic() < deadline:
            pass  # any moment of a write: a sleep would be a coarse one
        killed.kill()
        killed.wait()
        killed.stdout.close()
        found = samples(directory)
        assert found[CALLS] > last
        last = found[CALLS]
        assert len([key for key in found if key[0] == "carillon_more_total"]) == 2000


def test_a_file_that_is_no_snapshot_is_left_out_and_said(directory, caplog):
    process = Process(directory)
    process.writer.once()
    (directory / "uwsgi-0.json").write_text("{")
    assert value(directory, "carillon_calls_total") == 0
    assert "uwsgi-0.json is left out of the metrics" in caplog.text
    taken = Process(directory, "uwsgi")
    taken.writer.once()
    assert value(directory, "carillon_calls_total", "uwsgi") == 0


def test_what_a_process_leaves_beside_its_snapshot(directory, monkeypatch):
    monkeypatch.setattr(shared, "_beside", {})
    shared.beside("history", lambda: b"1, 2")
    Process(directory, "daphne").writer.once()
    assert shared.read_beside(directory, "daphne", 0, "history") == b"1, 2"
    assert shared.read_beside(directory, "daphne", 1, "history") == b""
    assert len(list(shared.read(directory).collect())) > 0
    shared.forget(directory, ("uwsgi",))
    assert shared.read_beside(directory, "daphne", 0, "history") == b""


def test_there_is_an_end_to_the_slots(directory, monkeypatch):
    monkeypatch.setattr(shared, "MOST_SLOTS", 1)
    slot = Slot(directory, "daphne")
    with pytest.raises(shared.Full, match="1 processes"):
        Slot(directory, "daphne")
    slot.close()


def test_plain_numbers_are_copied_when_a_snapshot_is_taken(directory, monkeypatch):
    monkeypatch.setattr(sampled, "_sampled", [])
    process = Process(directory)

    class Hot:
        def __init__(self):
            self.number, self.grown = 0, sampled.Grown()

        def sample(self):
            process.calls.inc(self.grown.by(self.number))

    hot = Hot()
    sampled.sampled(hot)
    for number in (3, 3, 8):
        hot.number = number
        process.writer.once()
    assert value(directory, "carillon_calls_total") == 8
    del hot
    assert sampled._sampled == []


def test_the_writer_goes_on_by_itself_until_it_is_stopped(directory, monkeypatch):
    monkeypatch.setattr(shared, "INTERVAL", 0.01)
    process = Process(directory)
    process.writer.start()
    process.calls.inc(4)
    deadline = time.monotonic() + 10
    while not directory.is_dir() or value(directory, "carillon_calls_total") != 4:
        assert time.monotonic() < deadline, "nothing was written"
    process.writer.stop()
    assert not process.writer.is_alive()


def test_a_process_that_ends_in_order_leaves_all_that_it_counted(directory):
    script = f"""
from pathlib import Path
from carillon.metrics import names, shared
shared.INTERVAL = 60
shared.start(Path({str(directory)!r}), "uwsgi")
shared._writer.once()
names.EMITTED.inc(7)
"""
    subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(Path(carillon.__file__).parents[1])},
        check=True,
        timeout=60,
    )
    assert value(directory, "carillon_events_emitted_total", "uwsgi") == 7


def test_a_process_that_a_project_declares_and_what_it_forks_have_slots(directory):
    """Each fork comes between two snapshots: in the midst of one its locks would stay taken in the child."""
    script = f"""
import os, threading, time
from pathlib import Path
from carillon.metrics import names, shared
shared.INTERVAL = 0.001
shared.start_with_forks(Path({str(directory)!r}), "worker")
for _ in range(40):
    if not (child := os.fork()):
        names.EMITTED.inc()
        shared._writer.once()
        os._exit(0)
    os.waitpid(child, 0)
if not os.fork():
    names.EMITTED.inc()
    shared._writer.once()
    time.sleep(60)
print("forked", flush=True)
time.sleep(60)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(Path(carillon.__file__).parents[1])},
    )
    try:
        assert process.stdout.readline() == b"forked\n"
        deadline = time.monotonic() + 5
        emitted = ("carillon_events_emitted_total", "worker")
        while (value(directory, *emitted, slot=1), value(directory, "carillon_process_up", "worker")) != (
            41,
            1,
        ):
            assert time.monotonic() < deadline, samples(directory)
            time.sleep(0.05)
        # What is a daphne's alone is not shown.
        assert value(directory, "carillon_fanout_level", "worker") is None
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def run(script: str) -> None:
    subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(Path(carillon.__file__).parents[1])},
        check=True,
        timeout=60,
    )


def emitted(directory: Path, process: str, slots: int = 6) -> list[float | None]:
    return [value(directory, "carillon_events_emitted_total", process, slot) for slot in range(slots)]


def test_a_fork_does_not_count_what_its_parent_has_counted(directory):
    """Four at the same time that emit nothing, then one more that does, and one that it forks."""
    run(f"""
import os, signal
from pathlib import Path
from carillon.metrics import names, shared
shared.INTERVAL = 60
shared.start_with_forks(Path({str(directory)!r}), "worker")
names.EMITTED.inc(1000)
names.EMIT_SECONDS.observe(0.3)
shared._writer.once()
here, there = os.pipe()
children = []
for _ in range(4):
    if not (child := os.fork()):
        shared._writer.once()
        os.write(there, b"x")
        signal.pause()
    children.append(child)
    os.read(here, 1)
if not os.fork():
    names.EMITTED.inc(5)
    names.SPANS.labels("sent").inc(2)
    names.EMIT_SECONDS.observe(0.2)
    shared._writer.once()
    if not os.fork():
        names.EMITTED.inc(7)
        shared._writer.once()
        os._exit(0)
    os.wait()
    names.EMITTED.inc(1)
    shared._writer.once()
    os._exit(0)
os.wait()
for child in children:
    os.kill(child, 9)
""")
    assert emitted(directory, "worker", 7) == [1000, 0, 0, 0, 0, 6, 7]
    assert [value(directory, "carillon_emit_seconds_count", "worker", slot) for slot in range(7)] == [
        1, 0, 0, 0, 0, 1, 0,
    ]  # fmt: skip
    assert value(directory, "carillon_emit_seconds_sum", "worker", 5) == pytest.approx(0.2)
    sent = ("carillon_spans_total", (("outcome", "sent"), ("process", "worker"), ("slot", "5")))
    assert samples(directory)[sent] == 2


def test_what_has_not_been_sampled_before_the_fork_is_the_parents(directory):
    run(f"""
import os
from pathlib import Path
from carillon.metrics import names, sampled, shared
class Hot:
    number, grown = 0, sampled.Grown()
    def sample(self):
        names.EMITTED.inc(self.grown.by(self.number))
hot = Hot()
sampled.sampled(hot)
shared.INTERVAL = 60
shared.start_with_forks(Path({str(directory)!r}), "worker")
shared._writer.once()
hot.number = 10
if not os.fork():
    hot.number += 1
    shared._writer.once()
    os._exit(0)
os.wait()
""")
    assert emitted(directory, "worker", 2) == [10, 1]


def test_the_workers_of_one_that_serves_nobody_do_not_count_what_it_has_counted(directory):
    """As uwsgi's: some releases of it fork without asking who wants to know before."""
    run(f"""
import os
from pathlib import Path
from carillon.metrics import names, shared
shared.INTERVAL = 60
names.EMITTED.inc(100)
shared.start_in_forks(Path({str(directory)!r}), "uwsgi")
names.EMITTED.inc(100)
if not os.fork():
    names.EMITTED.inc(3)
    shared._writer.once()
    os._exit(0)
os.wait()
assert shared._writer is None
names.EMITTED.inc(100)
shared._forked()
names.EMITTED.inc(4)
shared._writer.once()
""")
    assert emitted(directory, "uwsgi", 2) == [7, None]


def test_a_process_that_is_named_twice_forks_as_the_last(directory):
    run(f"""
import os
from pathlib import Path
from carillon.metrics import names, shared
shared.INTERVAL = 60
shared.start_with_forks(Path({str(directory)!r}), "worker")
shared.start_in_forks(Path({str(directory)!r}), "uwsgi")
names.EMITTED.inc(100)
if not os.fork():
    names.EMITTED.inc(3)
    shared._writer.once()
    os._exit(0)
os.wait()
""")
    assert emitted(directory, "worker", 2) == [100, None]
    assert emitted(directory, "uwsgi", 2) == [3, None]


def test_a_collector_that_fails_at_a_fork_stops_nothing(directory):
    run(f"""
import os
from pathlib import Path
from prometheus_client import REGISTRY
from carillon.metrics import names, shared
class Failing:
    fails = False
    def collect(self):
        if self.fails:
            raise RuntimeError("as the test wants it")
        return []
shared.INTERVAL = 60
shared.start_with_forks(Path({str(directory)!r}), "worker")
names.EMITTED.inc(100)
shared._writer.once()
failing = Failing()
REGISTRY.register(failing)
failing.fails = True
if not os.fork():
    failing.fails = False
    names.EMITTED.inc(3)
    shared._writer.once()
    os._exit(0)
_, code = os.wait()
assert code == 0
failing.fails = False
""")
    assert emitted(directory, "worker", 2) == [100, 3]


def test_processes_that_there_are_no_more_of_are_not_missed(directory):
    for name in ("daphne", "worker-2", "gone", "gone-2"):
        Process(directory, name).writer.once()
    shared.forget(directory, ("daphne", "worker-2"))
    ups = {labels for name, labels in samples(directory) if name == "carillon_process_up"}
    assert {dict(labels)["process"] for labels in ups} == {"daphne", "worker-2"}
    shared.forget(directory / "none", ())
