"""A channel layer in memory, with the publisher and the durable queue that Carillon's delivery uses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from channels.layers import InMemoryChannelLayer, get_channel_layer

from asgi_amqp.exceptions import BrokerUnavailable


class FakePublisher:
    """Keeps what is sent; `away = True`: the broker is away. `batches` has one list per `send_many`."""

    def __init__(self) -> None:
        self.batches: list[list[tuple[str, dict[str, Any]]]] = []
        self.away = False

    def send_many(self, items: Sequence[tuple[str, dict[str, Any]]], timeout: float = 5.0) -> None:
        self._check()
        self.batches.append(list(items))

    def group_send(self, group: str, message: dict[str, Any], timeout: float = 5.0) -> None:
        self._check()

    def _check(self) -> None:
        if self.away:
            raise BrokerUnavailable("away")


class FakeLayer(InMemoryChannelLayer):
    """Channels' own layer in memory. Sends to the durable queue are kept with the publisher's."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.publisher = FakePublisher()

    async def send(self, channel: str, message: dict[str, Any]) -> None:
        if channel == "notifications":
            self.publisher.send_many([(channel, message)])
        else:
            await super().send(channel, message)

    async def group_add(self, group: str, channel: str) -> None:
        self.publisher._check()
        await super().group_add(group, channel)


class Sent:
    """What was put on the durable queue, as a test likes to read it."""

    def __init__(self) -> None:
        self.publisher: FakePublisher = get_channel_layer().publisher

    @property
    def messages(self) -> list[dict[str, Any]]:
        return [message for batch in self.publisher.batches for _, message in batch]

    def clear(self) -> None:
        self.publisher.batches.clear()
