"""The receiving half of a session, in one event loop: one process queue, the groups bound to it, mailboxes,
and normal channels.

After a reconnect everything is declared again from what is here, under a new queue name, and every local
channel is told that it may have missed something.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from . import codec
from .bindings import Bindings
from .config import Config
from .connection import ANSWER, Link, unasked
from .consumer import Consumer
from .exceptions import LayerError
from .inbox import Inbox, wait
from .mailboxes import Mailbox, Mailboxes, Member
from .supervisor import Supervisor
from .topology import Queue
from .transport import Delivery
from .wire import Wire

log = logging.getLogger("asgi_amqp")

STEP = 1000  # groups that are bound with one answer: a deadline begins anew with each
EXPIRE = 20  # times in the expiry that what has expired is thrown away: it lives a twentieth longer at most


class Receiver:
    """See the module. `process` is the id in the names of this session's channels; `control` hears what other
    processes ask of this one.
    """

    def __init__(self, process: str, config: Config, control: Callable[[codec.Message], None]) -> None:
        self.loop = asyncio.get_running_loop()
        self.thread = threading.get_ident()
        self.process = process
        self.stats = config.stats
        self.mailboxes = Mailboxes(config, self.stats.lose, control)
        self.supervisor = Supervisor(config.options.named("consumes"), self._setup, self._lost, self._failed)
        self._config = config
        self.topology = config.topology
        self._wire: Wire | None = None
        self.queue_name = ""
        self._bindings = Bindings()
        self._joining: dict[str, asyncio.Future[None]] = {}  # groups that somebody waits for
        self._pending: dict[tuple[str, str], set[object]] = {}  # joins under way that made the membership
        self._binder: asyncio.Task[None] | None = None
        self._linger: asyncio.TimerHandle | None = None
        self.consumers: set[Consumer] = set()
        self._inboxes: dict[str, Inbox] = {}
        self._connected_before = False
        self._sweep()
        self._expire()

    # Channels

    def box(self, channel: str) -> Mailbox:
        """The mailbox of a process-local channel of this session."""
        home = self._config.homes.get(channel)
        if home is None:
            home = self._config.homes[channel] = self.mailboxes.open(channel, time.monotonic()), self
        return home[0]

    async def open(self, channel: str) -> Mailbox:
        """`box`, to be called from another loop."""
        box = self.box(channel)
        box.read_at = time.monotonic()  # somebody is about to
        return box

    async def receive(self, box: Mailbox) -> codec.Message:
        """The oldest message of a mailbox, once there is one. LayerError when there will be none."""
        while (message := box.take(time.monotonic())) is None:
            if self._wire is None:
                self.supervisor.begin()
            await wait(box)
        return message

    async def inbox(self, queue: Queue) -> Inbox:
        """The inbox of a normal channel."""
        inbox = self._inboxes.get(queue.name)
        if inbox is None:
            inbox = Inbox(self, queue, self._config.expiry, self._config.timeout)
            self._inboxes[queue.name] = inbox
        inbox.box.read_at = time.monotonic()  # somebody is about to
        return inbox

    # Groups

    async def group_add(self, group: str, channel: str, member: Member, timeout: float) -> None:
        """Join; back when the next group_send will reach the channel. Failed or cancelled, it leaves the
        membership as it was.
        """
        key, me = (group, channel), object()
        if self.mailboxes.join(group, channel, member) or key in self._pending:
            self._pending.setdefault(key, set()).add(me)
        self._bindings.want(group)
        try:
            if group not in self._bindings.bound:
                await self._bound(group, timeout)
            self._pending.pop(key, None)
        except BaseException:
            pending = self._pending.get(key, set())
            if me in pending:
                pending.remove(me)
                if not pending:
                    self.group_discard(group, channel)
            raise

    async def _bound(self, group: str, timeout: float) -> None:
        """Until the group is bound. The binding itself is nobody's: who stops waiting disturbs no other."""
        self.supervisor.begin()
        self._bind()
        future = self._joining.get(group)
        if future is None:
            future = self._joining[group] = self.loop.create_future()
        done, _ = await asyncio.wait([future], timeout=timeout)
        if not done:
            raise self.supervisor.unavailable(timeout)
        future.result()

    def group_discard(self, group: str, channel: str) -> None:
        self._pending.pop((group, channel), None)
        if self.mailboxes.leave(group, channel):
            self._bindings.unwant(group, time.monotonic())
            self._joined(group)  # who still waits for it has been taken out
            self._bind()

    def _bind(self) -> None:
        """See to it that what is bound becomes what is wanted, now or when it is due."""
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None
        if self._wire is None or (self._binder is not None and not self._binder.done()):
            return
        due = self._bindings.due
        if due <= time.monotonic():
            self._binder = self.loop.create_task(self._work(self._wire))
        elif due < float("inf"):
            self._linger = self.loop.call_later(due - time.monotonic(), self._bind)

    async def _work(self, wire: Wire) -> None:
        """Bind and unbind, many at a time: the broker answers in order, so the last answer is for all. What
        a step has bound need not wait for the next."""
        try:
            while wire is self._wire:
                bind, unbind = self._bindings.start(time.monotonic())
                if not bind and not unbind:
                    break
                calls = [(group, True) for group in bind] + [(group, False) for group in unbind]
                for first in range(0, len(calls), STEP):
                    await self._call(wire, calls[first : first + STEP])
        except Exception as error:  # most often the link is gone, and its heir binds all
            wire.give_up(f"a group could not be bound: {error!r}")
        finally:
            self._binder = None
        self._bind()

    async def _call(self, wire: Wire, calls: list[tuple[str, bool]]) -> None:
        with unasked():
            async with asyncio.timeout(ANSWER):
                for number, (group, bound) in enumerate(calls, 1):
                    if bound:
                        await self._queue_bind(wire, group, answered=number == len(calls))
                    else:
                        await wire.channel.queue_unbind(*self._where(group))
        if wire is self._wire:
            for group, bound in calls:
                self._bindings.finished(group, time.monotonic(), bound=bound)
                if bound:
                    self._joined(group)

    def _where(self, group: str) -> tuple[str, str, str]:
        return self.queue_name, self.topology.exchange, self.topology.group_key(group)

    async def _queue_bind(self, wire: Wire, group: str, *, answered: bool) -> None:
        if answered:
            await wire.channel.queue_bind(*self._where(group))
        else:
            await wire.channel.queue_bind(*self._where(group), nowait=True)

    def _joined(self, group: str) -> None:
        future = self._joining.pop(group, None)
        if future is not None:
            future.set_result(None)

    # What arrives

    def _take_in(self, delivery: Delivery) -> None:
        """A batch from the process queue, to the mailboxes of its targets."""
        self.stats.batches_in += 1
        try:
            pairs = codec.decode(delivery.body)
            self.stats.received += self.mailboxes.deliver(pairs, len(delivery.body), time.monotonic())
        except Exception as error:  # whatever others write into our queue
            log.warning("A message for %s could not be taken in: %r", self.queue_name, error)
            self.stats.lose("undecodable", None)

    def _missed(self, delivery: Delivery) -> None:
        """A message came to the gap queue: this one, and those before it that it replaced there, never
        reached us.
        """
        deaths: Any = delivery.headers.get("x-death") or [{}]
        self._announce("expired" if deaths[0].get("reason") == "expired" else "broker_overflow")

    def _announce(self, reason: str) -> None:
        """Every local channel may have missed something, nobody knows how much."""
        self.stats.lose(reason, None)
        self.mailboxes.announce(reason)

    # The link

    async def _setup(self, link: Link) -> None:
        wire = await link.wire(on_delivery=self._take_in)
        channel, topology = wire.channel, self.topology
        self.queue_name = topology.process_queue(self.process, link.generation)
        gap_queue = topology.gap_queue(self.queue_name)
        await channel.exchange_declare(topology.exchange, exchange_type="direct", durable=True)
        await channel.queue_declare(gap_queue, exclusive=True, arguments=topology.gap_arguments())
        await channel.queue_declare(
            self.queue_name,
            exclusive=True,
            arguments=topology.process_arguments(self.queue_name, self._config.queue_bytes),
        )
        groups = list(self.mailboxes.groups)
        for number, group in enumerate(groups, 1):
            await self._queue_bind(wire, group, answered=number % STEP == 0)
            link.steps = number // STEP
        await channel.queue_bind(self.queue_name, topology.exchange, topology.process_key(self.process))
        if self._connected_before:  # before what comes after it
            self._announce("reconnect")
        await wire.consume(self.queue_name, no_ack=True)

        def missed(delivery: Delivery) -> None:
            gaps.ack(delivery.tag)
            self._missed(delivery)

        # One at a time: who cannot keep up must not be sent all that was dropped for it.
        gaps = await link.wire(on_delivery=missed)
        await gaps.consume(gap_queue, prefetch=1)
        for consumer in list(self.consumers):
            consumer.follow(link)
        self._bindings.up(groups, time.monotonic())
        for group in groups:
            self._joined(group)
        self._wire = wire
        self._bind()
        self._connected_before = True

    def _lost(self, link: Link, reason: str) -> None:
        if self._wire is not None:
            self.stats.reconnects += 1
        self._wire = None
        self._bindings.down()
        for consumer in list(self.consumers):
            consumer.lost(None)

    def _failed(self, error: LayerError) -> None:
        """Trying again cannot help: whoever waits must know."""
        for box in self.mailboxes.boxes.values():
            box.fail(error)
        for consumer in list(self.consumers):
            consumer.lost(error)
        self.consumers.clear()
        for future in self._joining.values():
            future.set_exception(error)
            future.exception()  # it may be that nobody waits any more
        self._joining.clear()

    def _expire(self) -> None:
        """Throw away what has expired; who reads does not look at the clock."""
        self.mailboxes.expire(time.monotonic())
        self._expirer = self.loop.call_later(max(0.05, self._config.expiry / EXPIRE), self._expire)

    def _sweep(self) -> None:
        """Forget channels that nobody reads, with their memberships."""
        now = time.monotonic()
        forgotten = {box.channel for box in self.mailboxes.sweep(now)}
        self._unhome(forgotten)
        if forgotten:
            for group, members in list(self.mailboxes.groups.items()):
                for channel in forgotten.intersection(members):
                    self.group_discard(group, channel)
        for name, inbox in list(self._inboxes.items()):
            inbox.box.expire(now)
            if inbox.idle and now - inbox.box.read_at > self._config.expiry:
                del self._inboxes[name]
        self._sweeper = self.loop.call_later(max(1.0, self._config.expiry / 2), self._sweep)

    def _unhome(self, channels: Iterable[str]) -> None:
        for channel in channels:
            self._config.homes.pop(channel, None)

    async def flush(self) -> None:
        """Forget all channels, groups and messages."""
        for box in self.mailboxes.boxes.values():
            box.clear()
        for group, members in list(self.mailboxes.groups.items()):
            for member in list(members):
                self.group_discard(group, member)
        for inbox in self._inboxes.values():
            inbox.box.clear()
        if self._wire is not None:
            link = await self.supervisor.link(self._config.timeout)
            await link.attempt(lambda channel: channel.queue_purge(self.queue_name))

    def abandon(self, error: LayerError) -> None:
        """Its loop does not run."""
        self._unhome(self.mailboxes.boxes)
        self.supervisor.abandon(error)

    async def close(self, error: LayerError) -> None:
        """Disconnect; everybody who waits hears `error`."""
        for timer in (self._sweeper, self._expirer, self._linger):
            if timer is not None:
                timer.cancel()
        for inbox in self._inboxes.values():
            inbox.close(error)
        self._failed(error)
        self._unhome(self.mailboxes.boxes)
        self.mailboxes.close(error)
        if self._binder is not None:
            self._binder.cancel()
        self._wire = None
        await self.supervisor.close(error)
