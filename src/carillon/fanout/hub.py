"""The local fan-out: which listeners of this process hear which group, and one write per listener and batch.

Subscribing is a dictionary entry: it costs the broker nothing. All of this runs on the event loop's thread
and never awaits, so a piece from the window and joining the live events are one step: nothing falls between.
"""

import logging
import time
from collections.abc import Callable

from asgi_amqp import Position
from carillon.events.event import EVERYONE
from carillon.events.seen import Seen
from carillon.fanout.cursor import PIECE, Cursor
from carillon.fanout.feeder import Feeder
from carillon.fanout.history import History
from carillon.fanout.window import Window

logger = logging.getLogger(__name__)

INTERNAL = b"!"[0]
"""Groups that begin with this byte carry the system's own events: no client can name them."""


class Listener(Cursor):
    """One subscriber: a socket, or an SSE response. Subclasses say how to write.

    `form` is one of `carillon.fanout.forms`; `tags` what the listener is (`u5`, `t3`, `*` for a superuser),
    matched against an event's audience; `owner` hears of its resume; `page` is a part of the log that was
    read for it.
    """

    __slots__ = ("feeder", "form", "owner", "page", "tags")

    def __init__(self, form, tags=frozenset()):
        super().__init__()
        self.form = form
        self.tags = tags
        self.owner = self.feeder = self.page = None

    def write(self, data, number: int) -> None:
        """Write what `form.join` made, or later() where it cannot be now; `number` is that of its last event.
        Must neither block nor raise."""
        raise NotImplementedError

    def give(self, data, number: int) -> None:
        """Write a piece of what it was behind in: there is room()."""
        raise NotImplementedError

    @property
    def waiting(self) -> int:
        """Bytes that wait in this process for its reader."""
        return 0

    def room(self) -> bool:
        """Whether its reader takes a piece. If not, feeder.ready() is called as soon as it does."""
        raise NotImplementedError

    def too_slow(self, at) -> None:
        """It is given up; up to the position `at` everything has been written."""
        raise NotImplementedError

    def failed(self) -> None:
        """It cannot be served: a mistake of ours."""
        raise NotImplementedError

    def later(self, size: int) -> None:
        """It does not take what has come now."""
        hub = self.feeder.hub
        hub.put_off += 1
        if self.ended:
            return
        if self.live:
            self.fell(hub.position._replace(number=max(hub.number, self.sent)), size)
        else:
            self.arrived(size)
        self.feeder.ready(self)

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
        self.read = 0
        self.delivered = 0
        """Events that were written, one for each listener."""
        self.put_off = 0
        """How many of those that are being written to do not take it now."""
        self.doubles = 0
        self._seen = Seen() if seen is None else seen
        self._groups: dict[bytes, set[Listener]] = {}
        self._tags: dict[str, set[Listener]] = {}
        self._internal: dict[bytes, Callable] = {}
        self.feeder = Feeder(self)
        self.history = History()

    @property
    def position(self) -> Position:
        """Behind the last event that was fanned out."""
        return Position(self.epoch, self.number)

    def on(self, group: bytes, handler: Callable) -> None:
        """Call `handler(event)` for every event of an internal group."""
        self._internal[group] = handler

    # Listeners

    def subscribe(self, listener: Listener, groups: frozenset[bytes], since: Position | None = None) -> None:
        """Replace the listener's whole subscription. Groups in both sets lose nothing; those that are new
        begin behind `since`, or now."""
        self._index(listener, listener.groups, groups)
        listener.feeder = self.feeder
        listener.subscribed(groups, self.position, since)
        self.feeder.ready(listener)

    def retag(self, listener: Listener, tags: frozenset[str]) -> None:
        """The listener's teams or rank changed: what it hears from now on follows `tags`."""
        groups = listener.groups
        self._index(listener, groups, frozenset())
        listener.tags = tags
        self._index(listener, frozenset(), groups)

    def _index(self, listener, old, new):
        for table, gone, come in (
            (self._groups, old - new, new - old),
            (self._tags, listener.tags if old and not new else (), listener.tags if new and not old else ()),
        ):
            for key in gone:
                members = table.get(key)
                if members is not None:
                    members.discard(listener)
                    if not members:
                        del table[key]
            for key in come:
                table.setdefault(key, set()).add(listener)

    def members(self, group: bytes) -> frozenset[Listener]:
        """Who is subscribed to `group` in this process."""
        return frozenset(self._groups.get(group, ()))

    def listeners(self) -> set[Listener]:
        """Everyone with a subscription."""
        return set().union(*self._groups.values())

    # Events

    def begin(self, epoch: str, number: int) -> None:
        """A stream is being read from behind `number`, with nothing before it in this process."""
        self.epoch = epoch
        self.number = number
        self.window.reset()
        self.window.mark(number)
        self.history.begin(epoch, number, time.time_ns() // 1_000_000)

    def deliver(self, events) -> None:
        """Fan out events in the stream's order; doubles, known by their ids, are dropped."""
        seen = self._seen
        fresh = [event for event in events if seen.add(event.id)]
        self.read += len(events)
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
            self.number = max(self.number, events[-1].number)
            self.window.mark(self.number)
            self.history.note(self.number, time.time_ns() // 1_000_000)
        self.feeder.advanced()

    def advance(self, number: int) -> None:
        """The stream has been read up to `number`, and there was no event since the last one delivered."""
        if number > self.number:
            self.number = number
            self.window.mark(number)
            self.feeder.advanced()

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
        """Write `events` to each of `listeners`, made once per form and no more than a piece at once: what a
        reader does not take of a burst, it gets later. `pieces` keeps the single events of a batch."""
        if len(events) > 1 and sum([len(event.text) for event in events]) > PIECE:
            for part in _parts(events):
                self._write(listeners, part, pieces)
            return
        made = {}
        epoch = self.epoch
        last = events[-1].number
        listeners = tuple(listeners)
        self.put_off = 0
        for listener in listeners:
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
        self.delivered += len(events) * (len(listeners) - self.put_off)


def _parts(events):
    """Cut where a part would have more than a piece."""
    part, size = [], 0
    for event in events:
        size += len(event.text)
        if part and size > PIECE:
            yield part
            part, size = [], len(event.text)
        part.append(event)
    yield part


def _number(event):
    return event.number
