"""A RabbitMQ of these tests' own, in a container, and layers on it that are closed when their test ends."""

import contextlib
import json
import os
import secrets
import subprocess
from pathlib import Path

import pytest

from asgi_amqp import AMQPChannelLayer
from tests.integration.asgi_amqp.broker import Broker


@pytest.fixture(scope="session")
def broker():
    """One broker for all tests of the session; tests that break it mend it."""
    Broker.remove_leftovers()
    with Broker() as broker:
        yield broker
    Broker.remove_leftovers()


@pytest.fixture
def report(request):
    """A function that notes what a test counted: printed, and a line of JSON in CARILLON_LAYER_REPORT."""

    def note(**counts):
        line = json.dumps({"test": request.node.name, **counts})
        print(line)
        if path := os.environ.get("CARILLON_LAYER_REPORT"):
            with Path(path).open("a") as file:
                file.write(line + "\n")

    return note


@pytest.fixture(autouse=True)
def _logs(request, broker):
    yield
    if request.node.stash.get(FAILED, False):
        print(broker.logs())


FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.when == "call" and report.failed:
        item.stash[FAILED] = True
    return report


@pytest.fixture
async def make_layer(broker):
    """A function that makes layers sharing a prefix of this test's own; `same=False` gives another."""
    prefix = f"t{secrets.token_hex(4)}"
    layers = []

    def make(**options):
        options.setdefault("url", broker.url)
        options.setdefault("prefix", prefix)
        options.setdefault("timeout", 20.0)  # this machine may be busy
        layer = AMQPChannelLayer(**options)
        layers.append(layer)
        return layer

    yield make
    for layer in layers:
        with contextlib.suppress(Exception):
            await layer.close()


@pytest.fixture
def layer(make_layer):
    return make_layer()


def pytest_collection_modifyitems(items):
    if subprocess.run(["docker", "version"], capture_output=True).returncode:
        for item in items:
            if "integration/asgi_amqp" in str(item.path):
                item.add_marker(pytest.mark.skip(reason="needs Docker"))
