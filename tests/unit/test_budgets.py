"""The pure deciders of what an actor may use."""

from hypothesis import given
from hypothesis import strategies as st

from carillon.budgets import Allowance, InHand, fitting


def test_an_allowance_is_a_burst_and_then_a_rate():
    allowance = Allowance(burst=2, rate=0.5)
    assert [allowance.spend(now) for now in (0, 0, 0, 1, 2, 3, 100, 100, 100)] == [
        True, True, False, False, True, False, True, True, False,
    ]  # fmt: skip


def test_it_says_when_to_come_back():
    allowance = Allowance(burst=10, rate=2)
    assert allowance.wait(0, 10) == 0
    assert allowance.wait(0, 11) == float("inf")
    assert allowance.spend(0, 10)
    assert allowance.wait(0, 4) == 2
    assert not allowance.spend(1.9, 4)
    assert allowance.spend(2, 4)
    assert Allowance(burst=1, rate=0, left=0, at=0).wait(100) == float("inf")


def test_what_is_given_back_is_no_more_than_the_burst():
    allowance = Allowance(burst=3, rate=0)
    allowance.spend(0, 2)
    allowance.give(0, 1)
    assert allowance.left == 2
    allowance.give(0, 100)
    assert allowance.left == 3


@given(
    st.floats(0, 100),
    st.floats(0, 10),
    st.lists(st.tuples(st.floats(-5, 50), st.floats(0, 20)), max_size=50),
)
def test_never_more_than_the_burst_and_the_rate(burst, rate, steps):
    """Whatever the clock does, also backwards."""
    allowance = Allowance(burst, rate)
    now = highest = start = 1000.0
    forward = taken = 0.0
    for step, amount in steps:
        forward += max(step, 0.0)
        now += step
        highest = max(highest, now)
        if allowance.spend(now, amount):
            taken += amount
        assert 0 <= allowance.left <= burst
        assert taken <= burst + rate * forward + 1e-6
    assert highest >= start


def test_in_hand_is_counted_for_each_actor():
    hand = InHand(most=10, seconds=60)
    first = hand.take("ann", 6, now=0)
    assert first
    assert hand.take("ann", 5, now=0) is None
    assert hand.take("ben", 10, now=0)
    hand.give("ann", first)
    hand.give("ann", first)  # once more is nothing
    assert hand.take("ann", 10, now=0)
    assert hand.take("ann", 1, now=0) is None


def test_one_thing_alone_may_be_larger():
    hand = InHand(most=10, seconds=60)
    assert hand.take("ann", 500, now=0)
    assert hand.take("ann", 0.1, now=0) is None


def test_what_nobody_gives_back_is_forgotten():
    hand = InHand(most=10, seconds=60)
    assert hand.take("ann", 10, now=0)
    assert hand.take("ann", 10, now=59) is None
    assert hand.take("ann", 10, now=60)


def test_how_many_fit():
    assert fitting([], 10) == 0
    assert fitting([5, 5, 1], 10) == 2
    assert fitting([99, 1], 10) == 1
    assert fitting([0, 0, 99], 10) == 2


@given(st.lists(st.integers(0, 100)), st.integers(0, 300))
def test_what_fits_is_the_longest_beginning(sizes, most):
    count = fitting(sizes, most)
    assert count >= min(1, len(sizes))
    assert count <= 1 or sum(sizes[:count]) <= most
    assert count == len(sizes) or sum(sizes[: count + 1]) > most
