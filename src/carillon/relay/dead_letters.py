"""`carillon dead-letters`: what could not be taken to the log."""

import json
from collections.abc import Callable, Collection
from datetime import datetime

from channels.layers import get_channel_layer

from asgi_amqp import dead_letters
from carillon.events.broker import CHANNEL


async def go_through(what: str, names: Collection[str] | None) -> set[str]:
    """Print the dead letters with these names, or all: `list` them, `show` all of them, `replay` or `drop`
    them; the names that were found. Raises LayerError."""
    layer = get_channel_layer()

    def say(letter: dead_letters.Letter) -> None:
        if what == "show":
            shown = {"name": letter.name, "reason": letter.reason, "messages": letter.messages}
            print(json.dumps(dead_letters.with_text_keys(shown), indent=2, default=_shown))
            return
        when = letter.time.isoformat(" ", "seconds") if letter.time else "nobody knows when"
        for message in letter.messages:
            group, id = message.get("group", ""), message.get("id")
            named = id.hex() if isinstance(id, bytes) else "without an id"
            print(f"{letter.name}  {when}  {letter.size} bytes  {str(group)[:60]}  {named}  {letter.reason}")
        if what == "replay" and not letter.sound:
            print(f"{letter.name}  is no event, and stays: drop it")

    try:
        return await dead_letters.go_through(layer, CHANNEL, what, names, say)
    finally:
        await layer.close()


async def look(most: int, say: Callable[[dead_letters.Letter], None]) -> None:
    """Tell of so many of the oldest, for a process that goes on: its layer stays open. Raises LayerError."""
    await dead_letters.go_through(get_channel_layer(), CHANNEL, "show", None, say, limit=most)


async def depth() -> dead_letters.Depth:
    """How much waits on the queue and beside it. Raises LayerError, TimeoutError."""
    return await dead_letters.depth(get_channel_layer(), CHANNEL)


async def prune(before: datetime, dry_run: bool) -> int:
    """Drop those that are known to have died before then; how many there were. Raises LayerError."""
    layer, found = get_channel_layer(), []
    what = "show" if dry_run else "drop"
    try:
        await dead_letters.go_through(layer, CHANNEL, what, None, found.append, before=before)
    finally:
        await layer.close()
    return len(found)


def _shown(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else repr(value)
