"""The cluster of containers (`make cluster`), started for these tests and taken down after them."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("CARILLON_STACK_PLAIN", "redirect")

from dev import config, production
from tests.production.containers import running, stack_of


@pytest.fixture(scope="session")
def settings() -> config.Config:
    ports = {"CARILLON_HTTP_PORT": "51280", "CARILLON_HTTPS_PORT": "51643"}
    return production.load(
        ports, cluster=True, project="carillon-container-cluster", state=".dev-cluster-test"
    )


@pytest.fixture(scope="session")
def stack(settings):
    with running(settings):
        yield stack_of(settings)
