"""A channel layer for Django Channels over RabbitMQ: coalescing, durable where asked, honest about loss."""

from .exceptions import BrokerUnavailable, ChannelFull, ConfigurationError, LayerError, MessageTooLarge
from .layer import AMQPChannelLayer
from .metrics import Loss

__all__ = [
    "AMQPChannelLayer",
    "BrokerUnavailable",
    "ChannelFull",
    "ConfigurationError",
    "LayerError",
    "Loss",
    "MessageTooLarge",
]
