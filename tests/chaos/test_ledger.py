"""The books themselves must be right."""

import pytest

from tests.chaos.ledger import GAP, Page, account


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        ([0, 1, 2, 3], (4, 0, 0, 0, 0)),
        ([0, 1, 1, 2, 3], (4, 1, 0, 0, 0)),
        ([0, 2, 3], (3, 0, 0, 1, 0)),
        ([0, GAP, 2, 3], (3, 0, 0, 0, 1)),
        ([0, GAP, 1, 3], (3, 0, 0, 1, 0)),
        ([0, 2, 1, 3], (4, 0, 1, 0, 0)),
        ([0, 1], (2, 0, 0, 2, 0)),
        ([0, 1, GAP], (2, 0, 0, 0, 2)),
        ([], (0, 0, 0, 4, 0)),
    ],
)
def test_accounts(seen, expected):
    found = account(Page("x", 0, seen), 4)
    assert (
        found.delivered,
        found.doubled,
        found.disordered,
        found.lost_silently,
        found.lost_announced,
    ) == expected
