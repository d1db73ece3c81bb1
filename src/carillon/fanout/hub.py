"""The local fan-out: which listeners of this process hear which group, and one write per listener and batch.

Subscribing is a dictionary entry: it costs the broker nothing. All of this runs on the event loop's thread
and never awaits, so a replay from the window and joining the live events are one step: nothing falls between.
"""

import asyncio
import logging
from collections.abc import Callable

from carillon.events.event import EVERYONE
from carillon.events.seen import Seen
from carillon.fanout.window import Window

logger = logging.getLogger(__name__)

INTERNAL = b"!"[0]
"""Groups that begin with this byte carry the system's own events: no client can name them."""


class Listener:
    """One subscriber: a socket, or an SSE response. Subclasses say how to write.

    `form` is one of `carillon.fanout.forms`; `tags` what the listener is (`u5`, `t3`, `*` for a superuser),
    matched against an event's audience.
    """

    __slots__ = ("form", "groups", "level", "tags")

    piece: int | None = None
    """The most bytes that it is given of its past at once; None: all there is."""

    def __init__(self, form, tags=frozenset()):
        self.form = form
        self.tags = tags
        self.groups: frozenset[bytes] = frozenset()
        self.level = True
        """False while some of its past is still to come: where the stream is, it is not."""

    def write(self, data, number: int) -> None:
        """Write what `form.join` made; `number` is that of its last event. Must neither block nor raise."""
        raise NotImplementedError

    def give(self, data, number: int) -> None:
        """Write some of its past: the same, where nothing depends on it."""
        self.write(data, number)

    held = 0
    """Bytes that wait in this process for the reader."""

    async def room(self) -> None:
        """Until it can take a piece of its past."""

    def hears(self, event) -> bool:
        """Whether the event's audience includes this listener."""
        return event.audience is None or EVERYONE in self.tags or not self.tags.isdisjoint(event.audience)


