"""How delivery reaches the broker: what the channel layer is configured with, nothing of its own."""

from __future__ import annotations

from channels.layers import get_channel_layer
from django.conf import settings

from asgi_amqp import Options, Queue, Target, Topology
from asgi_amqp.stream import Stream
from carillon.conf import conf

CHANNEL = "notifications"
"""The durable channel on which emitters put events, and from which the relay takes them."""


def _config() -> dict:
    return settings.CHANNEL_LAYERS["default"]["CONFIG"]


def options(name: str) -> Options:
    """Connection options; `name` is what the broker shows the connection as."""
    config = _config()
    url = config["url"]
    urls = [url] if isinstance(url, str) else url
    return Options(tuple(Target.parse(each) for each in urls), name, ssl_ca=config.get("ssl_ca"))


def topology() -> Topology:
    """The layer's names."""
    config = _config()
    return Topology(config["prefix"], config.get("expiry", 60))


def queue() -> Queue:
    """The durable queue of events."""
    found = get_channel_layer().destination(CHANNEL).queue
    if found is None:
        raise RuntimeError(f"the channel {CHANNEL!r} is not a durable one in CHANNEL_LAYERS")
    return found


def declaration(name: str) -> Stream:
    """How an event stream is made: the setting STREAM has its age, size and segment size."""
    return Stream(name, **conf.STREAM)
