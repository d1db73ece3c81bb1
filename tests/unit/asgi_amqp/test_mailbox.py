import asyncio

import pytest

from asgi_amqp.mailbox import Budget, Entry, Mailbox


def make(capacity=3, limit=1000):
    losses = []
    box = Mailbox(capacity, Budget(limit), lambda reason, count: losses.append((reason, count)))
    return box, losses


def entries(*numbers, expires=1e12, size=10):
    return [Entry({"n": number}, expires, size) for number in numbers]


def contents(box):
    taken = []
    while (entry := box.take()) is not None:
        taken.append(entry.message["n"])
    return taken


def test_a_slow_reader_loses_the_oldest_counted():
    box, losses = make()
    for number in range(5):
        box.put(entries(number), 10)
    assert contents(box) == [2, 3, 4]
    assert losses == [("overflow", 1), ("overflow", 1)]
    assert box.budget.used == 0


def test_a_burst_that_came_in_one_piece_is_kept():
    box, losses = make()
    box.put(entries(*range(10)), 100)
    assert contents(box) == list(range(10))
    assert not losses


def test_bytes_are_bounded_for_all_mailboxes_together():
    budget = Budget(25)
    losses = []
    boxes = [Mailbox(100, budget, lambda reason, count: losses.append(reason)) for _ in range(2)]
    boxes[0].put(entries(1), 10)
    boxes[1].put(entries(2), 10)
    boxes[1].put(entries(3), 10)
    assert (contents(boxes[0]), contents(boxes[1])) == ([1], [3])
    assert losses == ["overflow"]


def test_an_empty_mailbox_is_no_way_around_the_bound():
    budget = Budget(25)
    losses = []
    boxes = [Mailbox(100, budget, lambda reason, count: losses.append((reason, count))) for _ in range(5)]
    for number, box in enumerate(boxes):
        box.put(entries(number, 10 + number), 20)
        assert budget.used <= 25
    assert [contents(box) for box in boxes] == [[0, 10], [], [], [], []]
    assert losses == [("overflow", 2)] * 4


def test_a_burst_larger_than_the_bound_keeps_its_newest():
    box, losses = make(limit=25)
    box.put(entries(1, 2, 3, 4), 40)
    assert contents(box) == [3, 4]
    assert losses == [("overflow", 2)]


def gap(reason, count):
    return {"type": "gap", "reason": reason, "count": count}


def test_gaps_come_first_and_those_of_one_reason_are_one():
    box, _ = make()
    box.put(entries(1), 10)
    for reason, count in (("overflow", 2), ("reconnect", None), ("overflow", 3), ("reconnect", None)):
        box.announce(gap(reason, count))
    taken = [box.take().message for _ in range(3)]
    assert taken == [gap("overflow", 5), gap("reconnect", None), {"n": 1}]
    assert box.take() is None


async def test_a_gap_wakes_the_reader():
    box, _ = make()
    task = asyncio.create_task(box.wait(asyncio.get_running_loop()))
    await asyncio.sleep(0)
    box.announce(gap("reconnect", None))
    await asyncio.wait_for(task, 1)


def test_what_has_expired_is_counted_and_not_given():
    box, losses = make()
    box.put(entries(1, expires=0.0) + entries(2), 20)
    assert box.take().message == {"n": 2}
    assert losses == [("expired", 1)]


async def read(box):
    while (entry := box.take()) is None:
        await box.wait(asyncio.get_running_loop())
    return entry.message["n"]


@pytest.mark.parametrize("before", [True, False])
async def test_a_cancelled_reader_leaves_the_message_to_the_next(before):
    box, _ = make()
    first, second = asyncio.create_task(read(box)), asyncio.create_task(read(box))
    await asyncio.sleep(0)
    if before:
        first.cancel()
        box.put(entries(1), 10)
    else:
        box.put(entries(1), 10)
        first.cancel()  # already woken, not yet running
    assert await asyncio.wait_for(second, 1) == 1
    with pytest.raises(asyncio.CancelledError):
        await first
    assert not box.waiters


async def test_everyone_who_waits_gets_one_of_a_batch():
    box, _ = make()
    tasks = [asyncio.create_task(read(box)) for _ in range(3)]
    await asyncio.sleep(0)
    box.put(entries(1, 2, 3, 4), 40)
    assert await asyncio.wait_for(asyncio.gather(*tasks), 1) == [1, 2, 3]
    assert contents(box) == [4]


async def test_cancelled_readers_leave_nothing_behind():
    box, _ = make()
    for _ in range(100):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(read(box), 0)
        task = asyncio.create_task(read(box))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert not box.waiters


async def test_failure_reaches_everyone_who_waits():
    box, _ = make()
    tasks = [asyncio.create_task(read(box)) for _ in range(3)]
    await asyncio.sleep(0)
    box.fail(RuntimeError("over"))
    assert [str(error) for error in await asyncio.gather(*tasks, return_exceptions=True)] == ["over"] * 3
