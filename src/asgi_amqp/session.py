"""One event loop's share of a layer: a sender and a receiver, each with a connection that opens when first
needed.

Two connections, because a broker in alarm stops reading from whoever publishes: what this process reads and
acknowledges must go on meanwhile.
"""

import asyncio
import contextlib
import itertools
import secrets

from aiormq.exceptions import ChannelNotFoundEntity

from . import codec
from .config import Config
from .connection import CLOSED
from .exceptions import BrokerUnavailable
from .reader import Reader
from .receiver import Receiver
from .sender import Sender
from .topology import Queue


class Session:
    """Made and used in one event loop. `id` names it in channels and routing keys."""

    def __init__(self, config: Config) -> None:
        self.id = secrets.token_hex(6)
        self.loop = asyncio.get_running_loop()
        self._config = config
        self._sender: Sender | None = None
        self._receiver: Receiver | None = None
        self._readers: dict[str, Reader] = {}
        self._numbers = itertools.count()
        self._questions: dict[int, asyncio.Future[None]] = {}
        self._serving: set[asyncio.Task[None]] = set()
        self.closed = False

    @property
    def sender(self) -> Sender:
        if self._sender is None:
            self._sender = Sender(self._config)
        return self._sender

    @property
    def receiver(self) -> Receiver:
        if self._receiver is None:
            self._receiver = Receiver(self.id, self._config, self._control)
        return self._receiver

    def reader(self, queue: Queue) -> Reader:
        """The reader of a normal channel."""
        reader = self._readers.get(queue.name)
        if reader is None:
            reader = self._readers[queue.name] = Reader(self.receiver, queue, self._config.timeout)
        return reader

    async def ask(self, process: str, request: codec.Message, timeout: float) -> None:
        """Have another process do something with a channel of its own; back when it has."""
        await self.receiver.ready(timeout)
        number = next(self._numbers)
        answer = self._questions[number] = self.loop.create_future()
        try:
            await self._tell(process, {**request, "from": self.id, "number": number})
            async with asyncio.timeout(timeout):
                await answer
        except TimeoutError:
            raise BrokerUnavailable(
                f"no answer within {timeout:g} s from the process of channel "
                f"{request['channel']}: has it ended?"
            ) from None
        finally:
            del self._questions[number]

    async def _tell(self, process: str, message: codec.Message) -> None:
        await self.sender.send(
            self._config.topology.to_control(process), codec.encode(message), self._config.timeout
        )

    def _control(self, message: codec.Message) -> None:
        """A request or an answer of another process of this layer."""
        if message["type"] == "answer":
            answer = self._questions.get(message["number"])
            if answer is not None and not answer.done():
                answer.set_result(None)
        else:
            task = self.loop.create_task(self._serve(message))
            self._serving.add(task)
            task.add_done_callback(self._serving.discard)

    async def _serve(self, request: codec.Message) -> None:
        group, channel = request["group"], request["channel"]
        if request["type"] == "group_discard":
            self.receiver.group_discard(group, channel)
            return
        await self.receiver.group_add(group, channel, self.receiver.box(channel), self._config.timeout)
        await self._tell(request["from"], {"type": "answer", "number": request["number"]})

    async def discard_elsewhere(self, process: str, group: str, channel: str) -> None:
        """Take a channel of another process out of a group; nobody waits, for that process may be gone."""
        await self._tell(process, {"type": "group_discard", "group": group, "channel": channel})

    async def flush(self, queues: list[str]) -> None:
        """Forget what is here, and empty these queues. Cancelled, it goes on: a channel on which a call was
        cancelled is closed twice, and the broker ends the connection over that.
        """
        task = self.loop.create_task(self._flush(queues))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.shield(task)

    async def _flush(self, queues: list[str]) -> None:
        for reader in self._readers.values():
            reader.box.clear()
        await self.receiver.flush()
        link = await self.receiver.supervisor.link(self._config.timeout)
        for queue in queues:
            with contextlib.suppress(ChannelNotFoundEntity):
                async with link.attempt() as wire:
                    await wire.queue_purge(queue)

    def gauges(self) -> dict[str, float]:
        """How full it is just now."""
        values: dict[str, float] = {}
        if self._sender is not None:
            values["send_buffer_bytes"] = self._sender.buffered
            values["connected_publishing"] = float(self._sender.supervisor.current is not None)
            values["blocked"] = float(self._sender.blocked)
        if self._receiver is not None:
            values["receive_buffer_bytes"] = self._receiver.budget.used
            values["channels"] = len(self._receiver.boxes)
            values["groups"] = len(self._receiver.groups)
            values["connected_consuming"] = float(self._receiver.supervisor.current is not None)
        return values

    async def close(self, timeout: float = 2.0) -> None:
        """Send what has gathered, for at most `timeout` seconds, and disconnect. Everyone who waits hears."""
        self.closed = True
        if self._sender is not None:
            await self._sender.close(timeout)
        if self._receiver is not None:
            await self._receiver.close()
        self._sender = self._receiver = None
        self._readers.clear()
        for answer in self._questions.values():
            if not answer.done():
                answer.set_exception(BrokerUnavailable(CLOSED))
        for task in self._serving:
            task.cancel()
