"""Outbox in any order of events: nothing is forgotten, nobody waits for ever, order and bounds hold."""

from collections import Counter

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from asgi_amqp.exceptions import BrokerUnavailable, ChannelFull, MessageTooLarge
from asgi_amqp.metrics import Stats
from asgi_amqp.outbox import Outbox, Ticket
from asgi_amqp.topology import Destination, Queue
from tests.unit.asgi_amqp.properties import SETTINGS

LIMIT, LARGEST, EXPIRY = 3000, 800, 60.0


def _queue(key, dead="", most=0):
    return Destination(key, b"", key, True, most, Queue(f"q.{key}", key, {}, dead))


SIZE = st.integers(4, 300)
PLAIN = [Destination("g.a", b""), Destination("g.b", b""), Destination("p.a", b""), Destination("p.b", b"")]
QUEUES = [_queue("c.a", most=1), _queue("d.a", "dead", most=3), _queue("d.b", "dead")]
BY_KEY = {each.key: each for each in QUEUES}


class Seen(Ticket):
    __slots__ = ("ends",)

    def __init__(self, left, deadline):
        super().__init__(left, deadline)
        self.ends = 0

    def finish(self):
        self.ends += 1


class Machine(RuleBasedStateMachine):
    """The broker handles what leaves at once, in order; its answers come when a rule lets them come."""

    def __init__(self):
        super().__init__()
        self.stats = Stats()
        self.box = Outbox(self.stats, LIMIT, LARGEST, EXPIRY)
        self.now = 0.0
        self.up = False
        self.tickets = []
        self.events = {}  # payload: (destination, ticket, number, when)
        self.silent = Counter()  # what became of events without a ticket
        self.number = 0
        self.left = {}  # lane: the last number that left unconfirmed
        self.exists = set()  # queues
        self.full = set()
        self.logs = {each.key: [] for each in QUEUES}  # numbers as the queue got them
        self.answers = {}  # tag: (batch, "ok", "returned" or "refused")
        self.unsure = []  # batches on the channel without confirms
        self.asked = []  # how many of them each open question covers
        self.to_ask = []
        self.declared = set()  # lanes whose queue was declared and that are not held

    # What is sent

    @initialize(closes=st.booleans())
    def begin(self, closes):
        self.closes = closes
        self.link_up()

    @rule(
        destination=st.sampled_from(QUEUES),
        sizes=st.lists(SIZE, min_size=1, max_size=4),
        patience=st.sampled_from([500.0, 1.0, 5.0]),
    )
    def accept_confirmed(self, destination, sizes, patience):
        self._accept(destination, sizes, "watched", patience)

    @rule(destination=st.sampled_from(QUEUES), other=st.sampled_from(QUEUES), sizes=st.tuples(SIZE, SIZE))
    def accept_two(self, destination, other, sizes):
        self._accept(destination, sizes[:1], "watched", 500.0)
        self._accept(other, sizes[1:], "watched", 500.0)

    @rule(
        destination=st.sampled_from(PLAIN),
        sizes=st.lists(SIZE, min_size=1, max_size=4),
        kind=st.sampled_from(["silent", "unwatched", "watched"]),
        patience=st.sampled_from([500.0, 1.0]),
    )
    def accept_plain(self, destination, sizes, kind, patience):
        self._accept(destination, sizes, kind, patience)

    def _accept(self, destination, sizes, kind, patience):
        ticket = None
        if kind != "silent" or destination.confirmed:
            ticket = Seen(len(sizes), self.now + patience)
            self.tickets.append(ticket)
        for size in sizes:
            if self.box.full(destination):
                if ticket is not None:
                    ticket.settle(BrokerUnavailable("full"))
                continue
            self.number += 1
            data = b"%04d" % self.number + bytes(size - 4)
            try:
                self.box.accept(destination, data, ticket, self.now, watched=kind != "unwatched")
            except MessageTooLarge as error:
                assert size > self.box.max_message
                if ticket is not None:
                    ticket.settle(error)
            else:
                assert size <= self.box.max_message
                self.events[data] = destination, ticket, self.number, self.now
                if ticket is None:
                    self.silent["accepted"] += 1
        self._hear()

    def _hear(self):
        """The shell sees what is to be declared; such lanes are held."""
        for queue in self.box.to_declare:
            self.declared.discard(queue.key)

    @precondition(lambda self: any(not ticket.done for ticket in self.tickets))
    @rule(data=st.data())
    def cancel(self, data):
        """Whoever waits goes away, as a cancelled task does."""
        data.draw(st.sampled_from([ticket for ticket in self.tickets if not ticket.done])).done = True

    @precondition(lambda self: self.up and self.box.to_declare)
    @rule()
    def declare_and_take(self):
        while self.box.to_declare:
            self.declare(True)
        self.take()

    @precondition(lambda self: self.up and self.box.takable)
    @rule()
    def take(self):
        for batch in self.box.take(self.now):
            assert batch.parts
            assert batch.size == sum(map(len, batch.parts))
            assert batch.size <= self.box.batch_bytes or len(batch.parts) == 1
            numbers = [self.events[part][2] for part in batch.parts]
            assert numbers == sorted(numbers)
            assert {self.events[part][0].key for part in batch.parts} <= set(batch.keys)
            lane = batch.lane.name
            if not batch.lane.again:
                assert numbers[0] > self.left.get(lane, 0), "order on a lane that sends once"
                self.left[lane] = numbers[-1]
            if not batch.confirmed:
                self.unsure.append(batch)
                for part in batch.parts:
                    self.silent["left"] += self.events[part][1] is None
                continue
            assert batch.tag not in self.answers
            assert batch.mandatory or any(key.startswith("g.") for key in batch.keys)
            self.answers[batch.tag] = batch, self._arrives(batch, lane, numbers)

    def _arrives(self, batch, lane, numbers):
        if not batch.lane.again:
            return "returned" if "p.b" in batch.keys else "ok"
        assert lane in self.declared, "it left before its queue was there"
        assert 0 < len(batch.parts) <= (batch.lane.most or len(batch.parts))
        if lane not in self.exists:
            return "returned"
        if lane in self.full:
            return "refused"
        self.logs[lane].extend(numbers)
        return "ok"

    # What the broker says

    def _answer(self, tag):
        batch, how = self.answers.pop(tag)
        if how == "returned":
            self.box.returned(batch.identity, confirmed=True)
        self.box.confirm(tag, False, how != "refused", self.now)
        self._hear()

    @precondition(lambda self: self.answers)
    @rule(data=st.data())
    def answer_one(self, data):
        self._answer(data.draw(st.sampled_from(sorted(self.answers))))

    @precondition(lambda self: self.answers)
    @rule(data=st.data())
    def answer_many(self, data):
        """One confirm for all of the oldest that went well."""
        good = []
        for tag, (_, how) in self.answers.items():
            if how != "ok":
                break
            good.append(tag)
        if good:
            last = data.draw(st.sampled_from(good))
            for tag in good:
                if tag <= last:
                    del self.answers[tag]
            self.box.confirm(last, True, True, self.now)

    @precondition(lambda self: self.up and self.unsure)
    @rule()
    def ask(self):
        if self.box.ask():
            self.asked.append(len(self.unsure) - sum(self.asked))
            assert self.asked[-1] > 0

    @precondition(lambda self: self.asked)
    @rule()
    def answered(self):
        self.box.answered()
        del self.unsure[: self.asked.pop(0)]

    @rule(key=st.sampled_from(sorted(BY_KEY)))
    def delete_queue(self, key):
        """Its last messages go with it."""
        self._answer_all()
        self.exists.discard(key)
        self.logs[key].clear()

    @rule(key=st.sampled_from(sorted(BY_KEY)), full=st.booleans())
    def fill_queue(self, key, full):
        self.full.add(key) if full else self.full.discard(key)

    def _answer_all(self):
        for tag in list(self.answers):
            self._answer(tag)

    # What the shell says

    @precondition(lambda self: self.up and self.box.to_declare)
    @rule(works=st.booleans())
    def declare(self, works):
        queue = self.box.to_declare.pop(0)
        self._answer_all()
        if works:
            self.exists.add(queue.key)
            self.declared.add(queue.key)
            self.box.declared(queue, self.now)
        else:
            self.box.undeclared(queue, BrokerUnavailable("undeclared"))
        # What came back meanwhile has it declared once more.
        self._hear()

    @precondition(lambda self: self.box.to_ask)
    @rule()
    def begin_to_ask(self):
        self.to_ask.append(self.box.to_ask.pop(0))

    @precondition(lambda self: self.to_ask)
    @rule(gone=st.booleans())
    def told_why(self, gone):
        queue = self.to_ask.pop(0)
        self.box.refused(queue, ChannelFull("full"), gone=gone)

    @precondition(lambda self: not self.up)
    @rule()
    def link_up(self):
        before, lost = self._waiting(), self.stats.lost["expired"]
        self.up = True
        self.box.up(self.now)
        gone = before - self._waiting()
        assert self.stats.lost["expired"] == lost + len(gone)
        assert all(self.events[part][0].queue is None for part in gone)
        assert all(self.events[part][3] < self.now - EXPIRY * 0.9 for part in gone)
        assert all(self.events[part][3] >= self.now - EXPIRY for part in self._waiting() if self._once(part))
        self.silent["expired"] += sum(self.events[part][1] is None for part in gone)

    def _once(self, part):
        destination, ticket, *_ = self.events[part]
        return destination.queue is None and ticket is None

    def _waiting(self):
        """All events that wait, but for those that were withdrawn."""
        return {
            part
            for batch in self.box
            for place, part in enumerate(batch.parts)
            if part and (place not in batch.tickets or not batch.tickets[place].done)
        }

    @precondition(lambda self: self.up)
    @rule(shrink=st.sampled_from([None, None, 700, 400]))
    def link_lost(self, shrink):
        unsure = sum(len(batch.parts) for batch in self.unsure)
        unsure += sum(len(batch.parts) for batch, _ in self.answers.values() if not batch.lane.again)
        before = self.stats.lost["in_flight"]
        self.up = False
        self.answers.clear()
        self.unsure.clear()
        self.asked.clear()
        self.box.lost("cut")
        assert self.stats.lost["in_flight"] == before + unsure
        if shrink:
            self.box.shrink(shrink)

    @rule(seconds=st.sampled_from([0.1, 2.0, 6.0, 61.0]))
    def tick(self, seconds):
        self.now += seconds
        waits = self.box.tick(self.now, "slow")
        unsettled = [ticket for batch in self.box for ticket in batch.tickets.values() if not ticket.done]
        assert waits or not unsettled
        assert not waits or any(ticket.deadline >= self.now for ticket in self.tickets)
        assert all(ticket.deadline >= self.now for ticket in unsettled)

    def close(self):
        self.up = False
        self.box.close(BrokerUnavailable("closed"))
        self.answers.clear()
        self.unsure.clear()

    # What holds

    @invariant()
    def every_event_is_known(self):
        there = Counter()
        for batch in self.box:
            for place, part in enumerate(batch.parts):
                if not part:  # refused
                    continue
                there[part] += 1
                assert batch.tickets.get(place) is self.events[part][1]
        assert not there or max(there.values()) == 1, "an event is there twice"
        silent = 0
        for part, (_, ticket, *_) in self.events.items():
            if ticket is None:
                silent += there[part]
        lost = self.stats.lost
        assert (
            self.silent["accepted"]
            == silent + self.silent["left"] + self.silent["expired"] + lost["too_large"] + lost["unsent"]
        )
        for ticket in self.tickets:
            assert ticket.ends <= 1
            assert ticket.ends == 0 or ticket.done
        open_tickets = {id(ticket) for ticket in self.tickets if not ticket.done}
        assert open_tickets == {
            id(ticket) for batch in self.box for ticket in batch.tickets.values() if not ticket.done
        }, "somebody waits for nothing"

    @invariant()
    def sums_are_right(self):
        lanes = self.box._lanes.values()
        waiting = [batch for lane in lanes for batch in lane.waiting]
        assert self.box.size == sum(batch.size for batch in waiting)
        for lane in lanes:
            assert lane.size == sum(batch.size for batch in lane.waiting)
        flying = [batch for batch, _ in self.answers.values()] + self.unsure
        assert self.box.flying_bytes == sum(batch.size for batch in flying)
        assert self.box.under_way == len(flying)
        assert self.box.buffered <= LIMIT + 300
        for lane in lanes:
            assert lane.flying == sum(batch.lane is lane for batch in flying)

    @invariant()
    def queues_got_their_events_in_order(self):
        for log in self.logs.values():
            first = list(dict.fromkeys(log))
            assert first == sorted(first)

    def teardown(self):
        """With a broker that works, all comes to rest and everybody has heard."""
        if self.closes:
            self.close()
            self.every_event_is_known()
        else:
            if not self.up:
                self.link_up()
            self.full.clear()
            for _ in range(10):
                while self.box.to_declare:
                    self.declare(True)
                self.take()
                self._answer_all()
                while self.box.to_ask:
                    self.begin_to_ask()
                while self.to_ask:
                    self.told_why(False)
                self.ask()
                while self.asked:
                    self.answered()
                self.every_event_is_known()
                self.sums_are_right()
                self.queues_got_their_events_in_order()
        assert self.box.idle
        assert (self.box.buffered, self.box.under_way) == (0, 0)
        assert not self.box.takable
        assert all(ticket.done for ticket in self.tickets)
        assert list(self.box) == [] or not any(batch.parts for batch in self.box)


TestOutbox = Machine.TestCase
TestOutbox.settings = SETTINGS
