"""Settings of the property tests of the cores.

The gate runs the same 200 examples each time; CARILLON_CORE_EXAMPLES=20000 looks further.
"""

import os

from hypothesis import HealthCheck, settings

EXAMPLES = os.environ.get("CARILLON_CORE_EXAMPLES")
SETTINGS = settings(
    max_examples=int(EXAMPLES or 200),
    stateful_step_count=50,
    derandomize=EXAMPLES is None,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
