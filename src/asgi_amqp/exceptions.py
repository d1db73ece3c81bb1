"""What can go wrong, as classes. `ChannelFull` is the one of Channels itself."""

import aiormq
from channels.exceptions import ChannelFull as ChannelFull


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


# What a call on a link that goes may raise.
GONE = (aiormq.AMQPError, BrokerUnavailable, OSError, RuntimeError, TimeoutError)


def describe(error: BaseException) -> str:
    """An error in words that hold no secret. aiormq's own texts name hosts and reasons, never passwords."""
    text = ", ".join(str(part) for part in error.args if part not in (None, "")) or type(error).__name__
    return "no answer in time" if isinstance(error, TimeoutError) else text


def is_gone(error: aiormq.ChannelNotFoundEntity) -> bool:
    """Whether the broker knows no queue of that name. NOT_FOUND is also what it says of one whose own broker
    is down: that is there, and comes back.
    """
    return "no queue" in describe(error)
