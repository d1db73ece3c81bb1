"""What one process says of itself at one moment, and what many of them are together. Pure: no file, no clock.

A snapshot is the families of a registry as plain lists. Those of several processes become families again,
their samples told apart by the labels `process` and `slot`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from prometheus_client.core import Metric

from carillon.metrics import names

LASTING = ("counter", "histogram")
"""Families of these types go on over a restart; of the others a process that is gone leaves nothing."""

OWN = ("carillon_", "asgi_amqp_")
"""What begins otherwise is about one process of the system: it ends with it."""

OF_ONE_PROCESS = ("process_", "python_")
"""What begins so, the kernel or the interpreter counts for each process by itself: no fork inherits it."""

MOST_BYTES = 4 * 2**20
"""Of one snapshot; one that is larger is not written."""

Sample = tuple[str, tuple[tuple[str, str], ...]]
"""A sample's name and labels."""


class Registry(Protocol):
    def collect(self) -> Iterable[Metric]: ...


class Family(NamedTuple):
    name: str
    type: str
    text: str
    samples: dict[Sample, float]


@dataclass(frozen=True)
class Snapshot:
    """`written`: CLOCK_MONOTONIC, which all processes of a machine share and nobody can set."""

    process: str
    slot: int
    written: float
    families: list[Family]

    def lasting(self) -> dict[Sample, float]:
        """What goes on in the process that has this slot next."""
        return {
            key: value for family in self.families if goes_on(family) for key, value in family.samples.items()
        }


def goes_on(family: Family) -> bool:
    return family.type in LASTING and family.name.startswith(OWN)


def inherited(registry: Registry, found: dict[Sample, float] | None = None) -> dict[Sample, float]:
    """What a fork of this moment has in its registry, and has not counted itself. Goes to `found` as it is
    read: a collector that fails costs what comes after it."""
    found = {} if found is None else found
    for metric in registry.collect():
        if metric.type in LASTING and not metric.name.startswith(OF_ONE_PROCESS):
            found.update(_samples(metric))
    return found


def take(
    registry: Registry,
    process: str,
    before: Mapping[Sample, float],
    inherited: Mapping[Sample, float] | None = None,
) -> list[Family]:
    """What the registry has now and `process` shows, without what it had `inherited` when it was forked, and
    on top of what the slot had `before`."""
    families = []
    for metric in registry.collect():
        owners = names.OWNERS.get(metric.name, names.EVERYWHERE)
        if owners != names.EVERYWHERE and process not in owners:
            continue
        samples = _samples(metric)
        if inherited and metric.type in LASTING:
            samples = _without(inherited, samples)
        family = Family(metric.name, metric.type, metric.documentation, samples)
        if before and goes_on(family):
            known = _sample_names(family)
            for key, value in before.items():
                if key[0] in known:
                    samples[key] = samples.get(key, 0.0) + value
        families.append(family)
    return families


def _samples(metric: Metric) -> dict[Sample, float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): float(sample.value)
        for sample in metric.samples
        if not sample.name.endswith("_created")
    }


def _without(inherited: Mapping[Sample, float], samples: Mapping[Sample, float]) -> dict[Sample, float]:
    """One that is less than it was has begun anew since. Only a sum may become less: its count tells."""
    own = {}
    for key, value in samples.items():
        name, labels = key
        count = (name.removesuffix("_sum") + "_count", labels) if name.endswith("_sum") else key
        anew = samples.get(count, 0.0) < inherited.get(count, 0.0)
        own[key] = value if anew else value - inherited.get(key, 0.0)
    return own


def _sample_names(family: Family) -> tuple[str, ...]:
    suffixes = ("_total",) if family.type == "counter" else ("_bucket", "_count", "_sum")
    return tuple(family.name + suffix for suffix in suffixes)


def pack(snapshot: Snapshot) -> bytes:
    """For a file. Raises ValueError where it is larger than a snapshot may be."""
    families = [
        [name, type, text, [[*key, value] for key, value in samples.items()]]
        for name, type, text, samples in snapshot.families
    ]
    data = json.dumps([snapshot.process, snapshot.slot, snapshot.written, families]).encode()
    if len(data) > MOST_BYTES:
        raise ValueError(f"{len(data)} bytes of metrics: {MOST_BYTES} are the most")
    return data


def unpack(data: bytes) -> Snapshot:
    """Raises ValueError for what is no snapshot."""
    try:
        process, slot, written, families = json.loads(data)
        return Snapshot(
            str(process),
            int(slot),
            float(written),
            [
                Family(
                    name,
                    type,
                    text,
                    {
                        (sample, tuple((key, label) for key, label in labels)): float(value)
                        for sample, labels, value in rows
                    },
                )
                for name, type, text, rows in families
            ],
        )
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"no snapshot of metrics: {error}") from None


@dataclass(frozen=True)
class Together:
    """Families of several processes, as an encoder of prometheus_client's wants them. A process that has not
    written for `silent` seconds at `now` is gone: its counters stay, and nothing else."""

    snapshots: list[Snapshot]
    now: float
    silent: float

    def heard(self) -> dict[str, float]:
        """Seconds since each process has written: "daphne 0"."""
        return {f"{one.process} {one.slot}": self.now - one.written for one in self.snapshots}

    def collect(self) -> Iterator[Metric]:
        found: dict[str, Metric] = {}
        up = Metric(*names.UP, "gauge")
        for snapshot in self.snapshots:
            alive = self.now - snapshot.written < self.silent
            own: dict[str, Any] = {"process": snapshot.process, "slot": str(snapshot.slot)}
            up.add_sample(up.name, own, float(alive))
            for family in snapshot.families:
                if not (alive or goes_on(family)):
                    continue
                metric = found.get(family.name)
                if metric is None:
                    metric = found[family.name] = Metric(family.name, family.text, family.type)
                elif metric.type != family.type:
                    continue  # another release's: one name cannot have two types
                for (name, labels), value in family.samples.items():
                    metric.add_sample(name, {**dict(labels), **own}, value)
        yield up
        yield from found.values()
