"""`python -m asgi_amqp dead-letters CHANNEL`: look at what durable channels gave up on, and send it again.

The layer comes from Django's settings (DJANGO_SETTINGS_MODULE, CHANNEL_LAYERS) or, without them, from the
variables ASGI_AMQP_URL and ASGI_AMQP_PREFIX: a URL holds a password and does not belong in an argv.
"""

import argparse
import asyncio
import json
import os
import sys

from .dead_letters import Letter, go_through, known, with_text_keys
from .exceptions import ChannelFull, ConfigurationError, LayerError
from .layer import AMQPChannelLayer


def _layer(alias: str, channel: str) -> AMQPChannelLayer:
    if "DJANGO_SETTINGS_MODULE" in os.environ:
        import django  # type: ignore[import-untyped]
        from channels.exceptions import InvalidChannelLayerError
        from channels.layers import channel_layers

        django.setup()
        try:
            layer = channel_layers[alias]
        except (KeyError, InvalidChannelLayerError) as error:
            raise ConfigurationError(f"CHANNEL_LAYERS[{alias!r}] names no layer: {error!r}") from None
        if not isinstance(layer, AMQPChannelLayer):
            raise SystemExit(f"CHANNEL_LAYERS[{alias!r}] is not an asgi_amqp.AMQPChannelLayer")
        return layer
    url = os.environ.get("ASGI_AMQP_URL")
    if not url:
        raise SystemExit("set DJANGO_SETTINGS_MODULE, or ASGI_AMQP_URL (and ASGI_AMQP_PREFIX)")
    return AMQPChannelLayer(url, prefix=os.environ.get("ASGI_AMQP_PREFIX", "asgi"), durable=[channel])


def _shown(letter: Letter) -> list[str]:
    """A line for each of its messages."""
    lines = []
    for message in letter.messages:
        shown = {"reason": letter.reason, "time": letter.time, "message": message}
        try:
            lines.append(json.dumps(with_text_keys(shown), default=str))
        except RecursionError:
            lines.append(json.dumps(shown | {"message": "nested too deeply to be shown"}, default=str))
    return lines


def _drop_output() -> None:
    """What is left in the buffer has nowhere to go, and Python would complain of it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


async def _work(layer: AMQPChannelLayer, options: argparse.Namespace) -> int:
    what = "replay" if options.replay else "drop" if options.delete else "show"
    verb = {"replay": "replayed", "drop": "deleted", "show": "kept"}[what]
    seen = left = 0

    def say(letter: Letter) -> None:
        nonlocal seen, left
        if what == "replay" and not letter.sound:
            left += 1
        else:
            seen += 1
        try:
            for line in _shown(letter):
                print(line, flush=True)
        except OSError as error:  # whoever read it has gone, as `head` does
            _drop_output()
            raise LayerError(f"the output cannot be written: {error}") from None

    try:
        try:
            layer.destination(options.channel)
        except TypeError as error:
            raise ConfigurationError(f"{options.channel!r}: {error}") from None
        if not await known(layer, options.channel):
            raise ConfigurationError(
                f"{options.channel} has no dead letters: the broker knows no such durable channel of the "
                f"prefix {layer.prefix}"
            )
        try:
            await go_through(layer, options.channel, what, None, say, options.limit)
        finally:
            print(f"{seen} dead letters {verb}", file=sys.stderr)
            if left:
                print(f"{left} kept: they hold no messages that can be replayed", file=sys.stderr)
    finally:
        await layer.close()
    return 1 if left else 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m asgi_amqp", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    dead = commands.add_parser(
        "dead-letters", help="look at, replay or delete the dead letters of a durable channel"
    )
    dead.add_argument("channel")
    dead.add_argument("--layer", default="default", help="alias in CHANNEL_LAYERS (default: default)")
    dead.add_argument("--limit", type=int, help="most messages to look at (default: as many as there are)")
    action = dead.add_mutually_exclusive_group()
    action.add_argument("--replay", action="store_true", help="send them to the channel again")
    action.add_argument("--delete", action="store_true", help="remove them")
    options = parser.parse_args(arguments)
    try:
        return asyncio.run(_work(_layer(options.layer, options.channel), options))
    except LayerError as error:
        print(f"asgi_amqp: {error}", file=sys.stderr)
        return 1
    except ChannelFull:
        print(f"asgi_amqp: {options.channel} is full: what is left stays a dead letter", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
