"""One event, and the bodies that carry events: to the relay one at a time, on the stream in batches.

The payload is encoded to JSON once, by the emitter; from there on it is bytes that nobody parses again.
"""

import re
from typing import NamedTuple

import msgpack

VERSION = 2
GROUP = re.compile(rb"!?[A-Za-z0-9_.-]{1,200}")
END = b"end "
RELAYED = b"at "
EVERYONE = "*"
"""The tag that opens every audience: superusers carry it."""


def public(group: str) -> str:
    """The group, if it may have this name. Raises ValueError; what begins with '!' is the system's own."""
    if group.startswith("!") or not GROUP.fullmatch(group.encode("utf-8", "replace")):
        raise ValueError(f"{group!r} is no group's name: letters, digits and '_.-', at most 200 of them")
    return group


class Event:
    """What one emit said: `group` (bytes), `text` (the payload, JSON in UTF-8), `audience` (tags, or None for
    every subscriber), `id` (16 bytes), `stamp` (milliseconds since 1970, UTC), `number` (0 until it is on the
    stream) and `trace` (the `traceparent` of the request that emitted it, or "")."""

    __slots__ = ("audience", "group", "id", "number", "stamp", "text", "trace")

    def __init__(self, group, text, audience=None, id=b"", stamp=0, number=0, trace=""):
        self.group = group
        self.text = text
        self.audience = audience
        self.id = id
        self.stamp = stamp
        self.number = number
        self.trace = trace

    @property
    def size(self) -> int:
        """Bytes that this event is counted with wherever memory is bounded."""
        return len(self.text) + len(self.group) + len(self.trace) + 250 + 16 * len(self.audience or ())

    def __repr__(self):
        return f"<Event {self.group.decode()} at {self.number}>"


class Malformed(ValueError):
    """A body that is no event: it goes to the dead-letter queue with this text as its reason."""


class Batch(NamedTuple):
    """What a stream message holds: events, numbered from `number` on.

    `after` is the number of what came before them, as their writer knows it: less than `number - 1` only
    where another relay took over. A message without events is its mark. One with the number 0 has `word`
    alone: the fence of a relay that takes over, or `END` and the epoch that follows. Of events `word` says
    when they were relayed."""

    number: int
    after: int
    events: list[Event]
    word: bytes

    @property
    def relayed(self) -> int | None:
        """When the relay handed them to the log: milliseconds since 1970, UTC. None: not said."""
        said = self.word[len(RELAYED) :]
        return int(said) if self.events and self.word.startswith(RELAYED) and said.isdigit() else None


LEAP = 2**28
"""Numbers that are left out where a relay takes over: more than it can have in hand. So two places in what
one relay sent are nearer to each other, and two on either side of a takeover are not."""


def first_after(reserved: int) -> int:
    """The first number of a relay that takes over where numbers up to `reserved` were spoken for."""
    return reserved + LEAP + 1 if reserved else 1


def pack(events, number: int = 0, after: int | None = None, word: bytes = b"") -> bytes:
    """A stream message's body; `after` is the number before, if nothing else is said. An event is a row of
    five fields, or of six where it has a trace: every reader of this VERSION takes both, and no others."""
    rows = [
        (e.group, e.text, e.audience, e.id, e.stamp, e.trace)
        if e.trace
        else (e.group, e.text, e.audience, e.id, e.stamp)
        for e in events
    ]
    return msgpack.packb((VERSION, number, number - 1 if after is None else after, rows, word))


def unpack(body: bytes) -> Batch:
    """The content of a stream message. Raises Malformed."""
    try:
        version, number, after, rows, word = msgpack.unpackb(body, use_list=False)
        if version != VERSION:
            raise Malformed(f"version {version!r} is not {VERSION}")
        events = [
            Event(group, text, audience, id, stamp, number + index, *traced)
            for index, (group, text, audience, id, stamp, *traced) in enumerate(rows)
        ]
        return Batch(int(number), int(after), events, bytes(word))
    except Malformed:
        raise
    except Exception as error:
        raise Malformed(f"not a batch of events: {type(error).__name__}") from error


def tags_of(audience) -> tuple[str, ...] | None:
    """`{"users": [ids], "teams": [ids]}` as sorted tags (`u5`, `t3`); None stays None: every subscriber."""
    if audience is None:
        return None
    return (
        *(f"t{id}" for id in sorted(audience.get("teams", ()))),
        *(f"u{id}" for id in sorted(audience.get("users", ()))),
    )
