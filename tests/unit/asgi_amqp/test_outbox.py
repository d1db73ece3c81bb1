"""Outbox: what is accepted leaves, in order, and is settled once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_amqp.codec import encode_batch
from asgi_amqp.exceptions import BrokerUnavailable, ChannelFull, MessageTooLarge, Unroutable
from asgi_amqp.lanes import BATCH_KEYS, Deadlines
from asgi_amqp.metrics import Stats
from asgi_amqp.outbox import (
    BATCH_BYTES,
    BURST,
    GATHERED,
    PLAIN,
    WATCHED,
    WINDOW,
    Batch,
    Lane,
    Outbox,
    Ticket,
)
from asgi_amqp.topology import Destination, Queue

GROUPS = [Destination(f"g.{number}", b"T%d" % number) for number in range(100)]
PROCESS = Destination("p.a", b"P")


def queue(name, dead=False, most=0):
    """The destination of a normal channel, or of a durable one."""
    key = ("d." if dead else "c.") + name
    declared = Queue(f"asgi.{key}", key, {}, f"asgi.{key}.dead" if dead else "")
    return Destination(key, b"Q", key, True, most, declared)


CLASSIC, DURABLE = queue("q"), queue("d", dead=True)


class Waiting(Ticket):
    """A ticket that notes how often it ended."""

    __slots__ = ("ends",)

    def __init__(self, left=1, deadline=1e9):
        super().__init__(left, deadline)
        self.ends = []

    def finish(self):
        self.ends.append(self.error)


class Sending:
    """An outbox, with the declarations that its shell would make, and short words for the rest."""

    def __init__(self, limit=10_000, max_message=2 << 20, expiry=60.0):
        self.stats = Stats()
        self.box = Outbox(self.stats, limit, max_message, expiry)
        self.now = 0.0

    def add(self, destination, data=b"x", ticket=True, watched=True):
        ticket = Waiting() if ticket is True else ticket
        self.box.accept(destination, data, ticket, self.now, watched=watched)
        return ticket

    @property
    def count(self):
        """Events that wait."""
        return sum(len(batch.parts) for lane in self.box._lanes.values() for batch in lane.waiting)

    def declare(self):
        for each in self.box.to_declare:
            self.box.declared(each, self.now)
        self.box.to_declare.clear()

    def take(self):
        self.declare()
        return self.box.take(self.now)

    def confirm(self, tag, multiple=False, ok=True):
        self.box.confirm(tag, multiple, ok, self.now)

    def give_back(self, batch):
        """As the broker does with what it cannot route: a return, then a confirm."""
        self.box.returned(batch.identity, confirmed=batch.confirmed)
        self.confirm(batch.tag)


@pytest.fixture
def sending():
    return Sending()


def parts(batches):
    return [part for batch in batches for part in batch.parts]


# Tickets


def test_a_ticket_for_many_is_done_when_all_are_and_keeps_the_first_error():
    ticket = Waiting(3)
    ticket.settle()
    ticket.settle(ValueError("first"))
    assert (ticket.done, ticket.ends) == (False, [])
    ticket.settle(ValueError("second"))
    assert ticket.done
    ticket.give_up(TimeoutError())
    ticket.settle()
    assert [str(error) for error in ticket.ends] == ["first"]


def test_a_ticket_that_gave_up_ends_once():
    ticket = Waiting(2)
    ticket.give_up(TimeoutError("late"))
    ticket.give_up(TimeoutError("later"))
    ticket.settle()
    ticket.settle()
    assert [str(error) for error in ticket.ends] == ["late"]
    assert str(ticket.error) == "late"


def test_a_ticket_for_nothing_is_done():
    assert Ticket(0, 1.0).done
    assert not Ticket(1, 1.0).done


def test_a_plain_ticket_has_nobody_to_wake():
    Ticket(1, 1.0).settle()


# Batches


@given(st.lists(st.tuples(st.sampled_from(GROUPS[:5]), st.binary(min_size=1, max_size=40)), max_size=60))
def test_everything_leaves_once_in_order(events):
    sending = Sending()
    for destination, data in events:
        sending.add(destination, data, ticket=None)
    assert sending.count == len(events)
    assert sending.box.size == sum(len(destination.target + data) for destination, data in events)
    batches = sending.take()
    assert parts(batches) == [destination.target + data for destination, data in events]
    for batch in batches:
        assert {part[:2] for part in batch.parts} == {b"T" + key[2:].encode() for key in batch.keys}
        assert batch.size == sum(map(len, batch.parts))
    assert (sending.box.size, sending.count) == (0, 0)
    assert sending.stats.sent == len(events)
    assert sending.stats.batches_out == len(batches)


def test_events_of_one_turn_share_a_batch_up_to_its_bytes():
    sending = Sending(limit=1 << 30)
    half = bytes(BATCH_BYTES // 2 - 2)
    for _ in range(2):
        sending.add(GROUPS[0], half, ticket=None)
    sending.add(GROUPS[0], b"", ticket=None)
    assert [len(batch.parts) for batch in sending.take()] == [2, 1]


def test_one_event_larger_than_a_batch_travels_alone(sending):
    for data in (b"a", bytes(BATCH_BYTES + 1), b"c"):
        sending.add(GROUPS[0], data, ticket=None)
    assert [len(batch.parts) for batch in sending.take()] == [1, 1, 1]


def test_a_batch_has_at_most_so_many_destinations(sending):
    for destination in GROUPS[: BATCH_KEYS + 1]:
        sending.add(destination, ticket=None)
    sending.add(GROUPS[BATCH_KEYS], ticket=None)
    sending.add(GROUPS[BATCH_KEYS], ticket=None)
    assert [len(batch.keys) for batch in sending.take()] == [BATCH_KEYS, 1]


def test_one_more_event_for_a_destination_fits_where_no_other_does(sending):
    for destination in (*GROUPS[:BATCH_KEYS], GROUPS[0]):
        sending.add(destination, ticket=None)
    assert [len(batch.parts) for batch in sending.take()] == [BATCH_KEYS + 1]


def test_a_queue_has_batches_of_its_own_with_its_own_bound(sending):
    small = queue("s", most=3)
    for number in range(4):
        sending.add(small, b"%d" % number)
        sending.add(GROUPS[0], b"x", ticket=None)
    confirmed = [batch for batch in sending.take() if batch.confirmed]
    assert [batch.parts for batch in confirmed] == [[b"Q0", b"Q1", b"Q2"], [b"Q3"]]


def test_what_somebody_waits_for_does_not_share_a_batch_with_what_nobody_does(sending):
    for number in range(4):
        sending.add(GROUPS[0], b"%d" % number, Waiting() if number % 2 else None)
    batches = sending.take()
    assert [(batch.lane.name, batch.parts) for batch in batches] == [
        (PLAIN, [b"T00", b"T02"]),
        (WATCHED, [b"T01", b"T03"]),
    ]
    assert [(batch.confirmed, len(batch.tickets)) for batch in batches] == [(False, 0), (True, 2)]


def test_a_ticket_that_is_not_watched_is_settled_when_its_event_leaves(sending):
    ticket = sending.add(GROUPS[0], watched=False)
    sending.add(GROUPS[0], ticket=None)
    assert not ticket.ends
    (batch,) = sending.take()
    assert (batch.lane.name, ticket.ends) == (PLAIN, [None])


def test_what_is_taken_takes_no_more(sending):
    sending.add(GROUPS[0], b"1", ticket=None)
    (first,) = sending.take()
    sending.add(GROUPS[0], b"2", ticket=None)
    (second,) = sending.take()
    assert (first.parts, second.parts) == ([b"T01"], [b"T02"])
    assert first.number < second.number


def test_one_message_for_one_process_is_given_back_where_nobody_is(sending):
    def mandatory(*destinations, **options):
        for destination in destinations:
            sending.add(destination, **options)
        return [batch.mandatory for batch in sending.take()]

    assert mandatory(PROCESS, PROCESS, ticket=None) == [True]
    assert mandatory(PROCESS, GROUPS[0], ticket=None) == [False]
    assert mandatory(GROUPS[0], ticket=None) == [False]
    assert mandatory(PROCESS) == [True]
    assert mandatory(CLASSIC) == mandatory(DURABLE) == [True]


def test_the_identity_of_a_batch_is_its_tag_or_how_many_would_be_missing(sending):
    sending.add(PROCESS, ticket=None)
    sending.add(PROCESS, ticket=None)
    sending.add(CLASSIC)
    sending.add(DURABLE)
    assert [batch.identity for batch in sending.take()] == ["2", "1", "2"]


# Taking


def test_lanes_take_turns(sending):
    one, other = queue("1", most=1), queue("2", most=1)
    for destination in (one, one, one, other, other, GROUPS[0]):
        sending.add(destination, ticket=None if destination is GROUPS[0] else True)
    assert [batch.lane.name for batch in sending.take()] == ["plain", "c.1", "c.2", "c.1", "c.2", "c.1"]


def test_no_more_than_a_burst_is_taken_at_once():
    sending = Sending(limit=1 << 30)
    data = bytes(BATCH_BYTES - 2)
    for _ in range(12):
        sending.add(GROUPS[0], data, ticket=None)
    first = sending.take()
    assert len(first) == BURST // BATCH_BYTES + 1
    assert sending.box.takable
    assert len(sending.take()) == 12 - len(first)
    assert not sending.box.takable


@pytest.mark.parametrize("sizes", [(BURST // 2, BURST // 2), (BURST - 1, 10)])
def test_a_burst_ends_when_it_is_full(sizes):
    sending = Sending(limit=1 << 30)
    for size in (*sizes, BATCH_BYTES):
        sending.add(GROUPS[0], bytes(size - 2), ticket=None)
    assert tuple(batch.size for batch in sending.take()) == sizes


@pytest.mark.parametrize("destination", [GROUPS[0], queue("one", most=1)])
def test_a_lane_has_a_window(destination):
    sending = Sending(limit=1 << 30, max_message=BATCH_BYTES)
    data = bytes(BATCH_BYTES // 2 + 1)  # two do not fit into a batch
    for _ in range(WINDOW + 2):
        sending.add(destination, data, None if destination.queue is None else Waiting())
    taken = []
    while batches := sending.take():
        taken += batches
    assert len(taken) == sending.box.under_way == WINDOW
    assert not sending.box.takable
    if destination.queue is None:
        assert sending.box.ask()
        sending.box.answered()
    else:
        sending.confirm(1)
    assert sending.box.takable
    assert len(sending.take()) == (2 if destination.queue is None else 1)


def test_a_queue_that_withholds_its_confirms_holds_up_nobody_else():
    sending = Sending(limit=1 << 30)
    stuck, other = queue("stuck", dead=True, most=1), queue("other", dead=True)
    for _ in range(3 * WINDOW):
        sending.add(stuck)
    for _ in range(3):
        sending.take()
    ticket, plain = sending.add(other), sending.add(GROUPS[0], watched=False)
    batches = sending.take()
    assert {batch.lane.name for batch in batches} == {"d.other", PLAIN}
    sending.confirm(max(batch.tag for batch in batches))
    assert (ticket.ends, plain.ends) == ([None], [None])


def test_stuck_queues_leave_room_for_what_needs_no_confirm():
    sending = Sending(limit=1000)
    sending.add(DURABLE, bytes(749))
    assert not sending.box.full(DURABLE)
    sending.add(DURABLE, b"")
    assert sending.box.full(DURABLE)
    assert not sending.box.full(GROUPS[0])
    sending.take()
    assert sending.box.full(DURABLE)  # what is under way counts
    assert (sending.box.size, sending.box.flying_bytes, sending.box.buffered) == (0, 751, 751)
    sending.add(GROUPS[0], bytes(247), ticket=None)
    assert not sending.box.full(GROUPS[0])
    assert not sending.box.full(GROUPS[0], more=0)
    assert sending.box.full(GROUPS[0], more=1), "what is on its way here counts, too"
    sending.add(GROUPS[0], b"", ticket=None)
    assert sending.box.full(GROUPS[0])


def test_what_gathers_unconfirmed_makes_its_senders_wait_long_before_the_limit():
    sending = Sending(limit=1 << 30)
    sending.add(GROUPS[0], bytes(GATHERED - 2), ticket=None)
    assert not sending.box.crowded
    sending.add(GROUPS[0], b"", ticket=None)
    assert sending.box.crowded
    assert not sending.box.full(GROUPS[0])
    sending.take()
    assert not sending.box.crowded


# Confirms


def test_a_confirm_settles_its_batch(sending):
    tickets = [sending.add(CLASSIC), sending.add(CLASSIC)]
    sending.now = 1.0
    (batch,) = sending.take()
    assert not sending.box.idle
    sending.now = 1.003
    sending.confirm(batch.tag)
    assert [ticket.ends for ticket in tickets] == [[None], [None]]
    assert sending.stats.confirmed == 2
    assert sending.stats.latency_counts[2] == 1  # 1 to 2.5 ms are before it
    assert sending.stats.latency_sum == pytest.approx(0.003)
    assert (sending.box.idle, sending.box.buffered, sending.box.under_way) == (True, 0, 0)


def test_one_confirm_for_many_is_for_all_before_it_and_none_behind():
    sending = Sending()
    one = queue("1", most=1)
    tickets = [sending.add(one) for _ in range(4)]
    sending.take()
    sending.confirm(3, multiple=True)
    assert [ticket.ends for ticket in tickets] == [[None], [None], [None], []]
    sending.confirm(3, multiple=True)
    sending.confirm(4)
    assert tickets[3].ends == [None]


def test_a_confirm_alone_is_for_its_batch_alone():
    sending = Sending()
    one = queue("1", most=1)
    tickets = [sending.add(one) for _ in range(3)]
    sending.take()
    sending.confirm(2)
    sending.confirm(2)
    sending.confirm(77)
    assert [ticket.ends for ticket in tickets] == [[], [None], []]
    assert sending.box.under_way == 2


def test_the_broker_is_asked_once_for_what_left_without_confirms(sending):
    assert not sending.box.ask()
    sending.add(GROUPS[0], ticket=None)
    assert not sending.box.ask()
    sending.take()
    assert sending.box.ask()
    assert not sending.box.ask()
    sending.add(GROUPS[0], ticket=None)
    sending.add(GROUPS[0], ticket=None)
    sending.take()
    assert sending.box.ask()
    assert (sending.box.under_way, sending.box.buffered) == (2, 9)
    sending.box.answered()
    assert (sending.stats.confirmed, sending.box.under_way, sending.box.buffered) == (1, 1, 6)
    assert not sending.box.idle
    sending.box.answered()
    assert (sending.stats.confirmed, sending.box.under_way, sending.box.buffered) == (3, 0, 0)
    assert sending.box.idle
    sending.box.answered()  # nobody had asked
    assert not sending.box.ask()


# Returns and refusals


def test_what_a_process_that_is_gone_was_sent_is_counted(sending):
    sending.add(PROCESS, ticket=None)
    sending.add(PROCESS, ticket=None)
    (batch,) = sending.take()
    sending.box.returned(batch.identity, confirmed=False)
    assert sending.stats.lost == {"no_receiver": 2}


def test_who_waits_for_a_process_that_is_gone_hears_it_at_once(sending):
    ticket = sending.add(PROCESS)
    (batch,) = sending.take()
    sending.give_back(batch)
    assert isinstance(ticket.error, Unroutable)
    assert "p.a" in str(ticket.error)
    assert "process" in str(ticket.error)
    assert sending.stats.lost == {"no_receiver": 1}
    assert sending.box.idle


def test_a_confirmed_event_without_a_queue_hears_that_nothing_is_bound(sending):
    stream = Destination("s.x", b"S", "s.x", True)
    ticket = sending.add(stream)
    (batch,) = sending.take()
    sending.give_back(batch)
    assert isinstance(ticket.error, Unroutable)
    assert "deleted" in str(ticket.error)
    assert not sending.stats.lost


@pytest.mark.parametrize("identity", ["", "x", "-1", "99"])
def test_a_return_of_something_else_changes_nothing(sending, identity):
    ticket = sending.add(CLASSIC)
    (batch,) = sending.take()
    sending.box.returned(identity, confirmed=True)
    sending.confirm(batch.tag)
    assert ticket.ends == [None]


def test_a_full_classic_queue_is_channel_full(sending):
    ticket = sending.add(CLASSIC)
    (batch,) = sending.take()
    sending.confirm(batch.tag, ok=False)
    assert isinstance(ticket.error, ChannelFull)
    assert "'q'" in str(ticket.error)
    assert sending.stats.refused == 1
    assert (sending.stats.confirmed, sending.stats.latency_sum) == (0, 0.0)
    assert sending.box.idle


def test_a_quorum_queue_that_refuses_is_asked_why(sending):
    first, second = sending.add(DURABLE), None
    sending.now = 5.0
    (batch,) = sending.take()
    sending.now = 6.0
    second = sending.add(DURABLE)
    (other,) = sending.take()
    sending.confirm(batch.tag, ok=False)
    sending.confirm(other.tag, ok=False)
    assert sending.box.to_ask == [DURABLE.queue]
    assert not sending.box.idle
    assert sending.box.refused_since(DURABLE.queue) == (5.0, 5.0)
    assert not first.ends
    sending.box.to_ask.clear()
    sending.box.refused(DURABLE.queue, ChannelFull("full"))
    assert [str(ticket.error) for ticket in (first, second)] == ["full", "full"]
    sending.add(DURABLE)
    assert not sending.box.to_declare


def test_a_queue_that_refused_because_it_is_gone_is_declared_before_the_next_event(sending):
    ticket = sending.add(DURABLE)
    (batch,) = sending.take()
    sending.confirm(batch.tag, ok=False)
    sending.box.to_ask.clear()
    sending.box.refused(DURABLE.queue, BrokerUnavailable("gone"), gone=True)
    assert len(ticket.ends) == 1
    sending.add(DURABLE)
    assert sending.box.to_declare == [DURABLE.queue]
    assert sending.box.take(0.0) == []


# Declarations


def test_nothing_leaves_before_its_queue_is_declared_and_all_gathers(sending):
    sending.add(DURABLE, b"1")
    sending.add(DURABLE, b"2")
    sending.add(GROUPS[0], ticket=None)
    assert sending.box.to_declare == [DURABLE.queue]
    assert [batch.lane.name for batch in sending.box.take(0.0)] == [PLAIN]
    assert (sending.count, sending.box.size) == (2, 4)
    assert [batch.parts for batch in sending.take()] == [[b"Q1", b"Q2"]]


def test_a_queue_is_declared_again_after_the_expiry(sending):
    sending.add(DURABLE)
    sending.take()
    sending.now = 60.0
    sending.add(DURABLE)
    assert not sending.box.to_declare
    sending.now = 60.1
    sending.add(DURABLE)
    sending.add(DURABLE)
    assert sending.box.to_declare == [DURABLE.queue]


def test_a_queue_that_cannot_be_declared_fails_what_waits_for_it(sending):
    tickets = [sending.add(queue("q", most=1)) for _ in range(2)]
    sending.box.to_declare.clear()
    sending.box.undeclared(CLASSIC.queue, BrokerUnavailable("otherwise"))
    assert [str(ticket.error) for ticket in tickets] == ["otherwise"] * 2
    assert (sending.count, sending.box.size, sending.box.idle) == (0, 0, True)
    sending.add(CLASSIC)
    assert sending.box.to_declare == [CLASSIC.queue]


def test_a_queue_that_could_not_be_declared_again_is_declared_before_the_next_event(sending):
    sending.add(CLASSIC)
    (batch,) = sending.take()
    sending.give_back(batch)  # it was deleted
    sending.box.to_declare.clear()
    sending.box.undeclared(CLASSIC.queue, BrokerUnavailable("otherwise"))
    sending.add(CLASSIC)
    assert sending.box.to_declare == [CLASSIC.queue]
    assert sending.box.take(0.0) == []


def test_a_queue_that_nobody_sends_to_any_more_may_be_declared_or_not(sending):
    sending.box.declared(CLASSIC.queue, 0.0)
    sending.box.undeclared(CLASSIC.queue, BrokerUnavailable(""))
    assert sending.box.idle


def test_what_a_deleted_queue_gave_back_leaves_again_before_what_is_younger(sending):
    one = queue("1", most=1)
    tickets = [sending.add(one, b"%d" % number) for number in range(3)]
    first, second, third = sending.take()
    tickets.append(sending.add(one, b"3"))
    sending.give_back(first)
    assert sending.box.to_declare == [one.queue]
    assert sending.box.take(0.0) == []  # not before it is there again
    sending.confirm(second.tag)  # it was there again for this one
    sending.declare()
    assert not sending.box.takable
    assert sending.take() == []  # the third may come back, too
    sending.give_back(third)
    again = sending.take()
    assert parts(again) == [b"Q0", b"Q2", b"Q3"]
    assert [len(ticket.ends) for ticket in tickets] == [0, 1, 0, 0]
    for batch in again:
        sending.confirm(batch.tag)
    assert [ticket.ends for ticket in tickets] == [[None]] * 4


def test_what_was_about_to_leave_waits_for_what_a_deleted_queue_may_still_give_back(sending):
    one = queue("1", most=1)
    for number in range(2):
        sending.add(one, b"%d" % number)
    first, second = sending.take()
    sending.add(one, b"2")
    sending.give_back(first)
    assert sending.take() == []  # it is declared, and the second is still under way
    sending.give_back(second)
    assert parts(sending.take()) == [b"Q0", b"Q1", b"Q2"]


def test_a_queue_whose_declaration_is_old_is_declared_before_what_waits_leaves(sending):
    sending.add(DURABLE, b"1")
    for batch in sending.take():
        sending.confirm(batch.tag)
    sending.add(DURABLE, b"2")
    sending.now = 60.1
    sending.add(DURABLE, b"3")
    assert sending.box.to_declare == [DURABLE.queue]
    assert sending.box.take(sending.now) == []
    sending.box.undeclared(DURABLE.queue, BrokerUnavailable("no"))
    assert sending.box.take(sending.now) == []


# Links that are lost


def test_confirmed_events_in_flight_leave_again_in_order(sending):
    one = queue("1", most=1)
    tickets = [sending.add(one, b"%d" % number) for number in range(4)]
    batches = sending.take()
    sending.confirm(batches[1].tag)
    sending.add(one, b"4")
    sending.box.lost("cut")
    assert (sending.count, sending.box.size, sending.box.buffered) == (4, 8, 8)
    assert not sending.box.takable
    assert [len(ticket.ends) for ticket in tickets] == [0, 1, 0, 0]
    sending.box.up(0.0)
    again = sending.take()
    assert parts(again) == [b"Q0", b"Q2", b"Q3", b"Q4"]
    assert [batch.tag for batch in again] == [1, 2, 3, 4]  # a new channel counts anew
    assert not sending.stats.lost


def test_of_unconfirmed_events_in_flight_nobody_knows(sending):
    sending.add(GROUPS[0], ticket=None)
    sending.add(GROUPS[0], ticket=None)
    watched = sending.add(PROCESS)
    sending.take()
    sending.box.ask()
    sending.box.lost("cut by a test")
    assert sending.stats.lost == {"in_flight": 3}
    assert isinstance(watched.error, BrokerUnavailable)
    assert "cut by a test" in str(watched.error)
    assert (sending.box.idle, sending.box.buffered, sending.box.under_way) == (True, 0, 0)
    sending.box.up(0.0)
    assert sending.take() == []
    sending.box.answered()  # of the link before
    sending.add(GROUPS[0], ticket=None)
    assert len(sending.take()) == 1
    assert sending.box.ask()


def test_a_link_that_is_lost_with_nothing_under_way_costs_nothing(sending):
    sending.add(GROUPS[0], ticket=None)
    sending.box.lost("cut")
    assert not sending.stats.lost
    assert not sending.box.takable
    sending.box.up(1.0)
    assert len(sending.take()) == 1


def test_a_window_that_was_full_is_empty_on_the_next_link():
    sending = Sending(limit=1 << 30)
    one = queue("1", most=1)
    for _ in range(WINDOW + 1):
        sending.add(one)
    assert len(sending.take()) == WINDOW
    sending.box.lost("cut")
    sending.box.up(0.0)
    assert len(sending.take()) == WINDOW


def test_what_was_withdrawn_in_flight_does_not_leave_again(sending):
    tickets = [sending.add(DURABLE, b"%d" % number) for number in range(3)]
    sending.take()
    tickets[1].give_up(TimeoutError())
    sending.box.lost("cut")
    assert (sending.count, sending.box.size) == (2, 4)
    sending.box.up(0.0)
    (batch,) = sending.take()
    assert batch.parts == [b"Q0", b"Q2"]
    sending.confirm(batch.tag)
    assert [ticket.error is None for ticket in tickets] == [True, False, True]


def test_a_batch_of_which_all_was_withdrawn_does_not_leave_again(sending):
    ticket = sending.add(DURABLE)
    sending.take()
    ticket.give_up(TimeoutError())
    sending.box.lost("cut")
    sending.box.up(0.0)
    assert sending.take() == []
    assert sending.box.idle


def test_a_return_of_the_link_before_is_forgotten(sending):
    ticket = sending.add(DURABLE)
    (batch,) = sending.take()
    sending.box.returned(batch.identity, confirmed=True)
    sending.box.lost("cut")
    sending.box.up(0.0)
    (batch,) = sending.take()
    sending.confirm(batch.tag)
    assert ticket.ends == [None]


def test_what_has_waited_for_longer_than_the_expiry_does_not_leave(sending):
    old = sending.add(GROUPS[0], b"old", watched=False)
    sending.add(GROUPS[1], b"old", ticket=None)
    kept = sending.add(DURABLE)
    sending.now = 60.5
    sending.box.up(sending.now)
    assert sending.stats.lost == {"expired": 2}
    assert "expired" in str(old.error)
    assert [batch.lane.name for batch in sending.take()] == [DURABLE.lane]
    assert not kept.ends


def test_what_has_waited_for_the_expiry_itself_leaves(sending):
    sending.add(GROUPS[0], ticket=None)
    sending.box.up(60.0)
    assert len(sending.take()) == 1
    assert not sending.stats.lost


# Deadlines


def test_who_has_waited_too_long_hears_why(sending):
    late, early = Waiting(1, 5.0), Waiting(1, 4.0)
    sending.add(DURABLE, b"1", late)
    sending.add(DURABLE, b"2", early)
    assert sending.box.tick(4.0, "no link")
    assert not early.ends
    assert sending.box.tick(4.5, "the broker is away")
    assert isinstance(early.error, BrokerUnavailable)
    assert "the broker is away" in str(early.error)
    assert (sending.count, sending.box.size) == (1, 2)
    assert [batch.parts for batch in sending.take()] == [[b"Q1"]]
    assert not sending.box.tick(5.1, "it is slow")  # under way counts, too
    assert "it is slow" in str(late.error)


def test_a_tick_looks_at_nobody_whose_time_has_not_come(sending):
    looks = []

    class Looked(Waiting):
        @property
        def deadline(self):
            looks.append(self)
            return 5.0

        @deadline.setter
        def deadline(self, _):
            """As it is."""

    tickets = [sending.add(queue(str(number)), ticket=Looked(1, 5.0)) for number in range(20)]
    for number in range(20):
        sending.box.declared(queue(str(number)).queue, 0.0)
    taken = sending.take()[:5]
    for batch in taken:
        sending.confirm(batch.tag)
    looks.clear()
    assert sending.box.tick(4.9, "")
    assert not looks
    assert not sending.box.tick(5.1, "slow")
    assert set(looks) == {ticket for ticket in tickets if ticket.error}
    assert len(set(looks)) == 15


def test_a_tick_looks_for_those_who_have_gone_once_for_each_time_that_somebody_has(sending):
    looks = []

    class Looked(Waiting):
        @property
        def done(self):
            looks.append(self)
            return False

        @done.setter
        def done(self, _):
            """It waits."""

    sending.add(DURABLE, ticket=Looked())
    for gone in (False, True, False):
        sending.box.cancelled |= gone
        looks.clear()
        assert sending.box.tick(0.0, "")
        assert bool(looks) == gone


def test_nobody_waits_for_a_batch_that_has_ended_whatever_came_into_it_later_and_sooner(sending):
    for deadline in (5.0, 4.0):
        sending.add(DURABLE, ticket=Waiting(1, deadline))
    (batch,) = sending.take()
    assert sending.box.tick(0.0, "")
    sending.confirm(batch.tag)
    assert not sending.box.tick(0.0, "")


def test_a_tick_looks_at_tenths_of_a_second_and_not_at_each_batch():
    deadlines = Deadlines()
    for number in range(1000):
        deadlines.note(Batch(Lane(PLAIN, GROUPS[0]), number, 0.0), 5.0 + number / 1000)
    assert len(deadlines._batches) == 10


def test_who_waits_hears_that_there_will_be_no_link_and_takes_up_no_room(sending):
    ticket = sending.add(DURABLE, b"1")
    sending.add(GROUPS[0], b"2", ticket=None)
    sending.box.fail(BrokerUnavailable("wrong password"))
    assert str(ticket.error) == "wrong password"
    assert sending.box.size == len(GROUPS[0].target) + 1
    assert not sending.box.tick(0.0, "")


def test_who_gave_up_takes_up_no_room_when_its_event_had_left_and_waits_again(sending):
    ticket = sending.add(DURABLE)
    sending.take()
    sending.box.lost("cut")
    assert sending.box.size == 2
    ticket.give_up(RuntimeError("cancelled"))
    sending.box.cancelled = True
    sending.box.tick(0.0, "")
    assert (sending.box.size, sending.count) == (0, 0)


def test_who_waits_for_an_event_of_a_batch_that_was_divided_hears_it_at_its_deadline(sending):
    tickets = [sending.add(DURABLE, bytes(600), Waiting(1, deadline)) for deadline in (5.0, 7.0)]
    sending.box.shrink(1000)
    assert sending.box.tick(6.0, "slow")
    assert [len(ticket.ends) for ticket in tickets] == [1, 0]
    assert not sending.box.tick(8.0, "slow")
    assert [len(ticket.ends) for ticket in tickets] == [1, 1]


def test_nobody_waits_for_a_batch_that_was_divided_when_its_events_have_been_confirmed(sending):
    for _ in range(2):
        sending.add(DURABLE, bytes(600))
    sending.box.shrink(1000)
    for batch in sending.take():
        assert sending.box.tick(0.0, "")
        sending.confirm(batch.tag)
    assert not sending.box.tick(0.0, "")


def test_what_nobody_waits_for_needs_no_tick(sending):
    sending.add(GROUPS[0], ticket=None)
    assert not sending.box.tick(1e9, "")
    assert sending.count == 1


def test_what_is_withdrawn_does_not_leave(sending):
    tickets = [sending.add(DURABLE, b"%d" % number) for number in range(3)]
    tickets[1].give_up(RuntimeError("cancelled"))
    (batch,) = sending.take()
    assert (batch.parts, batch.size) == ([b"Q0", b"Q2"], 4)
    assert (sending.box.size, sending.count, sending.box.flying_bytes) == (0, 0, 4)
    sending.confirm(batch.tag)
    assert [len(ticket.ends) for ticket in tickets] == [1, 1, 1]
    assert sending.box.buffered == 0


def test_withdrawn_events_leave_those_without_a_ticket(sending):
    cancelled = sending.add(GROUPS[0], b"a", watched=False)
    sending.add(GROUPS[0], b"b", ticket=None)
    cancelled.give_up(RuntimeError("cancelled"))
    assert [batch.parts for batch in sending.take()] == [[b"T0b"]]


def test_events_that_follow_withdrawn_ones_keep_their_tickets(sending):
    first, second = sending.add(DURABLE, b"1"), sending.add(DURABLE, b"2")
    first.give_up(RuntimeError("cancelled"))
    sending.box.cancelled = True
    sending.box.tick(0.0, "")
    assert (sending.count, sending.box.size) == (1, 2)
    third = sending.add(DURABLE, b"3")
    (batch,) = sending.take()
    assert batch.parts == [b"Q2", b"Q3"]
    sending.confirm(batch.tag)
    assert (second.ends, third.ends) == ([None], [None])


@pytest.mark.parametrize(
    "destination", [Destination("s.log.ep", b"", "s.log.ep", confirmed=True, most=4096), GROUPS[0]]
)
def test_what_has_no_queue_is_not_said_to_be_full_when_it_is_refused(sending, destination):
    ticket = sending.add(destination)
    (batch,) = sending.take()
    sending.confirm(batch.tag, ok=False)
    assert isinstance(ticket.error, BrokerUnavailable)
    assert destination.key in str(ticket.error)


def test_a_refused_batch_is_given_up_at_its_deadline(sending):
    ticket = sending.add(DURABLE, ticket=Waiting(1, 1.0))
    (batch,) = sending.take()
    sending.confirm(batch.tag, ok=False)
    assert sending.box.tick(0.5, "")
    assert not sending.box.tick(1.5, "")
    assert isinstance(ticket.error, BrokerUnavailable)


def test_lanes_of_queues_that_nobody_uses_are_forgotten(sending):
    sending.now = 100.0
    for number in range(20):
        sending.add(queue(str(number), dead=True))
    for batch in sending.take():
        sending.confirm(batch.tag)
    assert len(sending.box._lanes) == 21
    sending.box.tick(160.0, "")
    assert len(sending.box._lanes) == 21
    sending.box.tick(160.1, "")
    assert list(sending.box._lanes) == [PLAIN]


def test_a_lane_that_has_anything_to_remember_is_kept():
    def lanes_after(prepare):
        sending = Sending()
        sending.add(DURABLE)
        prepare(sending)
        sending.box.tick(1e6, "")
        return DURABLE.lane in sending.box._lanes

    def refused(sending):
        (batch,) = sending.take()
        sending.confirm(batch.tag, ok=False)

    def done(sending):
        (batch,) = sending.take()
        sending.confirm(batch.tag)

    def given_back(sending):
        (batch,) = sending.take()
        batch.tickets[0].give_up(RuntimeError("cancelled"))
        sending.give_back(batch)
        assert not sending.count

    assert lanes_after(given_back)  # held, with nothing that waits
    assert lanes_after(lambda sending: None)  # held
    assert lanes_after(Sending.declare)  # waiting
    assert lanes_after(Sending.take)  # under way
    assert lanes_after(refused)
    assert not lanes_after(done)


def test_the_lane_of_those_who_wait_is_there_while_somebody_waits(sending):
    sending.add(PROCESS)
    (batch,) = sending.take()
    assert WATCHED in sending.box._lanes
    sending.confirm(batch.tag)
    assert WATCHED not in sending.box._lanes


# Sizes


def test_a_message_that_is_too_large_is_refused_before_anything_changes():
    sending = Sending(max_message=1000)
    with pytest.raises(MessageTooLarge, match=r"message of 1002 bytes for 'd': at most 995 "):
        sending.add(DURABLE, bytes(1001))
    assert (sending.count, sending.box.size, sending.stats.sent) == (0, 0, 0)
    assert sending.box.to_declare == []


def test_batches_are_no_larger_than_the_broker_takes():
    sending = Sending(max_message=1000)
    for _ in range(10):
        sending.add(GROUPS[0], bytes(298), ticket=None)
    assert [len(batch.parts) for batch in sending.take()] == [3, 3, 3, 1]


def test_what_the_broker_does_not_take_fails_alone_and_the_rest_leaves_smaller(sending):
    small, large, last = sending.add(DURABLE, bytes(600)), sending.add(DURABLE, bytes(1200)), None
    last = sending.add(DURABLE, bytes(600))
    sending.add(GROUPS[0], bytes(1200), ticket=None)
    sending.take()
    sending.box.lost("too large")
    sending.box.shrink(1000)
    assert isinstance(large.error, MessageTooLarge)
    assert "1000" in str(large.error)
    assert (sending.count, sending.box.size) == (2, 1202)
    sending.box.up(0.0)
    batches = sending.take()
    assert [len(batch.parts) for batch in batches] == [1, 1]
    for batch in batches:
        assert (batch.size, list(batch.keys)) == (601, [DURABLE.key])
        sending.confirm(batch.tag)
    assert (small.ends, last.ends) == ([None], [None])
    with pytest.raises(MessageTooLarge):
        sending.add(DURABLE, bytes(1000))
    assert [len(batch.parts) for batch in sending.take()] == []


def test_what_is_too_large_and_nobody_waits_for_is_counted(sending):
    sending.add(GROUPS[0], bytes(1200), ticket=None)
    sending.add(GROUPS[0], bytes(10), ticket=None)
    sending.box.shrink(1000)
    assert sending.stats.lost == {"too_large": 1}
    assert (sending.count, sending.box.size) == (1, 12)
    assert [len(batch.parts) for batch in sending.take()] == [1]


def test_a_shrink_leaves_what_is_small_enough_together(sending):
    for _ in range(3):
        sending.add(DURABLE, bytes(10))
    sending.box.shrink(1000)
    sending.add(DURABLE, bytes(10))
    assert [len(batch.parts) for batch in sending.take()] == [4]


def test_a_shrink_divides_no_batch_that_is_just_small_enough(sending):
    for size in (499, 494):
        sending.add(DURABLE, bytes(size))
    sending.box.shrink(1000)
    assert [(len(batch.parts), batch.size) for batch in sending.take()] == [(2, sending.box.batch_bytes)]


def test_a_limit_that_is_larger_than_ours_changes_nothing(sending):
    sending.box.shrink(1 << 30)
    with pytest.raises(MessageTooLarge):
        sending.add(DURABLE, bytes(2 << 20))


# The end


def test_a_close_settles_everything():
    sending = Sending()
    one, dead = queue("1", most=1), queue("dead", dead=True)
    refused = sending.add(dead)
    (batch,) = sending.take()
    sending.confirm(batch.tag, ok=False)
    under_way = sending.add(one)
    sending.add(GROUPS[0], ticket=None)
    watched = sending.add(PROCESS)
    sending.take()
    waiting, held = sending.add(one), sending.add(queue("held"))
    for _ in range(2):
        sending.add(GROUPS[0], ticket=None)
    sending.box.close(BrokerUnavailable("closed"))
    for ticket in (refused, under_way, watched, waiting, held):
        assert [str(error) for error in ticket.ends] == ["closed"]
    assert sending.stats.lost["unsent"] == 2
    assert sending.stats.lost["in_flight"] == 2
    assert (sending.count, sending.box.size, sending.box.buffered) == (0, 0, 0)
    assert not sending.box.takable
    assert list(sending.box) == []


def test_nobody_waits_for_room_after_a_close():
    sending = Sending(limit=1 << 30)
    sending.add(GROUPS[0], bytes(GATHERED), ticket=None)
    assert sending.box.crowded
    sending.box.close(BrokerUnavailable("closed"))
    assert not sending.box.crowded


def test_a_close_with_nothing_to_lose_says_nothing(sending):
    sending.add(DURABLE)
    sending.box.close(BrokerUnavailable("closed"))
    assert not sending.stats.lost


def test_all_batches_that_are_not_settled_can_be_seen(sending):
    one, dead = queue("1", most=1), queue("dead", dead=True)
    sending.add(dead, b"refused")
    (batch,) = sending.take()
    sending.confirm(batch.tag, ok=False)
    sending.add(one, b"under way")
    sending.add(GROUPS[0], b"gone", ticket=None)
    sending.take()
    sending.add(one, b"waiting")
    assert sorted(parts(sending.box)) == [b"", b"Qunder way", b"Qwaiting"]


def test_a_batch_can_be_made_without_an_outbox():
    batch = Batch(Lane(PLAIN, GROUPS[0]), 1, 0.0)
    assert (batch.confirmed, batch.identity, batch.size) == (False, "0", 0)


# Faults


def test_batches_that_were_divided_keep_their_order_when_they_come_back(sending):
    tickets = [sending.add(DURABLE, b"%d" % number + bytes(399)) for number in range(4)]
    sending.box.shrink(1000)
    assert [part[1:2] for part in parts(sending.take())] == [b"0", b"1", b"2", b"3"]
    sending.add(DURABLE, b"4")
    sending.box.lost("cut")
    sending.box.up(0.0)
    again = sending.take()
    assert [part[1:2] for part in parts(again)] == [b"0", b"1", b"2", b"3", b"4"]
    for batch in again:
        sending.confirm(batch.tag)
    assert [ticket.ends for ticket in tickets] == [[None]] * 4


@pytest.mark.parametrize("shrunk", [False, True])
def test_no_body_is_larger_than_the_broker_takes(shrunk):
    """One that is larger by a byte costs the connection, again and again: it leaves anew on the next."""
    sending = Sending(max_message=2000 if shrunk else 1000)
    whole, most = [], 1000 - len(encode_batch([])) - 1
    if shrunk:
        tickets = [sending.add(DURABLE, bytes(size)) for size in (most, most + 1)]
        sending.take()
        sending.box.lost("the message was larger than max size 1000")
        sending.box.shrink(1000)
        sending.box.up(0.0)
        assert [type(ticket.error) for ticket in tickets] == [type(None), MessageTooLarge]
        whole += sending.take()
    with pytest.raises(MessageTooLarge):
        sending.add(DURABLE, bytes(most + 1))
    for size in (most, 500, 491, 500, 493):
        sending.add(DURABLE, bytes(size))
    whole += sending.take()
    assert max(len(encode_batch(batch.parts)) for batch in whole) == 1000


def test_each_who_asks_a_process_that_is_gone_hears_it_whoever_else_is_asked_in_this_turn(sending):
    """A message for several is given back only when none of them is there."""
    other = Destination("p.b", b"R")
    gone, there = sending.add(PROCESS), sending.add(other)
    batches = sending.take()
    assert [(list(batch.keys), batch.mandatory) for batch in batches] == [(["p.a"], True), (["p.b"], True)]
    sending.give_back(batches[0])
    sending.confirm(batches[1].tag)
    assert isinstance(gone.error, Unroutable)
    assert there.ends == [None]


def test_a_young_event_does_not_expire_with_an_old_one(sending):
    """While there is no link all that is sent gathers: for minutes, where little is sent."""
    for second in range(0, 91, 10):
        sending.now = float(second)
        sending.add(GROUPS[0], b"%d" % second, ticket=None)
    sending.box.up(sending.now)
    left = [int(part[2:]) for part in parts(sending.take())]
    assert left == [30, 40, 50, 60, 70, 80, 90]
    assert sending.stats.lost == {"expired": 3}


def test_events_of_a_tenth_of_the_expiry_share_a_batch_and_its_end(sending):
    for second in (100.0, 106.0, 106.1):
        sending.now = second
        sending.add(GROUPS[0], ticket=None)
    assert [len(batch.parts) for batch in sending.take()] == [2, 1]


def test_an_outbox_is_not_idle_while_the_broker_is_asked_why_it_refused(sending):
    sending.add(DURABLE)
    (batch,) = sending.take()
    sending.confirm(batch.tag, ok=False)
    sending.box.to_ask.clear()  # somebody asks
    assert not sending.box.idle
    sending.box.refused(DURABLE.queue, ChannelFull("full"))
    assert sending.box.idle


def test_a_second_answer_why_a_queue_refused_finds_nothing_to_say(sending):
    sending.add(DURABLE)
    (batch,) = sending.take()
    sending.confirm(batch.tag, ok=False)
    sending.box.refused(DURABLE.queue, ChannelFull("full"))
    sending.box.tick(1e6, "")
    assert DURABLE.lane not in sending.box._lanes
    sending.box.refused(DURABLE.queue, ChannelFull("full"))


def test_a_queue_that_refuses_much_is_asked_once_at_a_time_and_costs_no_bytes(sending):
    tickets = []
    for _ in range(3):
        tickets.append(sending.add(DURABLE, bytes(1000)))
        (batch,) = sending.take()
        sending.confirm(batch.tag, ok=False)
        assert sending.box.to_ask == ([DURABLE.queue] if len(tickets) == 1 else [])
        sending.box.to_ask.clear()  # somebody asks
    assert sum(len(part) for batch in sending.box for part in batch.parts) == 0
    sending.box.refused(DURABLE.queue, ChannelFull("full"))
    assert [len(ticket.ends) for ticket in tickets] == [1, 1, 1]
    sending.add(DURABLE)
    (batch,) = sending.take()
    sending.confirm(batch.tag, ok=False)
    assert sending.box.to_ask == [DURABLE.queue]


def test_a_question_of_the_link_before_takes_no_answer_from_the_next(sending):
    sending.add(GROUPS[0], ticket=None)
    sending.take()
    assert sending.box.ask()
    sending.box.lost("cut")
    sending.box.up(0.0)
    sending.add(GROUPS[0], ticket=None)
    sending.take()
    assert sending.box.ask()
    sending.box.answered()
    assert (sending.box.under_way, sending.box.idle) == (0, True)
