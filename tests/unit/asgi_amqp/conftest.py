"""Layers on links that a test answers for."""

import pytest

from asgi_amqp import AMQPChannelLayer
from tests.unit.asgi_amqp.links import Brokers


@pytest.fixture
def brokers(monkeypatch):
    return Brokers(monkeypatch)


@pytest.fixture
async def make(brokers):
    layers = []

    def make(**options):
        layers.append(AMQPChannelLayer("amqp://broker.test", **options))
        return layers[-1]

    yield make
    for layer in layers:
        await layer.close()
