"""Relays that come and go on a log that loses its end, and a tail that reads it: whatever the order, each
event is heard once and in order, or the listener is told; and where nothing was lost, nobody is.

The relays and the tail are the real cores; queue, log and row are the simplest that can be."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from asgi_amqp.position import Position
from carillon.events.event import Event, first_after, pack, unpack
from carillon.events.heads import Superseded
from carillon.events.seen import Seen
from carillon.fanout.core import TailCore
from carillon.fanout.log import NOWHERE, TELLING, Reading
from carillon.relay import core as relay_core
from carillon.relay.core import RelayCore
from tests.chaos.ledger import GAP, Page, account

SIZE = 7
"""Numbers that are reserved at a time."""


@dataclass
class Row:
    number: int = 0
    reserved: int = 0

    def reserve(self, reached: int) -> tuple[int, int]:
        noted = max(self.number, reached)
        first = first_after(max(self.reserved, noted))
        self.reserved = first - 1 + SIZE
        return noted, first

    def check(self, reserved: int) -> None:
        if reserved != self.reserved:
            raise Superseded


@dataclass
class OneRelay:
    """A relay on its link: what it has published and the log has not, and what the log has not confirmed."""

    core: RelayCore = field(default_factory=lambda: RelayCore(1000))
    wire: list[bytes] = field(default_factory=list)
    unconfirmed: int = 0
    tags: dict[int, list[Event]] = field(default_factory=dict)
    inbox: list[int] = field(default_factory=list)
    seen_of_log: int = 0
    state: str = "standing by"

    def lose(self) -> list[bytes]:
        late, self.wire = self.wire, []
        self.core.lost()
        self.unconfirmed, self.seen_of_log, self.state = 0, 0, "standing by"
        self.tags, self.inbox = {}, []
        return late


def event(index: int) -> Event:
    return Event(b"a-1", b"%d" % index, None, b"%016d" % index)


class World(RuleBasedStateMachine):
    @initialize()
    def begin(self):
        self.row = Row()
        self.log: list[bytes] = []
        self.late: list[bytes] = []
        self.emitted = 0
        self.queue: list[list[Event]] = []
        self.relays = [OneRelay(), OneRelay()]
        self.active = 0
        self.tag = 0
        self.cuts = 0
        self.doubles = False
        self.given: dict[int, bytes] = {}
        self.tail = TailCore()
        self.tail.attached(Position("ep", 0))
        self.log.append(pack([], 1, 0))
        self.tail.arrived([(0, self.log[0])])
        self.place = 1
        self.page = Page("tail", 0)
        self.seen = Seen()
        self.number = 0
        self.positions: list[tuple[int, int]] = []

    # The queue

    @rule(count=st.integers(1, 3))
    def emit(self, count):
        self.queue.append([event(self.emitted + n) for n in range(count)])
        self.emitted += count

    @rule()
    def deliver(self):
        relay = self.relays[self.active]
        held = sum(len(events) for events in relay.tags.values())
        flat = [each for message in self.queue for each in message]
        fresh = flat[held:]
        if not fresh:
            return
        message = next(message for message in self.queue if message[0] is fresh[0])
        self.tag += 1
        relay.tags[self.tag] = message
        relay.inbox.append(self.tag)

    @rule()
    def hello(self):
        """A message without events, as each relay sends one when it comes."""
        relay = self.relays[self.active]
        self.tag += 1
        relay.tags[self.tag] = []
        relay.inbox.append(self.tag)

    @rule(anew=st.booleans())
    def another_is_active(self, anew):
        """The queue takes the other relay; this one may not know yet, and goes on. The other may never have
        known that it was not the one for a while."""
        self.relays[self.active].tags.clear()
        self.relays[self.active].inbox.clear()
        self.active = 1 - self.active
        other = self.relays[self.active]
        if anew and other.state != "standing by":
            self.late += other.lose()

    @rule(which=st.integers(0, 1))
    def a_link_is_lost(self, which):
        self.late += self.relays[which].lose()

    # Relays and the log

    def append(self, body):
        self.log.append(body)
        for each in unpack(body).events:
            assert self.given.setdefault(each.number, each.id) == each.id, "a number was given twice"

    def feed(self, relay):
        for body in self.log[relay.seen_of_log :]:
            relay.core.read(unpack(body))
        relay.seen_of_log = len(self.log)

    @rule()
    def fence(self):
        relay = self.relays[self.active]
        if relay.state == "standing by" and relay.tags:
            self.append(relay.core.fenced_by("ep", b"%016d" % self.tag))
            self.feed(relay)
            assert relay.core.fenced
            assert not relay.core.active
            assert relay.core.send() is None
            relay.state = "fenced"

    @rule()
    def mark(self):
        relay = self.relays[self.active]
        if relay.state == "fenced":
            noted, first = self.row.reserve(relay.core.last)
            given = [each for tag in relay.inbox for each in relay.tags[tag]]
            mark = relay.core.took_over(noted, first, self.row.reserved, given)
            numbers = {id: number for number, id in sorted(self.given.items())}
            again = [numbers[each.id] for message in self.queue for each in message if each.id in numbers]
            # Another relay than the one that sent them knows no more than the row.
            self.doubles |= bool(again) and unpack(mark).after > max(relay.core.last, min(again) - 1)
            self.append(mark)
            relay.unconfirmed += 1
            self.feed(relay)
            assert relay.core.active
            relay.state = "active"

    @rule(which=st.integers(0, 1))
    def send(self, which):
        relay = self.relays[which]
        if relay.state == "active":
            for tag in relay.inbox:
                copies = [Event(each.group, each.text, None, each.id) for each in relay.tags[tag]]
                relay.core.arrived(tag, copies)
            relay.inbox.clear()
        if relay.state == "active" and (body := relay.core.send()) is not None:
            relay.wire.append(body)

    @rule(which=st.integers(0, 1))
    def arrive(self, which):
        relay = self.relays[which]
        if relay.wire:
            self.append(relay.wire.pop(0))
            relay.unconfirmed += 1

    @precondition(lambda self: self.late)
    @rule()
    def arrive_late(self):
        self.append(self.late.pop(0))

    @rule(which=st.integers(0, 1))
    def confirm(self, which):
        relay = self.relays[which]
        if relay.unconfirmed:
            relay.unconfirmed -= 1
            relay.core.confirmed()

    @rule(which=st.integers(0, 1))
    def note(self, which):
        relay = self.relays[which]
        if relay.state != "active":
            return
        try:
            self.row.check(relay.core.reserved)
            if relay.core.short(SIZE // 2):
                self.row.reserved += SIZE
                relay.core.extended(self.row.reserved)
            if (reached := relay.core.to_note()) is not None:
                assert reached.number > self.row.number
                self.row.number = reached.number
                relay.core.noted(reached.number)
        except Superseded:
            self.late += relay.lose()

    @rule(which=st.integers(0, 1))
    def take_off(self, which):
        relay = self.relays[which]
        done = relay.core.done()
        for tag in [tag for tag in relay.tags if tag <= done]:
            message = relay.tags.pop(tag)
            if message:
                assert self.queue.pop(0) is message, "the queue is emptied in its order"

    @rule()
    def work(self):
        """All of it, for the one that is active."""
        self.deliver()
        self.hello()
        self.fence()
        self.mark()
        for step in (self.send, self.arrive, self.confirm, self.note, self.take_off):
            step(self.active)

    # Power and the tail

    @rule(count=st.integers(1, 6))
    def power_is_lost(self, count):
        before = len(self.log)
        del self.log[max(0, before - count) :]
        self.cuts += 1
        self.late.clear()
        for relay in self.relays:
            relay.lose()
        self.attach()

    @rule()
    def attach(self):
        """As locate() does it, at its worst: as far on as numbers side by side allow."""
        self.tail.attached(Position("ep", 0))
        last, guess = self.tail.last or 0, self.tail.place
        numbers = [unpack(body).number for body in self.log]
        if guess is not None and guess.offset < len(numbers) and numbers[guess.offset] == guess.number:
            self.place = guess.offset
            return
        self.place = 0
        for at in range(len(numbers)):
            found = [number for number in numbers[at:] if number][:TELLING]
            if len(found) == TELLING and max(found) <= last:
                self.place = at

    @rule(most=st.integers(1, 5))
    def read(self, most):
        chunk = list(enumerate(self.log))[self.place : self.place + most]
        self.place += len(chunk)
        for what, *about in self.tail.arrived(chunk):
            if what == "begin":
                self.number = about[0]
                if about[1]:
                    self.page.told_of_a_gap()
            elif what == "events":
                for each in about[0]:
                    if self.seen.add(each.id):
                        self.page.saw(int(each.text))
                        self.positions.append((each.number, int(each.text)))
            # As the hub has it, which gives this place to who subscribes now.
            if what == "events":
                self.number = max(self.number, about[0][-1].number)
            elif what in ("jump", "reached"):
                self.number = max(self.number, about[-1])
        if GAP not in self.page.seen:
            self.positions.append((self.number, self.page.seen[-1] if self.page.seen else -1))

    # The end

    def teardown(self):
        if not hasattr(self, "row"):
            return
        while self.late:
            self.arrive_late()
        for turn in range(10 * (self.emitted + 10)):
            if turn > 2 and not self.queue and self.place == len(self.log):
                break
            self.work()
            self.read(5)
        assert not self.queue, "it stands still"
        found = account(self.page, self.emitted)
        assert (found.doubled, found.disordered, found.lost_silently) == (0, 0, 0), found
        if not self.cuts:
            assert GAP not in self.page.seen
        self.resume_from_everywhere()

    def resume_from_everywhere(self):
        """From the position of every event that was heard: what follows comes, or the client is told."""
        for position, index in self.positions:
            reading, told, heard, since = Reading(), False, [], position
            for body in self.log:
                events, missing = reading.take(unpack(body))
                told |= since < missing
                since = reading.carried(since)
                told |= since == NOWHERE
                heard += [int(each.text) for each in events if each.number > since]
            wanted = list(range(index + 1, self.emitted))
            if not self.cuts:
                assert not told
            if self.doubles:
                heard = [each for each in heard if each > index]
            assert told or heard == wanted


World.TestCase.settings = settings(
    max_examples=100, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)
TestCores = World.TestCase


def test_the_model_fills_its_messages(monkeypatch):
    """One event a message and one message in flight: more takeovers between them."""
    monkeypatch.setattr(relay_core, "BATCH_EVENTS", 1)
    monkeypatch.setattr(relay_core, "IN_FLIGHT", 2)
    World.TestCase("runTest").runTest()


@pytest.fixture
def world(monkeypatch):
    monkeypatch.setattr(relay_core, "BATCH_EVENTS", 1)
    world = World()
    world.begin()
    world.emit(2)
    return world


def test_a_tail_that_attaches_anew_passes_over_nothing(world):
    """What it has not read lies between a mark and the late word of a relay that was superseded."""
    world.work()
    world.another_is_active(anew=False)
    world.work()
    world.another_is_active(anew=False)
    world.read(5)
    world.work()
    world.attach()
    world.teardown()


def test_a_place_behind_a_mark_that_the_log_has_lost_is_told(world):
    """One event was sent, and its queue message was not whole; the next relay's numbers are far from it."""
    world.work()
    world.a_link_is_lost(0)
    world.work()
    world.emit(1)
    world.read(5)
    world.read(5)
    world.power_is_lost(2)
    world.teardown()


