"""What this layer counts, and how Prometheus sees it when `prometheus_client` is installed."""

import logging
import weakref
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

log = logging.getLogger("asgi_amqp")

LATENCY_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


@dataclass(frozen=True)
class Loss:
    """Messages that will not arrive. `count` is None where nobody can know it.

    reason: `in_flight` (sent unconfirmed when the connection was cut: they may have arrived), `expired`,
    `overflow`, `no_receiver` (the process of the channel is gone), `reconnect` (this process was away:
    whatever was sent to it meanwhile), `broker_overflow` (its queue on the broker was full), `undecodable`;
    `unsent` (the connection was closed before they left); and for confirmed events that nobody waited for:
    `refused` (queue full), `too_large` and `unconfirmed` (no confirm before the deadline, or before the end).
    """

    reason: str
    count: int | None
    channel: str | None = None


COUNTERS = {
    "sent": "Events accepted for sending",
    "received": "Messages put before readers",
    "batches_out": "AMQP messages published",
    "batches_in": "AMQP messages received",
    "confirmed": "Events that the broker has taken",
    "refused": "Events refused by the broker, mostly as their queue was full",
    "reconnects": "Connections lost and made again",
}


@dataclass
class Stats:
    """Counters of one layer in one process. Plain numbers: reading them costs the hot path nothing."""

    sent: int = 0  # events accepted for sending
    received: int = 0  # messages put before readers, one per member of a group
    batches_out: int = 0  # AMQP messages
    batches_in: int = 0
    confirmed: int = 0  # events that the broker has taken
    refused: int = 0  # events that the broker refused: ChannelFull, mostly
    reconnects: int = 0
    lost: "Counter[str]" = field(
        default_factory=Counter
    )  # messages by reason; a gap of unknown size counts 1
    latency_counts: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_BOUNDS) + 1))
    latency_sum: float = 0.0
    hooks: list[Callable[[Loss], None]] = field(default_factory=list)

    def lose(self, reason: str, count: int | None, channel: str | None = None) -> None:
        """Count a loss and tell whoever wants to know."""
        self.lost[reason] += 1 if count is None else count
        for hook in self.hooks:
            try:
                hook(Loss(reason, count, channel))
            except Exception:  # one that raises must not stop what met the loss
                log.exception("A hook of on_loss raised")

    def add(self, other: "Stats") -> None:
        """Count what another layer has counted, too."""
        for name in (*COUNTERS, "latency_sum"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.lost.update(dict(other.lost))  # threads may be counting
        self.latency_counts = [
            sum(pair) for pair in zip(self.latency_counts, other.latency_counts, strict=True)
        ]

    def confirm_took(self, seconds: float) -> None:
        """A batch was confirmed after that long."""
        self.latency_counts[bisect_left(LATENCY_BOUNDS, seconds)] += 1
        self.latency_sum += seconds


_layers: "weakref.WeakSet[Any]" = weakref.WeakSet()


class _Collector:
    """Reads the counters of all layers when Prometheus asks."""

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        sums: dict[str, tuple[Stats, Counter[str]]] = {}  # two layers of one prefix are one series
        for layer in list(_layers):
            whole, gauged = sums.setdefault(layer.prefix, (Stats(), Counter()))
            whole.add(layer.stats)
            gauged.update(layer.gauges())
        layers = [(prefix, *both) for prefix, both in sums.items()]
        for name, text in COUNTERS.items():
            counter = CounterMetricFamily(f"asgi_amqp_{name}", text, labels=["prefix"])
            for prefix, stats, _ in layers:
                counter.add_metric([prefix], getattr(stats, name))
            yield counter
        lost = CounterMetricFamily("asgi_amqp_lost", "Messages lost, by reason", labels=["prefix", "reason"])
        latency = HistogramMetricFamily(
            "asgi_amqp_confirm_seconds", "From publish to confirm", labels=["prefix"]
        )
        gauges = GaugeMetricFamily(
            "asgi_amqp_state", "Buffered bytes, groups, channels and the like", labels=["prefix", "what"]
        )
        for prefix, stats, values in layers:
            for reason, count in stats.lost.items():
                lost.add_metric([prefix, reason], count)
            total, buckets = 0, []
            for bound, count in zip((*LATENCY_BOUNDS, "+Inf"), stats.latency_counts, strict=True):
                total += count
                buckets.append((str(bound), total))
            latency.add_metric([prefix], buckets, stats.latency_sum)
            for what, value in values.items():
                gauges.add_metric([prefix, what], value)
        yield from (lost, latency, gauges)

    def describe(self) -> Iterable[Any]:
        return []


def register(layer: Any) -> None:
    """Show this layer to Prometheus for as long as it lives; nothing happens without prometheus_client."""
    try:
        from prometheus_client import REGISTRY
    except ImportError:
        return
    if not _registered:
        _registered.append(_Collector())
        REGISTRY.register(_registered[0])
    _layers.add(layer)


_registered: list[Any] = []
