"""AMQPChannelLayer: the Channels layer. Names, capacity, and which event loop's session does the work."""

import asyncio
import functools
import os
import secrets
import time
import weakref
from asyncio import get_running_loop
from collections.abc import Callable, Coroutine, Iterable, Mapping
from threading import get_ident
from typing import Any, TypeVar

from asgiref.sync import AsyncToSync
from channels.layers import BaseChannelLayer

from . import metrics
from .codec import Message, encode
from .config import Config
from .connection import Options, Target
from .exceptions import ChannelFull, ConfigurationError
from .mailbox import Entry, Mailbox
from .metrics import Loss, Stats
from .publisher import SyncPublisher
from .receiver import Receiver
from .sender import Sender, Unwatched
from .session import Session
from .topology import Destination, Topology, durable_options, process_of

T = TypeVar("T")
KNOWN = 10_000  # destinations remembered


class AMQPChannelLayer(BaseChannelLayer):  # type: ignore[misc]  # channels is not typed
    """A channel layer over RabbitMQ. Every option is described in docs/reference/asgi_amqp.md.

    Each long-lived event loop has a session, that is connections, of its own; the loops that `async_to_sync`
    makes for one call share the background session of `publisher`.
    """

    extensions = ["groups", "flush"]

    def __init__(
        self,
        url: str | Iterable[str] = "amqp://guest:guest@127.0.0.1/",
        *,
        prefix: str = "asgi",
        durable: Iterable[str] | Mapping[str, Mapping[str, Any]] = (),
        expiry: float = 60,
        group_expiry: float = 86400,
        capacity: int = 100,
        channel_capacity: Mapping[Any, int] | None = None,
        ssl_ca: str | None = None,
        heartbeat: int = 10,
        connect_timeout: float = 5.0,
        timeout: float = 5.0,
        buffer_bytes: int = 64 * 1024 * 1024,
        queue_bytes: int = 256 * 1024 * 1024,
        gap_type: str | None = None,
        name: str = "asgi_amqp",
    ) -> None:
        super().__init__(expiry=expiry, capacity=capacity)
        self.channel_capacity = self.compile_capacities(channel_capacity or {})
        if not BaseChannelLayer.group_name_regex.match(prefix) or len(prefix) > 50:
            raise ConfigurationError(f"prefix {prefix!r}: at most 50 of letters, digits, - _ and .")
        targets = tuple(Target.parse(each) for each in ([url] if isinstance(url, str) else url))
        if not targets:
            raise ConfigurationError("url: at least one broker URL")
        options = Options(targets, name, heartbeat, connect_timeout, ssl_ca)
        self.prefix = prefix
        self.timeout = timeout
        self.buffer_bytes = buffer_bytes
        self.stats = Stats()
        self._durable = durable_options(durable)
        self._topology = Topology(prefix, expiry)
        self._homes: dict[str, tuple[Mailbox, Receiver]] = {}  # of the process-local channels of all loops
        self._config = Config(
            options,
            self._topology,
            self.stats,
            expiry,
            buffer_bytes,
            queue_bytes,
            group_expiry,
            timeout,
            self.get_capacity,
            gap_type,
            self._homes,
        )
        self._channels: dict[str, Destination] = {}
        self._groups: dict[str, Destination] = {}
        self._sessions: dict[asyncio.AbstractEventLoop, Session] = {}
        self._owners: weakref.WeakValueDictionary[str, Session] = weakref.WeakValueDictionary()
        self.publisher = SyncPublisher(self)
        me = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _forget(me))
        metrics.register(self)

    @property
    def on_loss(self) -> list[Callable[[Loss], None]]:
        """Callables that hear of every loss, in whatever thread finds it; they must be quick and not
        raise.
        """
        return self.stats.hooks

    # Where things go

    def destination(self, channel: str) -> Destination:
        """Where a send to this channel goes. TypeError for a name that is none."""
        known = self._channels.get(channel)
        if known is None:
            self.require_valid_channel_name(channel)
            if "!" in channel:
                known = self._topology.to_process(channel)
            else:
                durable = next(
                    (options for pattern, options in self._durable if pattern.match(channel)), None
                )
                if durable is None:
                    queue = self._topology.normal_queue(channel, self.get_capacity(channel))
                    known = self._topology.to_queue(channel, queue, 1)
                else:
                    queue = self._topology.durable_queue(channel, durable)
                    known = self._topology.to_queue(channel, queue, durable.batch)
            if len(self._channels) >= KNOWN:
                self._channels.clear()
            self._channels[channel] = known
        return known

    def group_destination(self, group: str) -> Destination:
        """Where a group_send to this group goes. TypeError for a name that is none."""
        known = self._groups.get(group)
        if known is None:
            self.require_valid_group_name(group)
            if len(self._groups) >= KNOWN:
                self._groups.clear()
            known = self._groups[group] = self._topology.to_group(group)
        return known

    # Sessions

    def make_session(self) -> Session:
        """A session in the running loop."""
        session = Session(self._config)
        self._owners[session.id] = session
        return session

    def session(self) -> Session:
        """The session of the running loop; a loop of async_to_sync, made for one call, uses the
        background's.
        """
        loop = asyncio.get_running_loop()
        session = self._sessions.get(loop)
        if session is None:
            if loop in AsyncToSync.loop_thread_executors:
                return self.publisher.background.session
            running = self.publisher.running
            if running is not None and loop is running.loop:
                return running.session
            for old in [old for old in self._sessions if old.is_closed()]:
                del self._sessions[old]
            session = self._sessions[loop] = self.make_session()
        return session

    def _living(self, process: str) -> Session | None:
        """The session of this id, if it is of this process and its loop has not ended."""
        session = self._owners.get(process)
        return None if session is None or session.loop.is_closed() else session

    def _owner(self, channel: str) -> Session:
        session = self._living(process_of(channel))
        if session is None:
            raise ValueError(
                f"channel {channel} belongs to another process, or to an event loop that has ended: "
                "only the process that made it with new_channel() can receive on it"
            )
        return session

    async def _in(self, session: Session, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine in the loop of a session."""
        if session.loop is asyncio.get_running_loop():
            return await call()
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(call(), session.loop))

    # The Channels API

    async def send(self, channel: str, message: Message) -> None:
        """Send to a channel. A process-local one: accepted to leave in this turn of the loop. A normal one:
        the broker has it, on disk where the channel is durable; ChannelFull, BrokerUnavailable.
        """
        destination = self._channels.get(channel) or self.destination(channel)
        data = encode(message)
        session = self._sessions.get(get_running_loop())
        if session is None:
            await self._send(destination, data)
        elif destination.confirmed or session.id != destination.key[2:]:
            await session.sender.send(destination, data, self.timeout)
        else:
            box = session.receiver.box(channel)
            if len(box.entries) + box.arriving >= box.capacity:
                raise ChannelFull(f"channel {channel} holds {box.capacity} messages that nobody has read")
            box.arriving += 1
            try:
                await session.sender.send(destination, data, self.timeout)
            except BaseException:
                box.arriving -= 1
                raise

    async def group_send(self, group: str, message: Message) -> None:
        """Send to all channels of a group: one message, however many members. Accepted to leave in this
        turn.
        """
        destination = self._groups.get(group) or self.group_destination(group)
        session = self._sessions.get(get_running_loop())
        if session is None:
            await self._send(destination, encode(message))
        else:
            await session.sender.send(destination, encode(message), self.timeout)

    async def send_many(self, events: Iterable[tuple[str, Message]]) -> None:
        """Send (channel, message) pairs, all under way at once, in order for each channel; back when the
        broker has those for normal channels. When some fail, the first error is raised after all are settled.
        """
        session = self.session()
        ready = [(self.destination(channel), encode(message)) for channel, message in events]
        await self._in(session, lambda: session.sender.send_many(ready, self.timeout))

    async def _send(self, destination: Destination, data: bytes) -> None:
        session = self.session()
        await self._in(session, lambda: session.sender.send(destination, data, self.timeout))

    async def new_channel(self, prefix: str = "specific") -> str:
        """A process-local channel that others can reach once this returns."""
        session = self.session()
        name = f"{prefix}.{session.id}!{secrets.token_hex(8)}"
        self.require_valid_channel_name(name)

        async def make() -> None:
            await session.receiver.ready(self.timeout)
            session.receiver.box(name)

        await self._in(session, make)
        return name

    async def group_add(self, group: str, channel: str) -> None:
        """Add a channel to a group; back when the next group_send will reach it.

        A normal channel is joined by this process, which sends on what the group gets: it leaves with the
        process.
        """
        self.require_valid_group_name(group)
        destination = self.destination(channel)
        owner = self._living(destination.key[2:])
        if destination.queue is not None:
            mine = self.session()
            forward = _Forward(mine.sender, destination, self.timeout)
            await self._in(mine, lambda: mine.receiver.group_add(group, channel, forward, self.timeout))
        elif owner is not None:
            box = owner.receiver.box(channel)
            await self._in(owner, lambda: owner.receiver.group_add(group, channel, box, self.timeout))
        else:
            mine = self.session()
            request = {"type": "group_add", "group": group, "channel": channel}
            await self._in(mine, lambda: mine.ask(process_of(channel), request, self.timeout))

    async def group_discard(self, group: str, channel: str) -> None:
        """Take a channel out of a group; nothing happens when it is not in it."""
        self.require_valid_group_name(group)
        destination = self.destination(channel)
        owner = self._living(destination.key[2:])
        if destination.queue is None and owner is None:
            mine = self.session()
            await self._in(mine, lambda: mine.discard_elsewhere(process_of(channel), group, channel))
            return
        session = owner or self.session()

        async def discard() -> None:
            session.receiver.group_discard(group, channel)

        await self._in(session, discard)

    async def flush(self) -> None:
        """Empty everything that this process knows of: its channels, its groups, the normal channels it has
        used.
        """
        queues = [known.queue.name for known in self._channels.values() if known.queue is not None]
        for session in list(self._owners.values()):
            flush = functools.partial(session.flush, queues)
            await self._in(session, flush)

    async def receive(self, channel: str) -> Message:
        """The next message of a channel. Cancelled, it loses none."""
        home = self._homes.get(channel)
        if home is not None:
            box, receiver = home
            if receiver.thread == get_ident():
                entry = box.take()
                if entry is None and receiver.loop is get_running_loop():
                    entry = await receiver.receive(box)
                if entry is not None:
                    return entry[0].copy() if entry[3] else entry[0]
        self.require_valid_channel_name(channel)
        if "!" not in channel:
            mine, queue = self.session(), self.destination(channel).queue
            assert queue is not None
            return _open(await self._fetch(mine, lambda: mine.reader(queue).get()))
        session = self._owner(channel)
        return _open(await self._fetch(session, lambda: session.receiver.get(channel)))

    async def _fetch(
        self, session: Session, call: Callable[[], Coroutine[Any, Any, tuple[Entry, Mailbox]]]
    ) -> Entry:
        """A message out of the loop of a session. What the receiver no longer wants goes back to its
        mailbox.
        """
        here = asyncio.get_running_loop()
        if session.loop is here:
            return (await call())[0]
        future: asyncio.Future[tuple[Entry, Mailbox]] = here.create_future()

        def hand_over(entry: Entry, home: Mailbox) -> None:
            if future.done():
                session.loop.call_soon_threadsafe(home.put_first, entry)
            else:
                future.set_result((entry, home))

        def fail(error: Exception) -> None:
            if not future.done():
                future.set_exception(error)

        async def fetch() -> None:
            try:
                entry, home = await call()
            except Exception as error:
                here.call_soon_threadsafe(fail, error)
                return
            try:
                here.call_soon_threadsafe(hand_over, entry, home)
            except RuntimeError:  # that loop has ended
                home.put_first(entry)

        task = asyncio.run_coroutine_threadsafe(fetch(), session.loop)
        try:
            return (await future)[0]
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                hand_over(*future.result())
            task.cancel()
            raise

    def gauges(self) -> dict[str, float]:
        """How full the layer is just now, over all its event loops."""
        total: dict[str, float] = {}
        for session in list(self._owners.values()):
            for what, value in session.gauges().items():
                total[what] = total.get(what, 0) + value
        return total

    async def close(self) -> None:
        """Send what has gathered and disconnect, in all loops that still run."""
        for loop, session in list(self._sessions.items()):
            del self._sessions[loop]
            if loop is asyncio.get_running_loop():
                await session.close()
            elif loop.is_running():
                await self._in(session, session.close)
        await asyncio.get_running_loop().run_in_executor(None, self.publisher.close)

    def forget(self) -> None:
        """In the child of a fork: connections, loops and channels are the parent's."""
        self._sessions.clear()
        self._owners.clear()
        self._homes.clear()
        self.publisher.forget()


class _Forward:
    """A normal channel as a member of a group."""

    def __init__(self, sender: Sender, destination: Destination, timeout: float) -> None:
        self._sender = sender
        self._destination = destination
        self._timeout = timeout

    def put(self, entries: list[Entry], size: int) -> None:
        for entry in entries:
            ticket = Unwatched(time.monotonic() + self._timeout, self._sender.stats)
            self._sender.submit(self._destination, encode(entry.message), ticket)


def _open(entry: Entry) -> Message:
    """The message for its reader, who may change it: a shared one is copied (not what it holds)."""
    if entry.taken is not None:
        entry.taken()
    return entry.message.copy() if entry.share else entry.message


def _forget(layer: "weakref.ref[AMQPChannelLayer]") -> None:
    target = layer()
    if target is not None:
        target.forget()
