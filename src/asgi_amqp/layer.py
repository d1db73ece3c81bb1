"""AMQPChannelLayer: the Channels layer. Names, capacity, and which event loop's session does the work."""

import asyncio
import contextlib
import functools
import os
import re
import secrets
import weakref
from asyncio import get_running_loop
from collections.abc import Callable, Iterable, Mapping
from re import Pattern
from ssl import SSLContext
from threading import get_ident
from typing import Any, TypeVar

import channels
from asgiref.sync import AsyncToSync
from channels.layers import BaseChannelLayer

from . import metrics
from .codec import Message, encode
from .config import Config
from .exceptions import BrokerUnavailable, ConfigurationError, MessageTooLarge
from .loops import fetch, run_in
from .mailboxes import Mailbox
from .metrics import Loss, Stats
from .options import Options, Target, capacities, checked, durable_options
from .publisher import SyncPublisher
from .receiver import Receiver
from .sender import Forward
from .session import Session
from .topology import Destination, process_of

T = TypeVar("T")
KNOWN = 10_000  # destinations remembered
CHANNELS = (4, 2, 1)  # the oldest Channels that this works with


class AMQPChannelLayer(BaseChannelLayer):  # type: ignore[misc]  # channels is not typed
    """A channel layer over RabbitMQ. Every option is described in docs/reference/asgi_amqp.md.

    Each long-lived event loop has a session, that is connections, of its own; the loops that `async_to_sync`
    makes for one call share the background session of `publisher`.
    """

    extensions = ["groups", "flush"]

    # Those of Channels take digits and letters of all scripts, and a line end: a name of 99 of them is longer
    # than AMQP allows, and would cost every channel of the process its connection.
    channel_name_regex = re.compile(r"[a-zA-Z0-9\-_.]+(![a-zA-Z0-9\-_.]*)?\Z")
    group_name_regex = re.compile(r"[a-zA-Z0-9\-_.]+\Z")

    def __init__(
        self,
        url: str | Iterable[str] = "amqp://guest:guest@127.0.0.1/",
        *,
        prefix: str = "asgi",
        durable: Iterable[str] | Mapping[str, Mapping[str, Any]] = (),
        expiry: float = 60,
        group_expiry: float = 86400,
        capacity: int = 100,
        channel_capacity: Mapping[str | Pattern[str], int] | None = None,
        overflow: str = "drop-newest",
        gap_type: str | None = None,
        timeout: float = 5.0,
        buffer_bytes: int = 64 * 1024 * 1024,
        queue_bytes: int = 256 * 1024 * 1024,
        max_message_bytes: int = 16 * 1024 * 1024,
        heartbeat: int = 10,
        connect_timeout: float = 5.0,
        ssl_ca: str | None = None,
        ssl_cert: str | None = None,
        ssl_key: str | None = None,
        ssl_context: SSLContext | None = None,
        auth: str = "plain",
        name: str = "asgi_amqp",
    ) -> None:
        version = tuple(int(part) for part in channels.__version__.split(".")[:3] if part.isdigit())
        if version < CHANNELS:
            raise ConfigurationError(f"Channels {channels.__version__} is too old: 4.2.1 is the least")
        checked("capacity", capacity, 1, whole=True)
        if not isinstance(prefix, str) or not self.group_name_regex.match(prefix) or len(prefix) > 50:
            raise ConfigurationError(f"prefix={prefix!r}: write at most 50 of letters, digits, - _ and .")
        if f"{prefix}.".startswith("amq."):
            raise ConfigurationError(f"prefix={prefix!r}: amq. is the broker's own, write another")
        super().__init__(expiry=expiry, capacity=capacity)
        self.channel_capacity = self.compile_capacities(capacities(channel_capacity))
        urls = url if isinstance(url, Iterable) and not isinstance(url, str) else [url]
        targets = tuple(Target.parse(each) for each in urls)
        options = Options(
            targets, name, heartbeat, connect_timeout, ssl_ca, ssl_cert, ssl_key, ssl_context, auth
        )
        self.prefix = prefix
        self.timeout = timeout
        self.stats = Stats()
        self._durable = durable_options(durable)
        self._homes: dict[str, tuple[Mailbox, Receiver]] = {}  # of the process-local channels of all loops
        self.config = Config(
            options, self.stats, self.get_capacity, self._homes, prefix, expiry, group_expiry, timeout,
            buffer_bytes, queue_bytes, max_message_bytes, overflow, gap_type,
        )  # fmt: skip
        self._topology = self.config.topology
        self.destination = functools.lru_cache(KNOWN)(self._destination)
        self.group_destination = functools.lru_cache(KNOWN)(self._group_destination)
        self._queues: set[str] = set()  # of the normal channels that were used
        self._sessions: dict[asyncio.AbstractEventLoop, Session] = {}
        self._owners: weakref.WeakValueDictionary[str, Session] = weakref.WeakValueDictionary()
        self.publisher = SyncPublisher(self)
        me = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _forget(me))
        metrics.register(self)

    @property
    def on_loss(self) -> list[Callable[[Loss], None]]:
        """Callables that hear of every loss, in whatever thread finds it; they must be quick."""
        return self.stats.hooks

    # Where things go

    def _destination(self, channel: str) -> Destination:
        """Where a send to this channel goes. TypeError for a name that is none."""
        self.require_valid_channel_name(channel)
        if "!" in channel:
            return self._topology.to_process(channel)
        durable = next((each for pattern, each in self._durable if pattern.match(channel)), None)
        if durable is None:
            queue = self._topology.normal_queue(channel, self.get_capacity(channel))
        else:
            queue = self._topology.durable_queue(channel, durable)
        if len(self._queues) < KNOWN:
            self._queues.add(queue.name)
        return self._topology.to_queue(channel, queue, durable.batch if durable is not None else 1)

    def _group_destination(self, group: str) -> Destination:
        """Where a group_send to this group goes. TypeError for a name that is none."""
        self.require_valid_group_name(group)
        return self._topology.to_group(group)

    def encode(self, message: Message) -> bytes:
        """A message as it travels. TypeError, MessageTooLarge: before anything is sent."""
        data = encode(message)
        if len(data) > self.config.max_message_bytes:
            raise MessageTooLarge(
                f"a message of {len(data)} bytes: max_message_bytes allows {self.config.max_message_bytes}"
            )
        return data

    # Sessions

    def make_session(self) -> Session:
        """A session in the running loop."""
        session = Session(self.config)
        self._owners[session.id] = session
        return session

    def session(self) -> Session:
        """The session of the running loop; a loop of async_to_sync, made for one call, uses the
        background's.
        """
        loop = get_running_loop()
        session = self._sessions.get(loop)
        if session is None:
            if loop in AsyncToSync.loop_thread_executors:
                return self.publisher.background.session
            running = self.publisher.running
            if running is not None and loop is running.loop:
                return running.session
            for old in [each for each in list(self._sessions) if each.is_closed()]:
                ended = self._sessions.pop(old, None)
                if ended is not None:  # else another thread was faster
                    ended.abandon()
            session = self._sessions[loop] = self.make_session()
        return session

    def lasting_session(self) -> Session:
        """The session of the running loop. RuntimeError in a loop of async_to_sync, which ends with its call:
        nothing would wake a task that waits there.
        """
        session = self.session()
        if session.loop is not get_running_loop():
            raise RuntimeError("use this in a loop that lasts, as of asyncio.run(): async_to_sync has none")
        return session

    def _all(self) -> list[Session]:
        """The sessions of this process that are in use."""
        sessions = [reference() for reference in self._owners.valuerefs()]  # others may be making some
        return [each for each in sessions if each is not None and each.living and each.loop.is_running()]

    def _living(self, process: str) -> Session | None:
        """The session of this id, if it is of this process and can still be used."""
        session = self._owners.get(process)
        return session if session is not None and session.living else None

    def _member_of(self, destination: Destination) -> Session | None:
        """The session that a channel is in groups with, if it is of this process. A normal channel belongs to
        no loop: it is the background's, so that it is there once, and for all loops.
        """
        normal = destination.queue is not None
        return self.publisher.background.session if normal else self._living(destination.key[2:])

    # The Channels API

    async def send(self, channel: str, message: Message) -> None:
        """Send to a channel. A process-local one: accepted to leave in this turn of the loop. A normal one:
        the broker has it, on disk where the channel is durable; ChannelFull, BrokerUnavailable,
        MessageTooLarge.
        """
        destination = self.destination(channel)
        data = self.encode(message)
        session = self._sessions.get(get_running_loop())
        if session is None:
            await self._send(destination, data)
        elif destination.key != session.key:
            await session.sender.send(destination, data, self.timeout)
        else:
            box = session.receiver.box(channel)
            box.reserve()
            try:
                await session.sender.send(destination, data, self.timeout)
            except BaseException:
                box.arriving = max(0, box.arriving - 1)  # it may have been given back already
                raise

    async def group_send(self, group: str, message: Message) -> None:
        """Send to all channels of a group: one message, however many members. Accepted to leave in this
        turn.
        """
        destination, data = self.group_destination(group), self.encode(message)
        session = self._sessions.get(get_running_loop())
        if session is None:
            await self._send(destination, data)
        else:
            await session.sender.send(destination, data, self.timeout)

    async def send_many(self, events: Iterable[tuple[str, Message]]) -> None:
        """Send (channel, message) pairs, all under way at once, in order for each channel; back when the
        broker has those for normal channels. When some fail, the first error is raised after all are settled.
        """
        session = self.session()
        ready = [(self.destination(channel), self.encode(message)) for channel, message in events]
        await run_in(session.loop, lambda: session.sender.send_many(ready, self.timeout))

    async def _send(self, destination: Destination, data: bytes) -> None:
        mine = self.session()
        await run_in(mine.loop, lambda: mine.sender.send(destination, data, self.timeout))

    async def new_channel(self, prefix: str = "specific") -> str:
        """A process-local channel that others can reach once this returns."""
        session = self.session()
        name = f"{prefix}.{session.id}!{secrets.token_hex(8)}"
        self.require_valid_channel_name(name)

        async def make() -> None:
            await session.receiver.supervisor.link(self.timeout)
            session.receiver.box(name)

        await run_in(session.loop, make)
        return name

    async def group_add(self, group: str, channel: str) -> None:
        """Add a channel to a group; back when the next group_send will reach it.

        A normal channel is joined by this process, which sends on what the group gets: it leaves with the
        process.
        """
        self.require_valid_group_name(group)
        destination = self.destination(channel)
        owner = self._member_of(destination)
        mine = owner or self.session()

        async def add() -> None:
            if destination.queue is not None:
                forward = Forward(channel, mine.sender, destination, self.timeout)
                await mine.receiver.group_add(group, channel, forward, self.timeout)
            elif owner is not None:
                box = owner.receiver.box(channel)
                await owner.receiver.group_add(group, channel, box, self.timeout)
            else:
                request = {"type": "group_add", "group": group, "channel": channel}
                await mine.ask(process_of(channel), request, self.timeout)

        await run_in(mine.loop, add)

    async def group_discard(self, group: str, channel: str) -> None:
        """Take a channel out of a group; nothing happens when it is not in it."""
        self.require_valid_group_name(group)
        destination = self.destination(channel)
        if destination.queue is not None and self.publisher.running is None:
            return  # no normal channel is in a group
        owner = self._member_of(destination)
        mine = owner or self.session()

        async def discard() -> None:
            if owner is None:
                await mine.discard_elsewhere(process_of(channel), group, channel)
            else:
                mine.receiver.group_discard(group, channel)

        await run_in(mine.loop, discard)

    async def receive(self, channel: str) -> Message:
        """The next message of a channel. Cancelled, it loses none."""
        home = self._homes.get(channel)
        if home is not None:
            box, receiver = home
            if receiver.thread == get_ident():
                for unread in box.unread:  # begun not long ago: it has not expired
                    return unread if box.copy is None else box.copy(unread)
                if receiver.loop is get_running_loop():
                    return await receiver.receive(box)
        return await self._receive(channel)

    async def _receive(self, channel: str) -> Message:
        """Of a normal channel, or of one of another loop."""
        self.require_valid_channel_name(channel)
        if "!" not in channel:
            mine, queue = self.session(), self.destination(channel).queue
            assert queue is not None
            inbox = await run_in(mine.loop, lambda: mine.receiver.inbox(queue))
            return await fetch(mine.loop, inbox.box, inbox.receive)
        session = self._living(process_of(channel))
        if session is None:
            raise ValueError(
                f"channel {channel} belongs to another process, or to an event loop or a layer that has "
                "ended: only the process that made it with new_channel() can receive on it"
            )
        box = await run_in(session.loop, lambda: session.receiver.open(channel))
        return await fetch(session.loop, box, lambda: session.receiver.receive(box))

    # The whole

    async def flush(self) -> None:
        """Empty everything that this process knows of: its channels, its groups, the normal channels it has
        used.
        """
        for session in self._all():
            await run_in(session.loop, lambda: session.flush(list(self._queues)))  # noqa: B023 - awaited at once

    def gauges(self) -> dict[str, float]:
        """How full the layer is just now, over all its event loops."""
        total: dict[str, float] = {}
        for session in self._all():
            for what, value in session.gauges().items():
                total[what] = total.get(what, 0) + value
        return total

    async def close(self) -> None:
        """Send what has gathered and disconnect, in all loops; whoever waits hears BrokerUnavailable."""
        for loop, session in list(self._sessions.items()):
            self._sessions.pop(loop, None)
            if loop.is_running():
                with contextlib.suppress(BrokerUnavailable):  # it has ended just now
                    await run_in(session.loop, session.close)
            else:
                session.abandon()
        await get_running_loop().run_in_executor(None, self.publisher.close)

    def forget(self) -> None:
        """In the child of a fork: connections, loops and channels are the parent's."""
        self._sessions.clear()
        self._owners.clear()
        self._homes.clear()
        self.publisher.forget()


def _forget(layer: "weakref.ref[AMQPChannelLayer]") -> None:
    target = layer()
    if target is not None:
        target.forget()
