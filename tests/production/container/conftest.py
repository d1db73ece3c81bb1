"""The production container, started for these tests beside everything else and taken down after them."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("CARILLON_STACK_PLAIN", "redirect")

from dev import config, production_testing
from tests.production.containers import running, stack_of


@pytest.fixture(scope="session")
def settings() -> config.Config:
    return production_testing.stack("container")


@pytest.fixture(scope="session")
def stack(settings):
    with running(settings):
        yield stack_of(settings)
