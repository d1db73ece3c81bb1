"""What can go wrong, as classes. `ChannelFull` is the one of Channels itself."""

from channels.exceptions import ChannelFull

__all__ = [
    "BrokerUnavailable", "ChannelFull", "ConfigurationError", "LayerError", "MessageTooLarge", "Unroutable",
]  # fmt: skip


class LayerError(Exception):
    """Base of the errors of this package. Their text never holds a password or a whole URL."""


class BrokerUnavailable(LayerError):
    """The broker could not be reached, has blocked us, or did not confirm before the deadline.

    The fate of a confirmed send that ends so is unknown: it may have arrived.
    """


class Unroutable(BrokerUnavailable):
    """The queue, stream or process that a confirmed event was for is not there."""


class ConfigurationError(LayerError):
    """Trying again cannot help: bad credentials, a missing vhost, an untrusted certificate, a bad option."""


class MessageTooLarge(LayerError):
    """The message is larger than the broker takes. Nothing of it was sent."""
