"""`python -m asgi_amqp dead-letters CHANNEL`: look at what durable channels gave up on, and send it again.

The layer comes from Django's settings (DJANGO_SETTINGS_MODULE, CHANNEL_LAYERS) or, without them, from the
variables ASGI_AMQP_URL and ASGI_AMQP_PREFIX: a URL holds a password and does not belong in an argv.
"""

import argparse
import asyncio
import json
import os
import sys
from typing import Any

from aiormq.abc import AbstractChannel

from .codec import decode, encode
from .declare import declare
from .exceptions import LayerError
from .layer import AMQPChannelLayer


def _layer(alias: str, channel: str) -> AMQPChannelLayer:
    if "DJANGO_SETTINGS_MODULE" in os.environ:
        import django  # type: ignore[import-untyped]
        from channels.layers import channel_layers

        django.setup()
        layer = channel_layers[alias]
        if not isinstance(layer, AMQPChannelLayer):
            raise SystemExit(f"CHANNEL_LAYERS[{alias!r}] is not an asgi_amqp.AMQPChannelLayer")
        return layer
    url = os.environ.get("ASGI_AMQP_URL")
    if not url:
        raise SystemExit("set DJANGO_SETTINGS_MODULE, or ASGI_AMQP_URL (and ASGI_AMQP_PREFIX)")
    return AMQPChannelLayer(url, prefix=os.environ.get("ASGI_AMQP_PREFIX", "asgi"), durable=[channel])


async def _work(layer: AMQPChannelLayer, options: argparse.Namespace) -> int:
    """Go through the dead letters once, oldest first. Each is acknowledged only after it has been dealt
    with.
    """
    destination = layer.destination(options.channel)
    if destination.queue is None or not destination.queue.dead:
        raise SystemExit(f"{options.channel} is not a durable channel of this layer")
    session = layer.session()
    link = await session.receiver.supervisor.link(layer.timeout)
    dead = destination.queue.dead
    await declare(link, layer._topology, destination.queue)

    async def go_through(channel: AbstractChannel) -> int:
        for seen in range(options.limit):
            message = await channel.basic_get(dead, timeout=layer.timeout)
            if message.delivery_tag is None:
                return seen
            headers: Any = message.header.properties.headers or {}
            death = (headers.get("x-death") or [{}])[0]
            events = [event for _, event in decode(message.body)]
            for event in events:
                shown = {"reason": death.get("reason"), "time": death.get("time"), "message": event}
                print(json.dumps(shown, default=str))
            if options.replay:
                for event in events:
                    await session.sender.send(destination, encode(event), layer.timeout)
            if options.replay or options.delete:
                await channel.basic_ack(message.delivery_tag)
        return int(options.limit)

    seen = await link.attempt(go_through)  # what was only looked at goes back, in its order
    verb = "replayed" if options.replay else "deleted" if options.delete else "kept"
    print(f"{seen} dead letters {verb}", file=sys.stderr)
    await layer.close()
    return 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m asgi_amqp", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    dead = commands.add_parser(
        "dead-letters", help="look at, replay or delete the dead letters of a durable channel"
    )
    dead.add_argument("channel")
    dead.add_argument("--layer", default="default", help="alias in CHANNEL_LAYERS (default: default)")
    dead.add_argument("--limit", type=int, default=100, help="most messages to handle (default: 100)")
    action = dead.add_mutually_exclusive_group()
    action.add_argument("--replay", action="store_true", help="send them to the channel again")
    action.add_argument("--delete", action="store_true", help="remove them")
    options = parser.parse_args(arguments)
    try:
        return asyncio.run(_work(_layer(options.layer, options.channel), options))
    except LayerError as error:
        print(f"asgi_amqp: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
