"""What the broker is told of deliveries that are done with."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_amqp.acks import Acks


@pytest.fixture
def acks():
    """Of a wire on which six deliveries have come."""
    acks = Acks()
    for tag in range(1, 7):
        acks.opened(tag)
    return acks


def add(acks, *tags):
    return [acks.add(tag) for tag in tags]


def test_one_frame_is_for_all_that_came_in_order(acks):
    add(acks, 1, 2, 3)
    assert acks.take() == [(3, True)]


def test_order_does_not_matter(acks):
    add(acks, 3, 1, 2)
    assert acks.take() == [(3, True)]


def test_one_alone_says_so(acks):
    add(acks, 1)
    assert acks.take() == [(1, False)]
    add(acks, 2)
    assert acks.take() == [(2, False)]


def test_what_is_behind_an_open_one_is_told_singly(acks):
    add(acks, 2, 4)
    assert acks.take() == [(2, False), (4, False)]
    add(acks, 1, 3, 6)
    assert acks.take() == [(3, True), (6, False)]  # 5 is open, and 2 and 4 were told before


def test_a_frame_names_only_what_was_not_told_before(acks):
    add(acks, 2)
    assert acks.take() == [(2, False)]
    add(acks, 1)
    assert acks.take() == [(1, False)]  # all up to 2 would name a tag that the broker has forgotten
    add(acks, 3, 4)
    assert acks.take() == [(4, True)]


def test_what_was_rejected_holds_nothing_up(acks):
    acks.ended(1)
    add(acks, 2, 3)
    assert acks.take() == [(3, True)]
    assert acks.take() == []


def test_deliveries_that_nobody_opened_have_a_frame_each():
    """Others may have come between them, of which nothing is known here."""
    acks = Acks()
    add(acks, 1, 3)
    assert acks.take() == [(1, False), (3, False)]


def test_it_says_when_it_has_something_to_tell_again(acks):
    assert add(acks, 1, 2) == [True, False]
    acks.take()
    assert add(acks, 3) == [True]


def test_nothing_is_remembered_of_what_has_ended(acks):
    """Also while one stays open: a handler that hangs must not cost memory."""
    for tag in range(7, 1000, 2):
        acks.opened(tag)
        acks.opened(tag + 1)
        acks.ended(tag)
        add(acks, tag + 1)
        assert acks.take() == [(tag + 1, False)]
    assert (list(acks._open), acks._fresh) == ([1, 2, 3, 4, 5, 6], {})
    add(acks, 1, 2, 3, 4, 5, 6)
    assert acks.take() == [(6, True)]


@given(st.permutations(range(1, 13)), st.sets(st.integers(1, 12)), st.sets(st.integers(1, 12)))
def test_the_broker_hears_of_each_once_and_of_nothing_that_is_open(order, rejected, pauses):
    acks, outstanding, done = Acks(), set(range(1, 13)), set()
    for tag in range(1, 13):
        acks.opened(tag)
    for number, tag in enumerate(order):
        if tag in rejected:
            acks.ended(tag)
            outstanding.remove(tag)
            continue
        acks.add(tag)
        done.add(tag)
        if number in pauses or number == len(order) - 1:
            for told, multiple in acks.take():
                assert told in outstanding  # RabbitMQ closes the channel over a tag that it does not know
                meant = {each for each in outstanding if each <= told} if multiple else {told}
                assert meant <= done
                outstanding -= meant
    for told, multiple in acks.take():
        outstanding -= {each for each in outstanding if each <= told} if multiple else {told}
    assert not outstanding
