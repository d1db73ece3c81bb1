"""The receiving half of a session: one process queue, the groups bound to it, mailboxes, and normal channels.

Runs in one event loop. A group costs the broker a binding when its first local member joins and loses it
some seconds after the last has left, so that people who come and go cost nothing. After a reconnect
everything is declared again from what is here, under a new queue name, and every local channel is told that
it may have missed something.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import Any, Protocol

from aiormq.exceptions import AMQPError

from . import codec
from .config import Config
from .connection import CLOSED, Link, Supervisor, Wire, describe, end
from .declare import declare
from .exceptions import BrokerUnavailable, ConfigurationError, LayerError
from .frames import ACK, NACK, Delivery, answer
from .mailbox import Budget, Entry, Mailbox, Share
from .topology import Queue

log = logging.getLogger("asgi_amqp")

LINGER = 5.0  # seconds for which a group without local members stays bound


@dataclass(frozen=True, slots=True)
class Received:
    """One AMQP message of a normal channel: its events, and the way to acknowledge it."""

    messages: list[codec.Message]
    delivery: Delivery
    wire: Wire
    link: Link

    def ack(self) -> None:
        """Done. On a link that is gone nothing happens: the broker has already given it to someone else."""
        self._answer(ACK, 0)

    def refuse(self, *, requeue: bool) -> None:
        """Back to the queue, one attempt more; or, without requeue, to the dead-letter queue."""
        self._answer(NACK, 2 * requeue)

    def _answer(self, method: int, bits: int) -> None:
        if not self.link.lost.done() and not self.wire.is_closed:
            self.link.write(answer(self.wire.number, method, self.delivery.tag, bits))

    @property
    def attempts(self) -> int:
        """How often it has been delivered before."""
        count = self.delivery.headers.get("x-delivery-count", 0)
        return max(count if isinstance(count, int) else 0, int(self.delivery.redelivered))


@dataclass(eq=False, slots=True)
class Subscription:
    """A normal channel that is consumed on every link until it is cancelled. At most `prefetch` are
    unacknowledged.

    `on_lost` is called when the link goes: what was not acknowledged will be delivered again. With an error
    no link will come and the subscription has ended.
    """

    queue: Queue
    prefetch: int
    on_message: Callable[[Received], None]
    on_lost: Callable[[LayerError | None], None]
    wire: Wire | None = None
    tag: str = ""
    active: asyncio.Event = field(default_factory=asyncio.Event)


class Member(Protocol):
    """What a group hands its messages to."""

    def put(self, entries: list[Entry], size: int) -> None: ...


class Receiver:
    """See the module. `process` is the id in the names of this session's channels; `control` hears what other
    processes ask of this one.
    """

    def __init__(self, process: str, config: Config, control: Callable[[codec.Message], None]) -> None:
        self.loop = asyncio.get_running_loop()
        self.process = process
        self.boxes: dict[str, Mailbox] = {}
        self.groups: dict[str, dict[str, Member]] = {}
        self.budget = Budget(config.buffer_bytes)
        self.supervisor = Supervisor(config.connect("consumes"), self._setup, self._lost, self._failed)
        self.stats = config.stats
        self._config = config
        self._control = control
        self._expiry = config.expiry
        self._topology = config.topology
        self.thread = threading.get_ident()
        self._wire: Wire | None = None
        self._bound: set[str] = set()
        self._binding: dict[str, asyncio.Task[None]] = {}
        self._subscriptions: set[Subscription] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._connected_before = False
        self._sweeper = self.loop.call_later(max(1.0, self._expiry / 2), self._sweep)

    # Local channels and groups

    def box(self, channel: str) -> Mailbox:
        """The mailbox of a process-local channel of this session."""
        box = self.boxes.get(channel)
        if box is None:
            box = self.boxes[channel] = Mailbox(
                self._config.capacity(channel),
                self.budget,
                lambda reason, count: self._dropped(channel, reason, count),
            )
            self._config.homes[channel] = box, self
        return box

    def _dropped(self, channel: str, reason: str, count: int) -> None:
        self.stats.lose(reason, count, channel)
        gap = self._config.gap(reason, count)
        if gap is not None and channel in self.boxes:
            self.boxes[channel].announce(gap)

    async def get(self, channel: str) -> tuple[Entry, Mailbox]:
        """The next message of a process-local channel, and its mailbox."""
        box = self.box(channel)
        return await self.receive(box), box

    async def receive(self, box: Mailbox) -> Entry:
        """The oldest message of a mailbox, once there is one. ConfigurationError when there will be none."""
        while (entry := box.take()) is None:
            if self._wire is None:
                if isinstance(self.supervisor.problem, ConfigurationError):
                    await self.supervisor.link(self._expiry)
                self.supervisor.start()
            await box.wait(self.loop)
        return entry

    async def ready(self, timeout: float) -> None:
        """Until this process can be reached: its queue is declared and consumed."""
        await self.supervisor.link(timeout)

    async def group_add(self, group: str, channel: str, member: Member, timeout: float) -> None:
        """Join; back when the next group_send will reach the channel."""
        before = self.groups.get(group, {}).get(channel)
        self.groups.setdefault(group, {})[channel] = member
        deadline = time.monotonic() + timeout
        try:
            while group not in self._bound:
                await self.supervisor.link(max(0.0, deadline - time.monotonic()))
                if group not in self._bound:
                    await self._bind(group, deadline)
        except BaseException:
            if before is None:
                self.group_discard(group, channel)
            raise

    async def _bind(self, group: str, deadline: float) -> None:
        """Bind once, however many join at the same time, and to the end even when they are cancelled: aiormq
        closes the channel under a call that is, and the link of all would go with it.
        """
        task = self._binding.get(group)
        if task is None:
            task = self._binding[group] = self._spawn(self._bind_once(group))
            task.add_done_callback(lambda _: self._binding.pop(group))
            # Its callers may all be gone when it fails.
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            await self._end_of(task, deadline - time.monotonic())
        except TimeoutError:
            raise BrokerUnavailable(f"group {group} is not bound: the broker does not answer") from None

    @staticmethod
    async def _end_of(task: "asyncio.Task[None]", timeout: float | None = None) -> None:
        """Wait for a task that goes on if its caller is cancelled."""
        done, _ = await asyncio.wait([task], timeout=timeout)
        if not done:
            raise TimeoutError
        if task.cancelled():
            raise BrokerUnavailable(CLOSED)
        task.result()

    async def _bind_once(self, group: str) -> None:
        """A link that dies meanwhile ends it, and its heir binds all."""
        wire = self._wire
        try:
            if wire is None:
                raise LookupError
            await wire.queue_bind(self._queue_name, self._topology.exchange, self._topology.group_key(group))
            if wire is self._wire:
                self._bound.add(group)
                if group not in self.groups:  # whoever wanted it has been cancelled
                    self.loop.call_later(LINGER, self._unbind, group)
        except Exception:
            # The link is gone, which is known a moment later: the caller looks again. (aiormq ends what waits
            # for an answer of such a link with a bare Exception.)
            await asyncio.sleep(0.02)

    def group_discard(self, group: str, channel: str) -> None:
        members = self.groups.get(group)
        if members is None or members.pop(channel, None) is None or members:
            return
        del self.groups[group]
        self.loop.call_later(LINGER, self._unbind, group)

    def _unbind(self, group: str) -> None:
        wire = self._wire
        if group in self.groups or group not in self._bound or wire is None:
            return
        self._bound.discard(group)

        async def unbind() -> None:
            with contextlib.suppress(Exception):  # a lost link has nothing bound
                await wire.queue_unbind(
                    self._queue_name, self._topology.exchange, self._topology.group_key(group)
                )

        self._spawn(unbind())

    def _spawn(self, coroutine: "asyncio._CoroutineLike[None]") -> "asyncio.Task[None]":
        task = self.loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _take_in(self, delivery: Delivery) -> None:
        """A batch from the process queue, to the mailboxes of its targets."""
        self.stats.batches_in += 1
        try:
            self._deliver(list(codec.decode(delivery.body)), len(delivery.body))
        except Exception as error:  # whatever others write into our queue
            log.warning("a message for %s could not be taken in: %r", self._queue_name, error)
            self.stats.lose("undecodable", None)

    def _deliver(self, pairs: list[tuple[str, codec.Message]], length: int) -> None:
        expires = time.monotonic() + self._expiry
        size = length // max(1, len(pairs))
        for target, run in groupby(pairs, itemgetter(0)):
            if not target:
                for _, message in run:
                    self._control(message)
            elif "!" in target:
                box = self.box(target)
                entries = [Entry(message, expires, size) for _, message in run]
                box.arriving = max(0, box.arriving - len(entries))
                box.put(entries, size * len(entries))
                self.stats.received += len(entries)
            else:
                members = self.groups.get(target)
                if members:
                    several = len(members) > 1
                    entries = [
                        Entry(message, expires, size, Share() if several else None) for _, message in run
                    ]
                    for member in members.values():
                        member.put(entries, size * len(entries))
                    self.stats.received += len(entries) * len(members)

    def _missed(self, delivery: Delivery) -> None:
        """A message came to the gap queue: this one, and those before it that it replaced there, never
        reached us.
        """
        deaths: Any = delivery.headers.get("x-death") or [{}]
        self._announce("expired" if deaths[0].get("reason") == "expired" else "broker_overflow")

    # Normal channels

    async def subscribe(
        self,
        queue: Queue,
        prefetch: int,
        on_message: Callable[[Received], None],
        on_lost: Callable[[LayerError | None], None],
        timeout: float,
    ) -> Subscription:
        """Consume a normal channel from now on, over reconnects; back when the broker has agreed."""
        subscription = Subscription(queue, prefetch, on_message, on_lost)
        self._subscriptions.add(subscription)
        consuming: asyncio.Task[None] | None = None
        problem = "the broker does not answer"
        try:
            async with asyncio.timeout(timeout):
                while not subscription.active.is_set():
                    link = await self.supervisor.link(timeout)
                    try:
                        if subscription.wire is None:
                            consuming = self._spawn(self._consume(link, subscription))
                            await self._end_of(consuming)
                        await subscription.active.wait()
                    except (
                        AMQPError,
                        OSError,
                        RuntimeError,
                    ) as error:  # the link is lost: again with the next
                        problem = describe(error)
                        await asyncio.sleep(0.05)
        except TimeoutError:
            self._spawn(self._abandon(subscription, consuming))
            raise BrokerUnavailable(f"{queue.name} not consumed within {timeout:g} s: {problem}") from None
        except BaseException:
            self._spawn(self._abandon(subscription, consuming))
            raise
        return subscription

    async def _abandon(self, subscription: Subscription, consuming: "asyncio.Task[None] | None") -> None:
        """Nobody waits for it any more. What has been asked of the broker is answered first: a call that is
        cancelled would take the link along.
        """
        self._subscriptions.discard(subscription)
        if consuming is not None:
            await asyncio.wait([consuming])
            consuming.cancelled() or consuming.exception()
        await self._unsubscribe(subscription)

    async def _consume(self, link: Link, subscription: Subscription) -> None:
        await declare(link, self._topology, subscription.queue)

        def on_delivery(delivery: Delivery) -> None:
            self.stats.batches_in += 1
            try:
                messages = [message for _, message in codec.decode(delivery.body)]
            except ValueError:
                self.stats.lose("undecodable", None, subscription.queue.key[2:])
                Received([], delivery, wire, link).refuse(requeue=False)
                return
            self.stats.received += len(messages)
            subscription.on_message(Received(messages, delivery, wire, link))

        wire = await link.wire(on_delivery=on_delivery)
        subscription.wire = wire
        subscription.tag = await wire.consume(subscription.queue.name, prefetch=subscription.prefetch)
        subscription.active.set()

    async def pause(self, subscription: Subscription) -> None:
        """No new messages; those delivered can still be acknowledged. Cancelled, it goes on by itself."""
        await asyncio.wait([self._spawn(self._pause(subscription))])

    async def _pause(self, subscription: Subscription) -> None:
        self._subscriptions.discard(subscription)
        if subscription.wire is not None and not subscription.wire.is_closed:
            with contextlib.suppress(Exception):
                await subscription.wire.basic_cancel(subscription.tag, timeout=5)

    async def unsubscribe(self, subscription: Subscription) -> None:
        """Stop; what was delivered and not acknowledged goes back to the queue. Cancelled, it goes on."""
        await asyncio.wait([self._spawn(self._unsubscribe(subscription))])

    async def _unsubscribe(self, subscription: Subscription) -> None:
        await self._pause(subscription)
        if subscription.wire is not None and not subscription.wire.is_closed:
            with contextlib.suppress(Exception):
                subscription.wire.retired = True
                await subscription.wire.close()

    # The link

    async def _setup(self, link: Link) -> None:
        wire = await link.wire(on_delivery=self._take_in, polite=True)
        self._queue_name = self._topology.process_queue(self.process, link.generation)
        await wire.exchange_declare(self._topology.exchange, exchange_type="direct", durable=True)
        gap_queue = self._topology.gap_queue(self._queue_name)
        await wire.queue_declare(
            gap_queue, exclusive=True, arguments={"x-max-length": 1, "x-overflow": "drop-head"}
        )
        await wire.queue_declare(
            self._queue_name,
            exclusive=True,
            arguments=self._topology.process_arguments(self._queue_name, self._config.queue_bytes),
        )
        groups = list(self.groups)
        for group in groups:
            await wire.queue_bind(
                self._queue_name, self._topology.exchange, self._topology.group_key(group), nowait=True
            )
        await wire.queue_bind(
            self._queue_name, self._topology.exchange, self._topology.process_key(self.process)
        )
        await wire.consume(self._queue_name, no_ack=True)

        def missed(delivery: Delivery) -> None:
            self._missed(delivery)
            link.write(answer(gaps.number, ACK, delivery.tag))

        # One at a time: who cannot keep up must not be sent all that was dropped for it.
        gaps = await link.wire(on_delivery=missed)
        await gaps.consume(gap_queue, prefetch=1)
        for subscription in list(self._subscriptions):
            await self._consume(link, subscription)
        self._bound = set(groups)
        self._wire = wire
        if self._connected_before:
            self._announce("reconnect")
        self._connected_before = True

    async def flush(self) -> None:
        """Forget all channels, groups and messages."""
        for box in self.boxes.values():
            box.clear()
        for group, members in list(self.groups.items()):
            for channel in list(members):
                self.group_discard(group, channel)
        if (wire := self._wire) is not None:

            async def purge() -> None:
                await wire.queue_purge(self._queue_name)

            await self._end_of(self._spawn(purge()))

    def _announce(self, reason: str) -> None:
        """Every local channel may have missed something, nobody knows how much."""
        self.stats.lose(reason, None)
        for box in self.boxes.values():
            box.arriving = 0
            gap = self._config.gap(reason, None)
            if gap is not None:
                box.announce(gap)

    def _lost(self, link: Link, reason: str) -> None:
        self.stats.reconnects += 1
        self._wire = None
        self._bound.clear()
        for subscription in self._subscriptions:
            subscription.wire = None
            subscription.active.clear()
            subscription.on_lost(None)

    def _failed(self, error: LayerError) -> None:
        """Trying again cannot help: whoever waits for a message must know."""
        for box in self.boxes.values():
            box.fail(error)
        for subscription in self._subscriptions:
            subscription.on_lost(error)
        self._subscriptions.clear()

    def _sweep(self) -> None:
        """Forget channels that nobody reads: past the expiry when they are empty and in no group, after
        `idle` whatever they hold.
        """
        now = time.monotonic()
        grouped = {channel for members in self.groups.values() for channel in members}
        for channel, box in list(self.boxes.items()):
            box.expire(now)
            unread = 0.0 if box.waiters else now - box.read_at
            empty = not box.entries and channel not in grouped
            if unread > self._config.idle or (unread > self._expiry and empty):
                if box.entries:
                    self.stats.lose("no_receiver", len(box.entries), channel)
                box.clear()
                del self.boxes[channel]
                self._config.homes.pop(channel, None)
                if channel in grouped:
                    for group in [group for group, members in self.groups.items() if channel in members]:
                        self.group_discard(group, channel)
        self._sweeper = self.loop.call_later(max(1.0, self._expiry / 2), self._sweep)

    async def close(self) -> None:
        self._sweeper.cancel()
        for channel in self.boxes:
            self._config.homes.pop(channel, None)
        await self.supervisor.close()
        self._failed(BrokerUnavailable(CLOSED))
        await end(list(self._tasks))
