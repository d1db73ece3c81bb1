from hypothesis import given
from hypothesis import strategies as st

from asgi_amqp.batcher import Batcher, Ticket
from asgi_amqp.topology import Destination, Queue

GROUPS = [Destination(f"g.{n}", b"T%d" % n) for n in range(5)]
QUEUE = Queue("q", "d.q", {})
DURABLE = Destination("d.q", b"D", "d.q", True, 3, QUEUE)


def drain(batcher):
    batches = []
    while (batch := batcher.take()) is not None:
        batches.append(batch)
    return batches


@given(st.lists(st.tuples(st.sampled_from(GROUPS), st.binary(min_size=1, max_size=40)), max_size=60))
def test_everything_leaves_once_in_order_within_the_bounds(events):
    batcher = Batcher(lambda: 0.0, max_bytes=100, max_keys=3)
    for destination, data in events:
        batcher.add(destination, data)
    assert batcher.count == len(events)
    assert batcher.size == sum(len(destination.target + data) for destination, data in events)
    batches = drain(batcher)
    assert [part for batch in batches for part in batch.parts] == [d.target + data for d, data in events]
    assert all(batch.size <= 100 and len(batch.keys) <= 3 for batch in batches)
    for batch in batches:
        assert {part[:2] for part in batch.parts} == {b"T" + key[2:].encode() for key in batch.keys}
    assert (batcher.size, batcher.count, len(batcher)) == (0, 0, 0)


def test_one_event_larger_than_a_batch_travels_alone():
    batcher = Batcher(lambda: 0.0, max_bytes=10)
    for data in (b"a", b"b" * 50, b"c"):
        batcher.add(GROUPS[0], data)
    assert [batch.count for batch in drain(batcher)] == [1, 1, 1]


def test_a_confirmed_lane_has_batches_of_its_own_and_its_own_bound():
    batcher = Batcher(lambda: 0.0)
    for number in range(4):
        batcher.add(DURABLE, b"%d" % number, Ticket(1, 9.0))
        batcher.add(GROUPS[0], b"x")
    confirmed = [batch for batch in drain(batcher) if batch.confirmed]
    assert [batch.parts for batch in confirmed] == [[b"D0", b"D1", b"D2"], [b"D3"]]


def test_what_somebody_waits_for_does_not_share_a_batch_with_what_nobody_does():
    batcher = Batcher(lambda: 0.0)
    for number in range(4):
        batcher.add(GROUPS[number], b"%d" % number, Ticket(1, 9.0) if number % 2 else None)
    batches = drain(batcher)
    assert [batch.parts for batch in batches] == [[b"T00", b"T22"], [b"T11", b"T33"]]
    assert [(bool(batch.lane), len(batch.tickets)) for batch in batches] == [(False, 0), (True, 2)]


def test_what_is_withdrawn_does_not_leave():
    batcher = Batcher(lambda: 0.0)
    tickets = [Ticket(1, 9.0) for _ in range(3)]
    for number, ticket in enumerate(tickets):
        batcher.add(DURABLE, b"%d" % number, ticket)
    tickets[1].give_up(RuntimeError("too late"))
    assert batcher.take().parts == [b"D0", b"D2"]
    assert (batcher.size, batcher.count) == (0, 0)


def test_what_is_put_back_leaves_first_and_in_order():
    batcher = Batcher(lambda: 0.0)
    for number in range(6):
        batcher.add(DURABLE, b"%d" % number, Ticket(1, 9.0))
    taken = drain(batcher)
    batcher.add(DURABLE, b"new", Ticket(1, 9.0))
    batcher.put_back(taken)
    assert [batch.parts[0] for batch in drain(batcher)] == [b"D0", b"D3", b"Dnew"]


def test_what_is_held_gathers_in_order_and_lets_others_pass():
    batcher = Batcher(lambda: 0.0)
    batcher.held.add(DURABLE.lane)
    for number in range(4):
        batcher.add(DURABLE, b"%d" % number, Ticket(1, 9.0))
        batcher.add(GROUPS[0], b"x")
    assert [batch.confirmed for batch in drain(batcher)] == [False]
    assert (batcher.count, batcher.size) == (4, 8)
    batcher.held.clear()
    assert [batch.parts for batch in drain(batcher)] == [[b"D0", b"D1", b"D2"], [b"D3"]]


def test_old_unconfirmed_batches_are_taken_out_confirmed_ones_stay():
    batcher = Batcher(lambda: 1.0)
    batcher.add(GROUPS[0], b"a")
    batcher.add(DURABLE, b"b", Ticket(1, 9.0))

    def older(than):
        return batcher.remove(lambda batch: not batch.confirmed and batch.since < than)

    assert older(0.5) == []
    assert [batch.parts for batch in older(2.0)] == [[GROUPS[0].target + b"a"]]
    assert (batcher.size, batcher.count) == (2, 1)
    assert [batch.confirmed for batch in drain(batcher)] == [True]


def test_a_ticket_for_many_is_done_when_all_are_and_keeps_the_first_error():
    finished = []

    class Seen(Ticket):
        def finish(self):
            finished.append(self.error)

    ticket = Seen(3, 0.0)
    ticket.settle()
    ticket.settle(ValueError("first"))
    assert not finished
    ticket.settle(ValueError("second"))
    ticket.give_up(TimeoutError())
    assert [str(error) for error in finished] == ["first"]
