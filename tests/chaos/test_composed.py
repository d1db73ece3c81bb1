"""One composed schedule, played: `make chaos SEEDS=…` plays as many as it is asked for."""

from __future__ import annotations

import os

import pytest

from tests.chaos.composed.stage import compose
from tests.chaos.report import write_down
from tests.chaos.site import Site

SEED = 0

pytestmark = [
    pytest.mark.stack,
    pytest.mark.skipif(Site.from_environment() is None, reason="no stack: `make test` starts one"),
    pytest.mark.skipif(
        not os.environ.get("CARILLON_CHAOS_WHOLE"), reason="three brokers take long to come up: `make chaos`"
    ),
]


async def test_a_schedule_on_three_brokers():
    outcomes = []
    failed = await compose(Site.from_environment(), range(SEED, SEED + 1), outcomes.append)
    (row,) = outcomes
    write_down(row)
    assert not failed, row
    assert "void" not in row, row
