"""What the relay decides, rule by rule."""

from __future__ import annotations

import pytest
from aiormq import ChannelNotFoundEntity

from asgi_amqp.exceptions import BrokerUnavailable
from asgi_amqp.options import Options, Target
from asgi_amqp.position import Position
from carillon.events import broker, heads
from carillon.events.event import Event, first_after, pack, unpack
from carillon.metrics import names
from carillon.relay import core as module
from carillon.relay.core import RelayCore
from carillon.relay.relay import Relay, pause_before
from tests.unit.asgi_amqp.links import Link

TOKEN = b"t" * 16


def event(name: str, size: int = 1) -> Event:
    return Event(b"a-1", b"x" * size, None, name.encode() * 16)


def active(noted: int = 0, first: int = 1, reserved: int = 1000) -> RelayCore:
    """One that has taken over an empty log, its mark confirmed."""
    core = RelayCore()
    take_over(core, noted, first, reserved)
    core.confirmed()
    core.noted(first - 1)
    return core


def take_over(core, noted=0, first=1, reserved=1000):
    core.read(unpack(core.fenced_by("ep", TOKEN)))
    mark = core.took_over(noted, first, reserved)
    core.read(unpack(mark))
    return unpack(mark)


def sent(core) -> list[tuple[int, int, list[bytes]]]:
    """Number, number before, and ids of all messages that go out now."""
    found = []
    while (body := core.send()) is not None:
        batch = unpack(body)
        found.append((batch.number, batch.after, [each.id[:1] for each in batch.events]))
    return found


def test_a_message_says_when_its_events_were_relayed():
    core = active()
    core.arrived(1, [event("a")])
    assert unpack(core.send(1_700_000_000_123)).relayed == 1_700_000_000_123
    assert unpack(pack([event("b")], 7)).relayed is None
    assert unpack(core.fenced_by("ep", TOKEN)).relayed is None


def test_a_takeover_sends_nothing_before_its_own_mark_has_been_read():
    core = RelayCore()
    assert (core.fenced, core.send(), core.to_note()) == (False, None, None)
    core.read(unpack(pack([event("y")], 1)))
    assert (core.fenced, RelayCore().last) == (False, 0)
    fence = unpack(core.fenced_by("ep", TOKEN))
    assert (fence.number, fence.events, fence.word) == (0, [], b"fence " + TOKEN)
    core.read(unpack(pack([], word=b"fence " + b"u" * 16)))  # another's
    assert not core.fenced
    core.read(unpack(pack([event("b")], 7)))
    core.read(fence)
    assert (core.fenced, core.active, core.last) == (True, False, 7)
    mark = unpack(core.took_over(9, 100, 200))
    assert (mark.number, mark.after, mark.events) == (100, 9, [])
    assert core.send() is None
    core.read(
        unpack(pack([event("c")], 8))
    )  # the late word of who was before: it is in the log, so it counts
    assert not core.active
    core.read(mark)
    assert core.active
    assert core.arrived(1, [event("a")]) == 0
    core.read(unpack(pack([event("z")], 100)))  # what it sends itself is no double
    assert core.arrived(2, [event("b"), event("c")]) == 2
    assert core.arrived(3, [event("z")]) == 0
    assert sent(core) == [(100, 99, [b"a", b"z"])]


def test_what_is_done_with_is_in_the_row():
    core = active()
    core.arrived(1, [event("a"), event("b")])
    core.arrived(2, [event("c")])
    assert sent(core) == [(1, 0, [b"a", b"b", b"c"])]
    assert (core.done(), core.to_note(), core.settled) == (0, None, False)
    assert core.confirmed() == 3
    assert core.to_note() == Position("ep", 3)
    assert core.done() == 0
    core.noted(2)
    assert (core.done(), core.settled) == (1, False)
    core.noted(1)  # never back
    core.noted(3)
    assert (core.done(), core.done(), core.settled, core.to_note()) == (2, 0, True, None)


def test_the_mark_itself_is_noted_before_anything_is_done_with():
    """Doubles lie in the log of a forerunner, perhaps beyond what the row had."""
    core = RelayCore()
    core.read(unpack(pack([event("a")], 7)))
    take_over(core, 7, 100)
    core.arrived(1, [event("a")])
    assert (core.send(), core.done(), core.to_note()) == (None, 0, None)
    assert core.confirmed() == 0
    assert core.to_note() == Position("ep", 99)
    assert core.done() == 0
    core.noted(99)
    assert core.done() == 1


def test_a_mark_that_nothing_follows_is_noted_too():
    """What the relay took over is known by it: the row must not stay behind."""
    core = RelayCore()
    take_over(core, 7, 100)
    assert (core.in_hand, core.settled, core.to_note()) == (1, False, None)
    core.confirmed()
    assert core.to_note() == Position("ep", 99)
    core.noted(99)
    assert (core.done(), core.in_hand, core.settled) == (0, 0, True)
    core.arrived(1, [event("a")])
    assert core.in_hand == 0, "it was not sent yet"
    assert sent(core) == [(100, 99, [b"a"])]
    assert core.in_hand == 1


