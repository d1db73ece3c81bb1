"""A pytest plugin for the suites of other packages: the channel layers that they make are ours.

Loaded by `python -m pytest -p outside_layer` in an unpacked package; `CARILLON_PACKAGES_URL` names a broker
and `CARILLON_PACKAGES_SUITE` the suite. Every test has a prefix of its own, so that none meets
what another left.
"""

import asyncio
import importlib
import json
import os
import secrets
import signal
import sys

import pytest

from asgi_amqp import AMQPChannelLayer

SUITE = os.environ["CARILLON_PACKAGES_SUITE"]
URL = os.environ["CARILLON_PACKAGES_URL"]
TEST_SECONDS = 40  # a test that waits for what never comes would otherwise hold up all others
_prefix = "outside"


class Layer(AMQPChannelLayer):
    """Ours, constructed as the layers of Channels and of channels_redis are."""

    def __init__(self, hosts=None, **options):
        options.setdefault("timeout", 20.0)  # the machine may be busy
        super().__init__(URL, prefix=_prefix, **options)

    async def close_pools(self):
        """channels_redis closes its sockets here and loses no message by it. Ours stay open."""


# The classes that a suite constructs by name. All else comes from CHANNEL_LAYERS.
_CLASSES = {
    "channels": [("channels.layers", "InMemoryChannelLayer")],
    "channels_redis": [
        ("channels_redis.core", "RedisChannelLayer"),
        ("channels_redis.pubsub", "RedisPubSubChannelLayer"),
    ],
}


def pytest_configure(config):
    if SUITE == "DjangoChannelsGraphqlWs":
        _accept_coroutines_in_wait()
    for module, name in _CLASSES.get(SUITE, ()):
        setattr(importlib.import_module(module), name, Layer)


def _accept_coroutines_in_wait():
    """Its tests pass coroutines to `asyncio.wait`, which Python 3.11 refuses."""
    wait = asyncio.wait

    async def wait_for_all(fs, **options):
        return await wait([asyncio.ensure_future(each) for each in fs], **options)

    asyncio.wait = wait_for_all


@pytest.fixture(autouse=True)
def _a_layer_of_its_own():
    global _prefix
    _prefix = f"o{secrets.token_hex(4)}"
    if (django := sys.modules.get("django.conf")) and django.settings.configured:
        django.settings.CHANNEL_LAYERS = {"default": {"BACKEND": "outside_layer.Layer"}}
        importlib.import_module("channels.layers").channel_layers.backends.clear()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    def give_up(_number, _frame):
        raise TimeoutError(f"{item.nodeid} took more than {TEST_SECONDS} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(TEST_SECONDS)
    try:
        return (yield)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def pytest_runtest_logreport(report):
    """One line for each test and phase: what the suite's own summary calls it may be anything."""
    if report.when == "call" or report.failed or report.skipped:
        with open(os.environ["CARILLON_PACKAGES_REPORT"], "a") as file:
            file.write(json.dumps([report.nodeid, report.outcome]) + "\n")
