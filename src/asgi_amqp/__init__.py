"""A channel layer for Django Channels over RabbitMQ: coalescing, durable where asked, honest about loss.

The public face is here and in the modules `worker`, `event_stream`, `stream`, `codec` and `dead_letters`. The
layer and the errors are for everybody; a link that is kept open (`Supervisor`, `Link`, `Wire`) and what is
declared on it are for who builds on the broker by themselves.
"""

from .connection import Link
from .exceptions import (
    BrokerUnavailable,
    ChannelFull,
    ConfigurationError,
    LayerError,
    MessageTooLarge,
    Unroutable,
)  # fmt: skip
from .layer import AMQPChannelLayer
from .metrics import Loss
from .options import Options, Target
from .position import Position
from .queues import declare_queue
from .supervisor import Supervisor
from .topology import Queue, Topology
from .transport import Delivery
from .wire import Wire

__all__ = [
    "AMQPChannelLayer",
    "BrokerUnavailable",
    "ChannelFull",
    "ConfigurationError",
    "Delivery",
    "LayerError",
    "Link",
    "Loss",
    "MessageTooLarge",
    "Options",
    "Position",
    "Queue",
    "Supervisor",
    "Target",
    "Topology",
    "Unroutable",
    "Wire",
    "declare_queue",
]