def test_who_stands_by_sends_nothing_whatever_it_is_given():
    core = RelayCore()
    core.read(unpack(core.fenced_by("ep", TOKEN)))
    mark = core.took_over(0, 1, 1000)
    core.arrived(1, [event("a")])
    assert core.send() is None
    core.read(unpack(mark))
    core.confirmed()
    assert sent(core) == [(1, 0, [b"a"])]


def test_a_message_of_the_log_is_full_at_its_limit_of_bytes():
    full = module.BATCH_BYTES - event("x", 0).size
    core = active()
    core.arrived(1, [event("a", full - 1), event("b", full), event("c", full), event("d")])
    assert sent(core) == [(1, 0, [b"a", b"b"]), (3, 2, [b"c"]), (4, 3, [b"d"])]


def test_doubles_are_done_with_when_what_came_before_them_is():
    core = active()
    core.arrived(1, [event("a")])
    assert core.arrived(2, [event("a")]) == 1
    assert core.arrived(3, []) == 0
    assert sent(core) == [(1, 0, [b"a"])]
    assert core.done() == 0
    core.confirmed()
    core.noted(1)
    assert core.done() == 3


def test_so_many_are_in_flight_and_what_comes_meanwhile_gathers(monkeypatch):
    monkeypatch.setattr(module, "IN_FLIGHT", 2)
    core = active()
    for tag, name in enumerate("abcd", 1):
        core.arrived(tag, [event(name)])
        if tag < 3:
            assert len(sent(core)) == 1
    assert core.send() is None
    core.confirmed()
    assert sent(core) == [(3, 2, [b"c", b"d"])]


def test_a_message_of_the_log_has_an_end(monkeypatch):
    monkeypatch.setattr(module, "BATCH_EVENTS", 2)
    core = active()
    core.arrived(1, [event("a"), event("b"), event("c")])
    assert sent(core) == [(1, 0, [b"a", b"b"]), (3, 2, [b"c"])]
    core.confirmed()
    core.noted(2)
    assert core.done() == 0, "a part of a queue message is no queue message"
    core.arrived(2, [event("d", module.BATCH_BYTES), event("e")])
    assert sent(core) == [(4, 3, [b"d"]), (5, 4, [b"e"])]


def test_numbers_come_to_an_end_and_are_extended():
    core = active(reserved=3)
    assert not core.short(3)
    core.arrived(1, [event("a"), event("b"), event("c"), event("d")])
    assert sent(core) == [(1, 0, [b"a", b"b", b"c"])]
    assert core.short(1)
    core.extended(6)
    assert (core.short(3), core.short(4)) == (False, True)
    assert sent(core) == [(4, 3, [b"d"])]
    assert not RelayCore().short(1), "who stands by needs none"


def test_a_lost_link_forgets_what_the_queue_gives_out_again():
    core = active()
    for tag, name in enumerate("abc", 1):
        core.arrived(tag, [event(name)])
        sent(core)
        core.confirmed()
    core.noted(1)
    assert core.done() == 1
    core.arrived(4, [event("d")])
    sent(core)
    core.arrived(5, [event("e")])
    core.lost()
    assert (core.epoch, core.active, core.fenced, core.settled) == ("", False, False, True)
    take_over(core, 3, 2000, 3000)
    assert core.arrived(1, [event(name) for name in "abcde"]) == 0, "what was done with, too"
    core.confirmed()
    assert sent(core) == [(2000, 1999, [b"a", b"b", b"c", b"d", b"e"])]


def test_the_mark_follows_what_does_not_come_again_as_far_as_it_knows():
    core = active()
    for tag, letters in enumerate(("ab", "cd"), 1):
        core.arrived(tag, [event(letter) for letter in letters])
        sent(core)
        core.confirmed()
        core.noted(2 * tag)
    assert core.done() == 2
    core.lost()
    core.read(unpack(core.fenced_by("ep", TOKEN)))
    first = first_after(1000)
    assert unpack(core.took_over(4, first, first + 9, [event("x"), event("d"), event("a")])).after == 3
    core.lost()
    core.read(unpack(pack([event("b")], 2)))
    core.read(unpack(core.fenced_by("ep", TOKEN)))
    first = first_after(first + 9)
    assert unpack(core.took_over(4, first, first + 9, [event("a")])).after == 2, "so much the log has"
    core.lost()
    core.read(unpack(core.fenced_by("ep", TOKEN)))
    first = first_after(first + 9 + 500)
    assert unpack(core.took_over(4, first, first + 9, [event("d")])).after == 4, "another had numbers, too"
    core.lost()
    core.read(unpack(core.fenced_by("ep", TOKEN)))
    first = first_after(first + 9)
    assert unpack(core.took_over(4, first, first + 9, [event("d")])).after == 4, "that is not forgotten"
    core.lost()
    core.read(unpack(core.fenced_by("another", TOKEN)))
    assert unpack(core.took_over(4, 300, 400, [event("d")])).after == 4


