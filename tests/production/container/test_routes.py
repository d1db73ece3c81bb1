"""The table of routes of development, asked of the production container."""

from tests.infra.test_routes import *  # noqa: F403
