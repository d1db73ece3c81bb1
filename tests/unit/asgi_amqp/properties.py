"""Settings of the property tests of the cores.

The gate runs the same 200 examples each time; CARILLON_CORE_EXAMPLES=20000 looks further. Mutation testing
does not ask for the shortest example: CARILLON_CORE_SHRINK=0.
"""

import os

from hypothesis import HealthCheck, Phase, settings

EXAMPLES = os.environ.get("CARILLON_CORE_EXAMPLES")
SHRINK = os.environ.get("CARILLON_CORE_SHRINK") != "0"
SETTINGS = settings(
    max_examples=int(EXAMPLES or 200),
    stateful_step_count=50,
    derandomize=EXAMPLES is None or not SHRINK,
    database=None,
    deadline=None,
    phases=[Phase.explicit, Phase.generate, *([Phase.shrink] if SHRINK else [])],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