def test_what_was_done_with_long_ago_stays_known(monkeypatch):
    monkeypatch.setattr(module, "SENT", 2)
    core = active()
    for tag, name in enumerate("abcd", 1):
        core.arrived(tag, [event(name)])
        sent(core)
        core.confirmed()
        core.noted(tag)
        core.done()
    core.lost()
    take_over(core, 4, 100)
    assert core.arrived(1, [event("a")]) == 1


def test_a_part_that_was_sent_is_forgotten_too(monkeypatch):
    monkeypatch.setattr(module, "BATCH_EVENTS", 1)
    monkeypatch.setattr(module, "IN_FLIGHT", 1)
    core = active()
    core.arrived(1, [event("a"), event("b")])
    assert sent(core) == [(1, 0, [b"a"])]
    assert core.done() == 0
    assert not core.settled
    core.lost()
    take_over(core, 0, 100, 200)
    assert core.arrived(1, [event("a"), event("b")]) == 0


class Id(bytes):
    """How often one is compared with another."""

    compared = 0

    __hash__ = bytes.__hash__

    def __eq__(self, other):
        Id.compared += 1
        return bytes.__eq__(self, other)


def test_a_takeover_does_not_compare_all_that_waits_with_all_that_was_sent(monkeypatch):
    """Of 1 024 queue messages with 200 events each, that held the loop for minutes, and the link was lost."""

    def events(first):
        return [Event(b"a-1", b"{}", None, Id(number.to_bytes(16))) for number in range(first, first + 200)]

    core = active(reserved=10**6)
    for tag in range(1, 11):
        core.arrived(tag, events(200 * tag))
        sent(core)
        core.confirmed()
        core.noted(core.to_note().number)
        core.done()
    core.lost()
    core.read(unpack(core.fenced_by("ep", TOKEN)))
    monkeypatch.setattr(Id, "compared", 0)
    core.took_over(core.last, first_after(10**6), 2 * 10**6, events(10**6))
    assert Id.compared < 100


def test_takeovers_that_lead_to_nothing_come_ever_later():
    assert [pause_before(fruitless) for fruitless in range(4)] == [0, 0, 0.2, 0.4]
    assert pause_before(1000) == 5


async def test_a_lost_link_counts_until_events_get_through(monkeypatch):
    monkeypatch.setattr(broker, "queue", lambda: None)
    monkeypatch.setattr(broker, "options", lambda name: Options((Target.parse("amqp://nowhere/"),), name))
    relay = Relay()
    for gauge in (names.DEAD_LETTERS, names.QUEUE_MESSAGES):
        gauge.set(7)
    for _ in range(3):
        relay._lost(None, "test")
    assert pause_before(relay._fruitless) == 0.4
    # Who takes over counts: what this one has counted would stand for ever.
    assert [gauge._value.get() for gauge in (names.DEAD_LETTERS, names.QUEUE_MESSAGES)] == [0, 0]


async def test_no_epoch_begins_while_the_broker_of_the_log_is_down(monkeypatch):
    """Found by composed chaos, seed 8: everybody was told of a gap, and the log was there."""

    async def current():
        return Position("ep", 7)

    async def begin(epoch):
        raise AssertionError(f"epoch {epoch} has ended")

    monkeypatch.setattr(broker, "queue", lambda: None)
    monkeypatch.setattr(broker, "options", lambda name: Options((Target.parse("amqp://nowhere/"),), name))
    monkeypatch.setattr(heads, "current", current)
    monkeypatch.setattr(heads, "begin", begin)
    link = Link()
    link.passing.failing["queue_declare"] = ChannelNotFoundEntity(
        "NOT_FOUND - home node 'rabbit@broker3' of durable queue 'carillon.events.ep' is down"
    )
    with pytest.raises(BrokerUnavailable):
        await Relay()._current_epoch(link)


@pytest.mark.parametrize("noted", [5, 9])
def test_a_mark_follows_what_was_taken_off_the_queue(noted):
    core = RelayCore()
    assert take_over(core, noted, 20, 30).after == noted


def test_what_a_log_had_before_it_lost_its_end_is_no_double_of_what_comes_again():
    """A relay reads it while it takes over; then the power goes, and the log's newest part with it."""
    core = RelayCore()
    core.fenced_by("ep", TOKEN)
    core.read(unpack(pack([event("a")], 1)))
    core.lost()
    take_over(core, first=100)
    core.confirmed()
    assert core.arrived(1, [event("a")]) == 0
    assert sent(core) == [(100, 99, [b"a"])]
