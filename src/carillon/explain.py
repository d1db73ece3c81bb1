"""`carillon explain <position|id>`: one event, hop by hop, from what is known of it now.

The log says what it is and where, the row whether it is off the queue, the metrics which daphne has passed
it, presence who is subscribed. What is gone is said to be.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NamedTuple

import msgpack
from asgiref.sync import sync_to_async
from channels.layers import get_channel_layer
from django.db.models import Count

from asgi_amqp import Link, Position, Supervisor, dead_letters, stream
from carillon.conf import conf
from carillon.events import broker, heads
from carillon.events.event import Event, Malformed, unpack
from carillon.events.models import Outbox
from carillon.fanout.history import when
from carillon.fanout.log import Reading, locate, stream_name
from carillon.metrics import shared
from carillon.sockets import presence

BACK = 20_000
"""Stream messages before the end in which an event is looked for by its id; each holds up to 1 024 events."""

ROWS = 10_000
"""Rows of the outbox, and dead letters, that are looked through."""

SECONDS = 30.0

_ID = re.compile(r"[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}", re.IGNORECASE)


class Unclear(Exception):
    """What was asked for is neither a position nor an id, or nothing is known of it. The text says more."""


class Wanted(NamedTuple):
    """An event by one of them."""

    position: Position | None
    id: bytes | None

    def is_it(self, event: Event) -> bool:
        if self.position is not None:
            return event.number == self.position.number
        return event.id == self.id


class Place(NamedTuple):
    """Where in the log it is: the offset of the stream message, its place in it and how many it has."""

    stream: str
    offset: int
    index: int
    of: int


class Passed(NamedTuple):
    """How far a daphne has come, and when it fanned out the event, where it still knows."""

    slot: int
    number: int
    at: int | None = None


@dataclass
class Facts:
    """What was found."""

    event: Event
    epoch: str
    place: Place
    relayed: int | None = None
    noted: Position | None = None
    passed: list[Passed] = field(default_factory=list)
    subscribed: list[tuple[str, int]] = field(default_factory=list)


def parse(text: str) -> Wanted:
    """Raises Unclear."""
    if _ID.fullmatch(text):
        return Wanted(None, bytes.fromhex(text.replace("-", "")))
    try:
        return Wanted(Position.parse(text), None)
    except ValueError:
        raise Unclear(
            f"{text[:80]!r} is neither a position (<epoch>:<number>) nor an id (32 hexadecimal digits)"
        ) from None


def story(facts: Facts) -> Iterator[tuple[str, str]]:
    """What to tell, in the order in which it happened. Pure."""
    event, place = facts.event, facts.place
    yield "position", f"{facts.epoch}:{event.number}"
    yield "id", event.id.hex()
    yield "group", event.group.decode()
    yield "payload", f"{len(event.text)} bytes"
    if event.audience is None:
        yield "audience", "everyone who subscribed"
    else:
        tags = " ".join(event.audience[:20]) + (" …" if len(event.audience) > 20 else "")
        yield "audience", f"{len(event.audience)} tags ({tags or 'none'}), and admins"
    if event.trace:
        yield "trace", event.trace
    yield "emitted", f"{_time(event.stamp)}, by the clock of who emitted it"
    if facts.relayed is not None:
        yield "relayed", f"{_later(facts.relayed, event)}, by the clock of runworker"
    yield "in the log", f"{place.stream}, message {place.offset}, event {place.index} of {place.of}"
    if facts.noted is None or facts.noted.epoch != facts.epoch:
        yield "the queue", "its epoch is over: nothing of it is on the queue any more"
    elif facts.noted.number >= event.number:
        yield "the queue", f"taken off: the row has {facts.noted}"
    else:
        yield "the queue", f"perhaps still there: the row has {facts.noted}"
    for slot, number, at in facts.passed:
        behind = event.number - number
        passed = f"has passed it{'' if at is None else f' at {_later(at, event)}'}; it is"
        yield f"daphne {slot}", f"{passed if behind <= 0 else f'is {behind} before it,'} at {number}"
    if not facts.passed and (facts.noted is None or facts.noted.epoch != facts.epoch):
        yield "daphne", "its epoch is over: none says how far it was"
    elif not facts.passed:
        yield "daphne", "none here: its metrics are those of another host, or none are kept"
    users = ", ".join(f"{name} ({count})" for name, count in facts.subscribed[:10])
    more = len(facts.subscribed) - 10
    listed = (users or "nobody") + (f" and {more} more users" if more > 0 else "")
    yield "subscribed", f"{listed}: now, and whether or not its audience has them"


def _time(stamp: int) -> str:
    return datetime.fromtimestamp(stamp / 1000, UTC).isoformat(timespec="milliseconds")


def _later(stamp: int, event: Event) -> str:
    apart = stamp - event.stamp  # by two clocks
    return f"{_time(stamp)}, {abs(apart)} ms {'after' if apart >= 0 else 'before'} its emit"


async def alone(text: str) -> Facts:
    """`find`, for a process that does nothing else."""
    try:
        return await find(text)
    finally:
        await get_channel_layer().close()


async def find(text: str, seconds: float = SECONDS) -> Facts:
    """Raises Unclear, LayerError, TimeoutError, DatabaseError."""
    wanted = parse(text)

    async def attach(link: Link) -> None:
        """Nothing to set up."""

    supervisor = Supervisor(broker.options("carillon explain"), attach, lambda link, reason: None)
    try:
        async with asyncio.timeout(seconds):
            link = await supervisor.link(seconds / 3)
            facts = await _look(link, wanted)
            facts.noted = await heads.current()
            if _current(facts):
                facts.passed = await asyncio.to_thread(_passed, facts.epoch, facts.event.number)
            facts.subscribed = await sync_to_async(_subscribed)(facts.event.group.decode())
            return facts
    finally:
        await supervisor.close()


def _current(facts: Facts) -> bool:
    return facts.noted is not None and facts.noted.epoch == facts.epoch


async def _look(link: Link, wanted: Wanted) -> Facts:
    current = await heads.current()
    epoch = wanted.position.epoch if wanted.position is not None else current and current.epoch
    if epoch is None:
        raise Unclear("there is no event log yet: nothing was relayed")
    name = stream_name(epoch)
    if not await stream.exists(link, name):
        raise Unclear(f"the log of epoch {epoch} is gone, and its events with it")
    end = await stream.end_of(link, name)
    if wanted.position is not None:
        start = await locate(link, name, wanted.position.number - 1)
    else:
        start = max(0, end - BACK)
    found = await _scan(link, name, start, end, wanted)
    if found is not None:
        return Facts(found[0], epoch, found[1], found[2])
    if wanted.position is not None:
        raise Unclear(_why_not(wanted.position, current))
    raise Unclear(await _elsewhere(wanted.id))


def _why_not(wanted: Position, current: Position | None) -> str:
    if current is not None and current.epoch == wanted.epoch and wanted.number > current.number:
        return f"{wanted} is beyond the end of the log, {current}"
    return f"no event of the log has the number of {wanted}: too old for the log, or never given"


async def _scan(
    link: Link, name: str, start: int, end: int, wanted: Wanted
) -> tuple[Event, Place, int | None] | None:
    """The event that is wanted, between two offsets, and when it was relayed."""
    messages: asyncio.Queue[stream.Messages] = asyncio.Queue()
    reader = stream.StreamReader(name, start, messages.put_nowait, passing=True, manual=True, prefetch=64)
    reading = Reading()
    await reader.attach(link)
    try:
        while end >= 0:
            for offset, body in await messages.get():
                with suppress(Malformed):
                    batch = unpack(body)
                    events, _ = reading.take(batch)
                    for index, event in enumerate(events, 1):
                        if wanted.is_it(event):
                            return event, Place(name, offset, index, len(events)), batch.relayed
                if offset >= end or (wanted.position and (reading.last or 0) > wanted.position.number):
                    return None
            reader.acknowledge()
        return None
    finally:
        await reader.close()


async def _elsewhere(id: bytes) -> str:
    """Where an event is that the log does not have, in words."""
    if await sync_to_async(_in_outbox)(id):
        return "it waits in the outbox: runworker sends it when the broker is there"
    found: list[str] = []

    def say(letter: dead_letters.Letter) -> None:
        if any(message.get("id") == id for message in letter.messages):
            found.append(f"it is the dead letter {letter.name}: {letter.reason}")

    await dead_letters.go_through(get_channel_layer(), broker.CHANNEL, "show", None, say, limit=ROWS)
    return (
        found[0]
        if found
        else (
            f"neither the last {BACK} messages of the log, nor the outbox, nor the dead letters have it: it "
            "is on the queue still, it is older, or there was never such an event"
        )
    )


def _in_outbox(id: bytes) -> bool:
    rows = Outbox.objects.order_by("pk")[:ROWS].values_list("message", flat=True)
    # Some at a time: each may be a MiB.
    return any(msgpack.unpackb(bytes(message)).get("id") == id for message in rows.iterator(chunk_size=10))


def _passed(epoch: str, number: int) -> list[Passed]:
    """How far each daphne of this host is, and when it passed this number, as its metrics say: up to a second
    ago."""
    if conf.METRICS_DIRECTORY is None:
        return []
    try:
        families = list(shared.read(conf.METRICS_DIRECTORY).collect())
    except OSError:
        return []
    passed = []
    for slot, reached in sorted(_positions(families)):
        left = shared.read_beside(conf.METRICS_DIRECTORY, "daphne", slot, "history")
        passed.append(Passed(slot, reached, when(left, epoch, number)))
    return passed


def _positions(families: Iterable) -> Iterator[tuple[int, int]]:
    for family in families:
        if family.name == "carillon_fanout_position":
            for sample in family.samples:
                yield int(sample.labels["slot"]), int(sample.value)


def _subscribed(group: str) -> list[tuple[str, int]]:
    """Users and how many sockets of theirs are subscribed now, as presence has it."""
    rows = presence.subscribed(group).values("user__username").annotate(sockets=Count("id"))
    return sorted((row["user__username"], row["sockets"]) for row in rows)
