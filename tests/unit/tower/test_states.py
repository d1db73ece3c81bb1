"""Which status may follow which."""

import pytest

from tower import states
from tower.models import Status


@pytest.mark.parametrize("final", sorted(states.FINAL))
def test_the_end_is_the_end(final):
    assert states.next_statuses(final) == []
    assert [status for status in states.STATUSES if states.may_become(final, status)] == [final]


@pytest.mark.parametrize(
    ("current", "wanted", "allowed"),
    [
        ("new", "pending", True),
        ("new", "running", True),
        ("new", "successful", False),
        ("pending", "waiting", True),
        ("pending", "new", False),
        ("waiting", "running", True),
        ("waiting", "successful", False),
        ("running", "successful", True),
        ("running", "pending", False),
        ("running", "running", True),
        ("nonsense", "running", False),
    ],
)
def test_transitions(current, wanted, allowed):
    assert states.may_become(current, wanted) is allowed


def test_every_unfinished_job_can_be_canceled():
    assert all(
        states.may_become(status, "canceled") for status in states.STATUSES if status not in states.FINAL
    )


def test_the_model_has_the_same_statuses():
    assert list(states.STATUSES) == Status.values
