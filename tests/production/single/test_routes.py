"""The table of routes of development, asked of the host from outside."""

from tests.infra.test_routes import *  # noqa: F403
