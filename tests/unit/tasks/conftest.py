from tests.unit.support.fixtures import *  # noqa: F403
