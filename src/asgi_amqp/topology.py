"""Names and arguments of everything this layer declares on the broker, and where an event goes. Pure.

One durable direct exchange, named like the prefix. Routing keys:

    p.<process>    the queue of one process (its process-local channels)
    g.<group>      the queues of the processes that have members of a group
    c.<channel>    the queue of a normal channel
    d.<channel>    the queue of a durable channel (a quorum queue)

A process is named by a random id; its queue by that id and the generation of the connection, so that a quick
reconnect never meets the old exclusive queue (405 RESOURCE_LOCKED).
"""

from dataclasses import dataclass, field
from typing import Any

from .codec import encode_target
from .options import Durable

Arguments = dict[str, Any]
# Not -1: brokers before 4.0 do not take it, and newer ones then put what is given back behind the others.
NO_LIMIT = 1_000_000_000
CLASSIC = {"x-queue-type": "classic"}  # said, because a vhost may have another type as its default
# Looking at dead letters counts as delivering them, and must not cost any; the oldest go where there are too
# many.
DEAD: Arguments = {
    "x-queue-type": "quorum",
    "x-delivery-limit": NO_LIMIT,
    "x-max-length-bytes": 64 * 1024**2,
    "x-overflow": "drop-head",
}


@dataclass(frozen=True, slots=True)
class Queue:
    """A named queue as it is declared: durable, bound to the exchange by `key`."""

    name: str
    key: str
    arguments: Arguments = field(hash=False)
    dead: str = ""  # the dead-letter queue beside it, declared first


@dataclass(frozen=True, slots=True)
class Destination:
    """Where an event goes and how. Events whose `lane` is equal may travel in one AMQP message, in order."""

    key: str
    target: bytes
    lane: str = ""  # "": everything that is not confirmed shares one lane, so order holds across channels
    confirmed: bool = False
    most: int = 0  # events in one AMQP message; 0: bounded by bytes alone
    queue: Queue | None = None


class Topology:
    """Names for one prefix."""

    def __init__(self, prefix: str, expiry: float) -> None:
        self.prefix = self.exchange = prefix
        self.expiry_ms = max(1, int(expiry * 1000))

    def process_key(self, process: str) -> str:
        return f"p.{process}"

    def group_key(self, group: str) -> str:
        return f"g.{group}"

    def process_queue(self, process: str, generation: int) -> str:
        return f"{self.prefix}.p.{process}.{generation}"

    def process_arguments(self, queue: str, max_bytes: int) -> Arguments:
        """Drop-head, never reject-publish: one slow process must not stop the publishers of everyone.

        What is dropped or expires goes to the gap queue, so that the process learns of it.
        """
        return CLASSIC | {
            "x-message-ttl": self.expiry_ms,
            "x-max-length-bytes": max_bytes,
            "x-overflow": "drop-head",
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": self.gap_queue(queue),
        }

    def gap_queue(self, queue: str) -> str:
        """Holds the last message that a process queue dropped."""
        return f"{queue}.gap"

    def gap_arguments(self) -> Arguments:
        return CLASSIC | {"x-max-length": 1, "x-overflow": "drop-head"}

    def normal_queue(self, channel: str, capacity: int) -> Queue:
        """One message per event, counted and refused by the broker: that is what makes ChannelFull exact.

        Unused it goes after four times the expiry; publishers declare it again once per expiry, which
        counts as use, so that no message is lost with its queue before it has expired.
        """
        return Queue(
            f"{self.prefix}.c.{channel}",
            f"c.{channel}",
            CLASSIC
            | {
                "x-message-ttl": self.expiry_ms,
                "x-expires": 4 * self.expiry_ms,
                "x-max-length": capacity,
                "x-overflow": "reject-publish",
            },
        )

    def durable_queue(self, channel: str, options: Durable) -> Queue:
        name = f"{self.prefix}.d.{channel}"
        arguments: Arguments = {
            "x-queue-type": "quorum",
            "x-overflow": "reject-publish",
            "x-max-length-bytes": options.max_bytes,
            "x-delivery-limit": NO_LIMIT if options.delivery_limit is None else options.delivery_limit,
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": f"{name}.dead",
            "x-dead-letter-strategy": "at-least-once",
        }
        if options.single:
            arguments["x-single-active-consumer"] = True
        if options.max_length is not None:
            arguments["x-max-length"] = options.max_length
        if options.ttl is not None:
            arguments["x-message-ttl"] = int(options.ttl * 1000)
        return Queue(name, f"d.{channel}", arguments, dead=f"{name}.dead")

    def to_group(self, group: str) -> Destination:
        return Destination(self.group_key(group), encode_target(group))

    def to_process(self, channel: str) -> Destination:
        return Destination(self.process_key(process_of(channel)), encode_target(channel))

    def to_control(self, process: str) -> Destination:
        return Destination(self.process_key(process), encode_target(""))

    def to_queue(self, channel: str, queue: Queue, most: int) -> Destination:
        return Destination(queue.key, encode_target(channel), queue.key, True, most, queue)


def process_of(channel: str) -> str:
    """The process in the name of a process-local channel: `specific.<process>!<random>`."""
    return channel[: channel.index("!")].rpartition(".")[2]
