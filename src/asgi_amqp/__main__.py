"""`python -m asgi_amqp dead-letters CHANNEL`: look at what durable channels gave up on, and send it again.

The layer comes from Django's settings (DJANGO_SETTINGS_MODULE, CHANNEL_LAYERS) or, without them, from the
variables ASGI_AMQP_URL and ASGI_AMQP_PREFIX: a URL holds a password and does not belong in an argv.
"""

import argparse
import asyncio
import json
import os
import sys

from .dead_letters import Letter, go_through
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


async def _work(layer: AMQPChannelLayer, options: argparse.Namespace) -> None:
    what = "replay" if options.replay else "drop" if options.delete else "show"
    seen = 0

    def say(letter: Letter) -> None:
        nonlocal seen
        seen += 1
        for message in letter.messages:
            shown = {"reason": letter.reason, "time": letter.time, "message": message}
            print(json.dumps(shown, default=str))

    try:
        await go_through(layer, options.channel, what, None, say, options.limit)
    finally:
        await layer.close()
    verb = {"replay": "replayed", "drop": "deleted", "show": "kept"}[what]
    print(f"{seen} dead letters {verb}", file=sys.stderr)


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
        asyncio.run(_work(_layer(options.layer, options.channel), options))
    except LayerError as error:
        print(f"asgi_amqp: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
