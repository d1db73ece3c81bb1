"""Passes over the log: who rides, who leaves, and what is said; with a log that is a list."""

from __future__ import annotations

import asyncio

import pytest

from asgi_amqp.exceptions import BrokerUnavailable
from asgi_amqp.position import Position
from carillon.events.event import LEAP, Event, pack, unpack
from carillon.fanout import feeder, replay
from carillon.fanout.hub import Hub
from carillon.fanout.replay import REACH, Replayer, together
from carillon.fanout.window import Window
from tests.unit.fanout.test_hub import Ear, fed

HEARD = [b"a-1", b"b-1"]


def event(number, group=b"a-1"):
    return Event(group, b"%d" % number, None, b"%016d" % number, 0, number)


class Log:
    """Messages of two events each, 1 and 2, 3 and 4, …; `gone`: how many of the oldest are. A pass may have
    `prefetch` of them in hand."""

    def __init__(self, monkeypatch, count, gone=0):
        self.count, self.gone = count, gone
        self.passes, self.away = 0, False
        monkeypatch.setattr(replay, "Supervisor", self.supervisor)
        monkeypatch.setattr(replay.stream, "StreamReader", self.reader)
        monkeypatch.setattr(replay, "locate", self.locate)
        monkeypatch.setattr(replay, "CHUNK", 3)

    def message(self, place):
        number = 2 * place + 1
        return place, pack([event(number), event(number + 1, HEARD[1])], number, number - 1)

    async def locate(self, link, name, number):
        return max(number // 2 - 1, self.gone)

    def supervisor(self, options, attach, lost):
        log = self

        class Supervisor:
            async def link(self, timeout):
                if log.away:
                    raise BrokerUnavailable("away")
                log.passes += 1
                await attach(self)

            async def close(self):
                pass

        return Supervisor()

    def reader(self, name, start, on_messages, *, prefetch, manual):
        log = self

        class Reader:
            next = start

            async def attach(self, link):
                self.acknowledge()

            def acknowledge(self):
                first, self.next = self.next, min(self.next + prefetch, log.count)
                if first < self.next:
                    messages = [log.message(place) for place in range(first, self.next)]
                    asyncio.get_running_loop().call_soon(on_messages, messages)

            def detach(self):
                pass

        return Reader()


def process(log, window):
    """A hub that has read the log, and keeps that many of its last messages."""
    hub = Hub(Window(10**6))
    hub.begin("ep", 2 * (log.count - window))
    for place in range(log.count - window, log.count):
        hub.deliver([event(2 * place + 1), event(2 * place + 2, HEARD[1])])
    hub.feeder.log = Replayer(None, hub.feeder)
    return hub


async def done(*ears):
    async with asyncio.timeout(10):
        while not all(ear.told for ear in ears):
            await asyncio.sleep(0)


async def test_from_the_log_then_the_window_then_live(monkeypatch):
    log = Log(monkeypatch, 30)
    hub = process(log, 5)
    ear = Ear()
    hub.subscribe(ear, frozenset(HEARD), Position("ep", 7))
    await done(ear)
    hub.deliver([event(61)])
    assert ear.heard == [str(number) for number in range(8, 62)]
    assert (ear.told, ear.live, log.passes) == (["ep:60"], True, 1)


async def test_one_pass_serves_all_who_want_it(monkeypatch):
    monkeypatch.setattr(feeder, "MOMENT", 60.0)  # or, on a busy machine, some come too late for it
    log = Log(monkeypatch, 30)
    hub = process(log, 5)
    ears = [Ear() for _ in range(20)]
    for place, ear in enumerate(ears):
        hub.subscribe(ear, frozenset(HEARD[:1]), Position("ep", place))
    await done(*ears)
    for place, ear in enumerate(ears):
        assert ear.heard == [str(number) for number in range(1, 60, 2) if number > place]
    assert log.passes == 1


@pytest.mark.parametrize(
    ("newest", "riders"), [(True, {"newest", "near it"}), (False, {"first", "before", "behind"})]
)
def test_a_pass_is_for_those_who_want_about_the_same(newest, riders):
    far = 10 * REACH
    places = {
        "first": far,
        "newest": 2 * far,
        "oldest": 0,
        "before": far - REACH,
        "behind": far + REACH,
        "too far": far + REACH + 1,
        "near it": 2 * far - REACH,
    }
    assert together(places, newest) == (riders, places["newest" if newest else "first"])
    assert together({}, newest)[0] == set()


def far_and_near(monkeypatch):
    """A log of hundreds of pages; riders of a pass are two of them apart, and its turn is one page."""
    monkeypatch.setattr(replay, "REACH", 12, raising=False)
    monkeypatch.setattr(replay, "TURN", 0.0, raising=False)
    log = Log(monkeypatch, 1000)
    return log, process(log, 5)


async def test_the_near_does_not_wait_for_the_far(monkeypatch):
    log, hub = far_and_near(monkeypatch)
    far, near = Ear(), Ear()
    hub.subscribe(far, frozenset(HEARD), Position("ep", 0))
    hub.subscribe(near, frozenset(HEARD), Position("ep", 1900))
    await done(near)
    assert near.heard == [str(number) for number in range(1901, 2001)]
    assert len(far.heard) < 1000
    await done(far)
    assert far.heard == [str(number) for number in range(1, 2001)]
    assert log.passes == 2, "nobody waits: neither is interrupted"


async def test_nor_where_the_far_have_every_pass(monkeypatch):
    """Each of them came when the one before was on its way."""
    _, hub = far_and_near(monkeypatch)
    ears = [Ear(), Ear()]
    for ear in ears:
        hub.subscribe(ear, frozenset(HEARD), Position("ep", 0))
        while not ear.heard:
            await asyncio.sleep(0)
    near = Ear()
    hub.subscribe(near, frozenset(HEARD), Position("ep", 1900))
    await done(near)
    assert near.told == ["ep:2000"]
    assert [ear.told for ear in ears] == [[], []]
    await done(*ears)
    for ear in ears:
        assert ear.heard == [str(number) for number in range(1, 2001)]


async def test_a_pass_comes_to_those_whom_it_is_for(monkeypatch):
    """It begins some messages before what its riders want, and others may want what lies before that."""
    log, hub = far_and_near(monkeypatch)

    async def early(link, name, number):
        return max(number // 2 - 10, 0)

    monkeypatch.setattr(replay, "locate", early)
    hub.feeder.log = Replayer(None, hub.feeder, scans=1)
    ears = [Ear(), Ear()]
    for ear, place in zip(ears, (1900, 1940), strict=True):
        hub.subscribe(ear, frozenset(HEARD), Position("ep", place))
    await done(*ears)
    assert [len(ear.heard) for ear in ears] == [100, 60]
    assert log.passes > 10


async def test_every_other_pass_is_for_whoever_has_waited_for_the_longest(monkeypatch):
    """Those who want the newest may come again and again, and so may those who want the oldest."""
    _, hub = far_and_near(monkeypatch)
    log = hub.feeder.log = Replayer(None, hub.feeder, scans=0)  # none begins by itself
    ears = {place: Ear() for place in (500, 1900, 0, 1000)}
    for place, ear in ears.items():
        hub.subscribe(ear, frozenset(HEARD), Position("ep", place))
    await fed(hub)
    boarded = [log._board()[0] for _ in range(5)]
    assert boarded == [*({ears[place]} for place in (1900, 500, 1000, 0)), set()]


async def test_what_is_closed_begins_no_pass(monkeypatch):
    _, hub = far_and_near(monkeypatch)
    log = hub.feeder.log = Replayer(None, hub.feeder, scans=1)
    ears = [Ear(), Ear()]
    for place, ear in enumerate(ears):
        hub.subscribe(ear, frozenset(HEARD), Position("ep", 1000 * place))
    while not any(ear.heard for ear in ears):
        await asyncio.sleep(0)
    await log.close()
    await asyncio.sleep(0)
    await fed(hub)
    assert not log._tasks


async def test_the_loop_is_given_way_to_after_each_message(monkeypatch):
    hub, ear = process(Log(monkeypatch, 30), 5), Ear()
    turn, unpacked = 0, []

    async def count():
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    def noted(body):
        unpacked.append(turn)
        return unpack(body)

    monkeypatch.setattr(replay, "unpack", noted)
    counting = asyncio.create_task(count())
    hub.subscribe(ear, frozenset(HEARD), Position("ep", 7))
    await done(ear)
    counting.cancel()
    assert len(unpacked) == len(set(unpacked)) > 20


async def test_an_epoch_that_ends_in_the_middle_of_a_page(monkeypatch):
    hub, ear = process(Log(monkeypatch, 30), 5), Ear()
    unpacked = []

    def noted(body):
        unpacked.append(body)
        hub.begin("next", 0)
        return unpack(body)

    monkeypatch.setattr(replay, "unpack", noted)
    hub.subscribe(ear, frozenset(HEARD), Position("ep", 7))
    await done(ear)
    assert (ear.told, len(unpacked)) == (["epoch"], 1)


async def test_who_comes_too_late_is_told_and_the_others_are_not(monkeypatch):
    log = Log(monkeypatch, 30, gone=10)
    hub = process(log, 5)
    late, early = Ear(), Ear()
    hub.subscribe(late, frozenset(HEARD), Position("ep", 3))
    hub.subscribe(early, frozenset(HEARD), Position("ep", 24))
    await done(late, early)
    assert (late.told, late.heard) == (["retention"], [])
    assert early.told == ["ep:60"]
    assert early.heard == [str(number) for number in range(25, 61)]
    await fed(hub)
    assert late.live


async def test_no_broker_is_said(monkeypatch):
    log = Log(monkeypatch, 30)
    log.away = True
    hub = process(log, 5)
    ear = Ear()
    hub.subscribe(ear, frozenset(HEARD), Position("ep", 3))
    await done(ear)
    assert ear.told == ["unavailable"]


async def test_a_slow_rider_leaves_the_others_and_has_everything_in_the_end(monkeypatch):
    monkeypatch.setattr(replay, "LATE", 0.02)
    log = Log(monkeypatch, 30)
    hub = process(log, 5)

    class Slow(Ear):
        __slots__ = ("may",)

        def room(self):
            return self.may

    slow, quick = Slow(), Ear()
    slow.may = False
    for ear in (slow, quick):
        hub.subscribe(ear, frozenset(HEARD), Position("ep", 0))
    await done(quick)
    assert slow.heard == []
    assert quick.heard == [str(number) for number in range(1, 61)]
    slow.may = True
    hub.feeder.ready(slow)
    await done(slow)
    assert slow.heard == quick.heard
    assert log.passes == 2


async def test_who_rides_is_not_taken_along_twice(monkeypatch):
    """Events that come meanwhile have it looked at again and again."""
    log = Log(monkeypatch, 30)
    hub = process(log, 5)
    ear = Ear()
    hub.subscribe(ear, frozenset([b"c-1"]))
    hub.subscribe(ear, frozenset([b"c-1", *HEARD]), Position("ep", 0))
    for number in range(61, 70):
        hub.deliver([event(number, b"c-1")])
        await asyncio.sleep(0)
    await done(ear)
    await fed(hub)
    assert log.passes == 1
    assert sorted(ear.heard, key=int) == [str(number) for number in range(1, 70)]
    assert ear.live


async def test_a_log_that_says_nothing_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(replay, "STILL", 0.05)
    log = Log(monkeypatch, 30)
    hub = process(log, 5)
    log.count = 8  # it has lost its end
    ear = Ear()
    hub.subscribe(ear, frozenset(HEARD), Position("ep", 3))
    await done(ear)
    assert ear.told == ["unavailable"]
    await asyncio.sleep(0)
    assert not hub.feeder.log._tasks


def lost_its_end(monkeypatch, next_number):
    """A mark behind number 10: what was 11 to 20 is lost, and comes again from the next number on."""
    log = Log(monkeypatch, 30)
    message = log.message

    def marked(place):
        if place < 5:
            return message(place)
        if place == 5:
            return place, pack([], next_number, 10)
        first = 2 * place + next_number - 12
        return place, pack([event(first), event(first + 1, HEARD[1])], first, first - 1)

    async def before_the_mark(link, name, number):
        return 4

    monkeypatch.setattr(replay, "locate", before_the_mark)
    log.message = marked
    hub = Hub(Window(10**6))
    hub.begin("ep", next_number + 47)
    hub.feeder.log = Replayer(None, hub.feeder)
    return hub


@pytest.mark.parametrize("number", [12, 19])
async def test_a_place_in_what_the_log_has_lost(monkeypatch, number):
    hub, ear = lost_its_end(monkeypatch, 31), Ear()
    hub.subscribe(ear, frozenset(HEARD), Position("ep", number))
    await done(ear)
    assert ear.told == ["ep:78"]
    assert ear.heard[0] == str(number + 30 - 10 + 1), "what it has heard of that does not come twice"


async def test_a_place_behind_a_mark_that_the_log_has_lost_too_is_told(monkeypatch):
    """Nobody knows how many events it has heard of what comes again."""
    hub = lost_its_end(monkeypatch, 2 * LEAP + 31)
    far, near = Ear(), Ear()
    hub.subscribe(far, frozenset(HEARD), Position("ep", LEAP + 15))
    hub.subscribe(near, frozenset(HEARD), Position("ep", 19))
    await done(far, near)
    assert far.told == ["retention"]
    assert near.told == [f"ep:{2 * LEAP + 78}"]
    assert near.heard[0] == str(2 * LEAP + 31 + 9)