def test_who_has_heard_what_comes_again_in_two_parts_keeps_his_place():
    """The log loses what was heard, and two relays after each other send it again."""
    world = World()
    world.begin()
    world.emit(3)
    world.emit(2)
    for step in (world.deliver, world.deliver, world.fence, world.mark):
        step()
    world.send(0)
    world.arrive(0)
    world.read(5)
    world.power_is_lost(6)
    world.work()
    world.read(5)
    world.a_link_is_lost(0)
    world.teardown()


def test_what_another_relay_took_off_the_queue_is_told():
    """The first has the queue again, does not know that it was superseded, and sends something in vain."""
    world = World()
    world.begin()
    world.emit(1)
    world.work()
    world.another_is_active(anew=False)
    world.emit(1)
    world.work()
    world.hello()
    world.work()
    world.another_is_active(anew=False)
    world.emit(1)
    world.hello()
    world.work()
    world.power_is_lost(3)
    world.teardown()


def test_a_mark_behind_more_than_it_follows_leaves_nothing_out(monkeypatch):
    """Another relay has come and gone between this one's fence and its mark."""
    monkeypatch.setattr(relay_core, "BATCH_EVENTS", 1)
    world = World()
    world.begin()
    world.another_is_active(anew=False)
    world.emit(3)
    world.deliver()
    world.fence()
    world.another_is_active(anew=False)
    world.work()
    world.another_is_active(anew=False)
    world.send(0)
    world.a_link_is_lost(0)
    world.arrive_late()
    world.work()
    world.read(5)
    world.read(5)
    world.emit(2)
    world.teardown()
