"""One event loop's share of a layer: a sender and a receiver, each with a connection that opens when first
needed.

Two connections, because a broker in alarm stops reading from whoever publishes: what this process reads and
acknowledges must go on meanwhile.
"""

import asyncio
import contextlib
import itertools
import secrets
from collections.abc import Coroutine
from typing import Any

from aiormq import ChannelNotFoundEntity

from . import codec
from .config import Config
from .exceptions import BrokerUnavailable, LayerError, Unroutable
from .receiver import Receiver
from .sender import Sender
from .tickets import FutureTicket

CLOSED = "the layer was closed"


class Session:
    """Made and used in one event loop. `id` names it in channels and routing keys."""

    def __init__(self, config: Config) -> None:
        self.id = secrets.token_hex(6)
        self.key = config.topology.process_key(self.id)
        self.loop = asyncio.get_running_loop()
        self.closed = False
        self.sender = Sender(config, self._lost)
        self.receiver = Receiver(self.id, config, self._control)
        self._config = config
        self._numbers = itertools.count()
        self._questions: dict[int, asyncio.Future[None]] = {}
        self._serving: set[asyncio.Task[None]] = set()  # and the end of what was abandoned

    @property
    def living(self) -> bool:
        """Whether it can still be used."""
        return not self.closed and not self.loop.is_closed()

    def _lost(self) -> None:
        """What was on its way to this very process may be gone: it takes up no room."""
        for box in self.receiver.mailboxes.boxes.values():
            box.arriving = 0

    # Between processes

    async def ask(self, process: str, request: codec.Message, timeout: float) -> None:
        """Have another process do something with a channel of its own; back when it has."""
        deadline = self.loop.time() + timeout
        await self.receiver.supervisor.link(timeout)
        number = next(self._numbers)
        answer = self._questions[number] = self.loop.create_future()
        gone = f"no answer from the process of channel {request['channel']}: has it ended?"
        try:
            async with asyncio.timeout_at(deadline):
                await self._tell(process, {**request, "from": self.id, "number": number})
                await answer
        except (TimeoutError, Unroutable):
            raise BrokerUnavailable(gone) from None
        finally:
            del self._questions[number]

    async def _tell(self, process: str, message: codec.Message) -> None:
        """Back when it is in the queue of that process; Unroutable, when there is none."""
        ticket = FutureTicket(1, self._config.timeout)
        self.sender.submit(self._config.topology.to_control(process), codec.encode(message), ticket)
        await ticket.settled()

    def _control(self, message: codec.Message) -> None:
        """A request or an answer of another process of this layer."""
        if message["type"] == "answer":
            answer = self._questions.get(message["number"])
            if answer is not None and not answer.done():
                answer.set_result(None)
        elif message["type"] == "group_discard":
            self.receiver.group_discard(message["group"], message["channel"])
        else:
            self._spawn(self._serve(message))

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = self.loop.create_task(coroutine)
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, request: codec.Message) -> None:
        """A request to join a group; one that fails is not answered."""
        group, channel = request["group"], request["channel"]
        with contextlib.suppress(LayerError):
            await self.receiver.group_add(group, channel, self.receiver.box(channel), self._config.timeout)
            await self._tell(request["from"], {"type": "answer", "number": request["number"]})

    async def discard_elsewhere(self, process: str, group: str, channel: str) -> None:
        """Take a channel of another process out of a group; nobody waits, for that process may be gone."""
        message = {"type": "group_discard", "group": group, "channel": channel}
        destination = self._config.topology.to_control(process)
        await self.sender.send(destination, codec.encode(message), self._config.timeout)

    # The whole

    async def flush(self, queues: list[str]) -> None:
        """Forget what is here, and empty these queues."""
        await self.receiver.flush()
        link = await self.receiver.supervisor.link(self._config.timeout)
        for queue in queues:
            with contextlib.suppress(ChannelNotFoundEntity):
                await link.attempt(lambda channel: channel.queue_purge(queue))  # noqa: B023 - awaited at once

    def gauges(self) -> dict[str, float]:
        """How full it is just now."""
        sender, receiver = self.sender, self.receiver
        return {
            "send_buffer_bytes": sender.outbox.buffered,
            "connected_publishing": float(sender.supervisor.current is not None),
            "blocked": float(sender.blocked),
            "receive_buffer_bytes": receiver.mailboxes.used,
            "channels": len(receiver.mailboxes.boxes),
            "groups": len(receiver.mailboxes.groups),
            "connected_consuming": float(receiver.supervisor.current is not None),
        }

    async def close(self, timeout: float = 2.0) -> None:
        """Send what has gathered, for at most `timeout` seconds, and disconnect. Everybody who waits for this
        session hears that it was closed.
        """
        self.closed = True
        error = BrokerUnavailable(CLOSED)
        try:
            await self.sender.close(error, timeout)
        finally:
            for answer in self._questions.values():
                if not answer.done():
                    answer.set_exception(error)
            await self.receiver.close(error)

    def abandon(self) -> None:
        """Its loop does not run, and most often never will again: cut its connections. One that only pauses
        closes it when it goes on.
        """
        self.closed = True
        error = BrokerUnavailable(CLOSED)
        with contextlib.suppress(RuntimeError):  # it has ended
            self.loop.call_soon_threadsafe(lambda: self._spawn(self.close(0)))
        self.sender.supervisor.abandon(error)
        self.receiver.abandon(error)