class Hub:
    """The groups and listeners of this process, and its window of recent events."""

    def __init__(self, window: Window, seen: Seen | None = None):
        self.window = window
        self.epoch = ""
        self.number = 0
        """Number of the last event that was fanned out."""
        self.delivered = 0
        self.doubles = 0
        self._seen = Seen() if seen is None else seen
        self._groups: dict[bytes, set[Listener]] = {}
        self._tags: dict[str, set[Listener]] = {}
        self._internal: dict[bytes, Callable] = {}
        self._waiting: list[tuple[int, asyncio.Future]] = []

    def on(self, group: bytes, handler: Callable) -> None:
        """Call `handler(event)` for every event of an internal group."""
        self._internal[group] = handler

    # Listeners

    def subscribe(self, listener: Listener, groups: frozenset[bytes]) -> None:
        """Replace the listener's whole subscription. Groups in both sets lose nothing."""
        if not listener.groups and groups:
            for tag in listener.tags:
                self._tags.setdefault(tag, set()).add(listener)
        for group in listener.groups - groups:
            self._leave(group, listener)
        for group in groups - listener.groups:
            self._groups.setdefault(group, set()).add(listener)
        listener.groups = groups
        if not groups:
            for tag in listener.tags:
                members = self._tags.get(tag)
                if members is not None:
                    members.discard(listener)
                    if not members:
                        del self._tags[tag]

    def retag(self, listener: Listener, tags: frozenset[str]) -> None:
        """The listener's teams or rank changed: what it hears from now on follows `tags`."""
        groups = listener.groups
        if groups:
            self.subscribe(listener, frozenset())
        listener.tags = tags
        if groups:
            self.subscribe(listener, groups)

    def members(self, group: bytes) -> frozenset[Listener]:
        """Who is subscribed to `group` in this process."""
        return frozenset(self._groups.get(group, ()))

    def listeners(self) -> set[Listener]:
        """Everyone with a subscription."""
        return set().union(*self._groups.values())

    def groups(self):
        """Every group that has a listener here."""
        return self._groups.keys()

    def _leave(self, group, listener):
        members = self._groups.get(group)
        if members is not None:
            members.discard(listener)
            if not members:
                del self._groups[group]

    # Events

    def begin(self, epoch: str, number: int) -> None:
        """A stream is being read from behind `number`, with nothing before it in this process."""
        self.epoch = epoch
        self.number = number
        self.window.reset()
        self.window.mark(number)

    def deliver(self, events) -> None:
        """Fan out events in the stream's order; doubles, known by their ids, are dropped."""
        seen = self._seen
        fresh = [event for event in events if seen.add(event.id)]
        self.doubles += len(events) - len(fresh)
        lanes: dict[tuple, list] = {}
        groups = self._groups
        for event in fresh:
            group = event.group
            if group in groups:
                lanes.setdefault((group, event.audience), []).append(event)
            elif group[0] == INTERNAL:
                handler = self._internal.get(group)
                if handler is not None:
                    # What came before it goes out first: a revocation is not undone by older events.
                    self._fan_out(lanes)
                    lanes = {}
                    self._handle(handler, event)
        self.window.extend(fresh)
        self._fan_out(lanes)
        if events:
            self.number = events[-1].number
            self.window.mark(self.number)
        if self._waiting:
            self._wake()

    def advance(self, number: int) -> None:
        """The stream has been read up to `number`, and there was no event since the last one delivered."""
        if number > self.number:
            self.number = number
            self.window.mark(number)
            if self._waiting:
                self._wake()

    async def reached(self, number: int, timeout: float) -> bool:
        """Wait until everything up to `number` has been fanned out, at most `timeout` seconds; whether it
        was."""
        if number <= self.number:
            return True
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((number, future))
        try:
            async with asyncio.timeout(timeout):
                return await future
        except TimeoutError:
            return False
        finally:
            self._waiting = [entry for entry in self._waiting if entry[1] is not future]

    def _wake(self):
        for number, future in self._waiting:
            if number <= self.number and not future.done():
                future.set_result(True)

    def _handle(self, handler, event):
        try:
            handler(event)
        except Exception:
            logger.exception("The handler of %s failed; delivery goes on", event.group.decode())

    def _recipients(self, group, audience):
        if audience is None:
            return self._groups.get(group, ())
        found = set()
        for tag in (*audience, EVERYONE):
            for listener in self._tags.get(tag, ()):
                if group in listener.groups:
                    found.add(listener)
        return found

    def _fan_out(self, lanes):
        if not lanes:
            return
        parts = [
            (events, recipients)
            for (group, audience), events in lanes.items()
            if (recipients := self._recipients(group, audience))
        ]
        if len(parts) == 1:
            events, recipients = parts[0]
            self._write(recipients, events)
            return
        # A listener in several lanes gets their events merged in order, made once for everyone in the same
        # lanes.
        lane_of: dict[Listener, int] = {}
        for number, (_, recipients) in enumerate(parts):
            bit = 1 << number
            for listener in recipients:
                lane_of[listener] = lane_of.get(listener, 0) | bit
        alike: dict[int, list[Listener]] = {}
        for listener, lanes_heard in lane_of.items():
            alike.setdefault(lanes_heard, []).append(listener)
        pieces: dict[tuple, object] = {}
        for lanes_heard, listeners in alike.items():
            events = []
            number = 0
            bits = lanes_heard
            while bits:
                low = (bits & -bits).bit_length() - 1
                number += low
                events += parts[number][0]
                number += 1
                bits >>= low + 1
            if lanes_heard & (lanes_heard - 1):
                events.sort(key=_number)
            self._write(listeners, events, pieces)

    def _write(self, listeners, events, pieces=None):
        """Write `events` to each of `listeners`, made once per form. `pieces` keeps the single events of a
        batch."""
        made = {}
        epoch = self.epoch
        last = events[-1].number
        for listener in tuple(listeners):
            form = listener.form
            data = made.get(form)
            if data is None:
                if pieces is None:
                    data = form.join([form.piece(event, epoch) for event in events])
                else:
                    row = []
                    for event in events:
                        key = (form, event.number)
                        piece = pieces.get(key)
                        if piece is None:
                            piece = pieces[key] = form.piece(event, epoch)
                        row.append(piece)
                    data = form.join(row)
                made[form] = data
            listener.write(data, last)
        self.delivered += len(events) * len(listeners)

    # Resuming

    def missed(self, listener: Listener, groups, number: int) -> list | None:
        """What the window has of `groups` behind `number` and the listener may hear. None: not covered."""
        events = self.window.after(groups, number)
        return None if events is None else [event for event in events if listener.hears(event)]

    def tell(self, listener: Listener, events) -> None:
        """Write events of the past to one listener."""
        if events:
            form = listener.form
            listener.give(form.join([form.piece(event, self.epoch) for event in events]), events[-1].number)


def _number(event):
    return event.number
