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
<<<<<<< HEAD
from .connection import ANSWER, Link, Wire
from .consumer import Consumer, Received
from .exceptions import LayerError
from .inbox import Inbox
from .mailboxes import Mailbox, Mailboxes, Member
from .supervisor import Supervisor
=======
from .connection import Link, Supervisor, Wire, describe
from .declare import declare
from .exceptions import BrokerUnavailable, ConfigurationError, LayerError
from .frames import ACK, NACK, Delivery, answer
from .mailbox import Budget, Entry, Mailbox, Share
>>>>>>> edges
from .topology import Queue
from .transport import Delivery

log = logging.getLogger("asgi_amqp")


async def wait(box: Mailbox) -> None:
    """Until there may be something to take. Cancelled, it wakes the next reader instead: nothing is lost."""
    if box.closed is not None:
        raise box.closed
    waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    box.waiters.append(waiter)
    try:
        await waiter
    except asyncio.CancelledError:
        box.forsaken(waiter, woken=not waiter.cancelled())
        raise


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
        self._topology = config.topology
        self._wire: Wire | None = None
<<<<<<< HEAD
        self.queue_name = ""
        self._bindings = Bindings()
        self._joining: dict[str, asyncio.Future[None]] = {}  # groups that somebody waits for
        self._pending: dict[tuple[str, str], int] = {}  # joins under way that made the membership
        self._binder: asyncio.Task[None] | None = None
        self._linger: asyncio.TimerHandle | None = None
        self._consumers: set[Consumer] = set()
        self._inboxes: dict[str, Inbox] = {}
=======
        self._bound: set[str] = set()
        self._binding: dict[str, asyncio.Task[None]] = {}
        self._subscriptions: set[Subscription] = set()
        self._tasks: set[asyncio.Task[None]] = set()
>>>>>>> edges
        self._connected_before = False
        self._sweeper = self.loop.call_later(max(1.0, config.expiry / 2), self._sweep)

    # Channels

    def box(self, channel: str) -> Mailbox:
        """The mailbox of a process-local channel of this session."""
        home = self._config.homes.get(channel)
        if home is None:
            home = self._config.homes[channel] = self.mailboxes.open(channel, time.monotonic()), self
        return home[0]

    async def open(self, channel: str) -> Mailbox:
        """`box`, to be called from another loop."""
        return self.box(channel)

    async def receive(self, box: Mailbox) -> codec.Message:
        """The oldest message of a mailbox, once there is one. LayerError when there will be none."""
        while (message := box.take(time.monotonic())) is None:
            if self._wire is None:
                if self.supervisor.hopeless is not None:
                    raise self.supervisor.hopeless
                self.supervisor.start()
            await wait(box)
        return message

    async def inbox(self, queue: Queue) -> Inbox:
        """The inbox of a normal channel."""
        inbox = self._inboxes.get(queue.name)
        if inbox is None:
            inbox = self._inboxes[queue.name] = Inbox(
                self.consumer, self.drop, self.stats.lose, queue, self._config.expiry, self._config.timeout
            )
        return inbox

    async def fetch(self, inbox: Inbox) -> codec.Message:
        """The next message of a normal channel."""
        inbox.readers += 1
        try:
            while (message := inbox.box.take(time.monotonic())) is None:
                await inbox.ready()
                if not inbox.box.count:  # it may have come while we subscribed
                    await wait(inbox.box)
            return message
        finally:
            inbox.readers -= 1
            inbox.arm()

    def consumer(
        self,
        queue: Queue,
        prefetch: int,
        on_message: Callable[[Received], None],
        on_lost: Callable[[LayerError | None], None],
    ) -> Consumer:
        """A consumer of a normal channel over all links, until it is dropped."""
        consumer = Consumer(self.supervisor, self._topology, self.stats, queue, prefetch, on_message, on_lost)
        self._consumers.add(consumer)
        return consumer

    async def drop(self, consumer: Consumer) -> None:
        """End a consumer; what was delivered and not acknowledged goes back to the queue."""
        self._consumers.discard(consumer)
        await consumer.stop()

    async def ready(self, timeout: float) -> None:
        """Until this process can be reached: its queue is declared and consumed."""
        await self.supervisor.link(timeout)

    # Groups

    async def group_add(self, group: str, channel: str, member: Member, timeout: float) -> None:
<<<<<<< HEAD
        """Join; back when the next group_send will reach the channel. Failed or cancelled, it leaves the
        membership as it was.
        """
        key = (group, channel)
        if self.mailboxes.join(group, channel, member) or key in self._pending:
            self._pending[key] = self._pending.get(key, 0) + 1
        self._bindings.want(group)
        try:
            if group not in self._bindings.bound:
                await self._bound(group, timeout)
            self._pending.pop(key, None)
        except BaseException:
            if key in self._pending:
                self._pending[key] -= 1
                if not self._pending[key]:
                    self.group_discard(group, channel)
            raise

    async def _bound(self, group: str, timeout: float) -> None:
        """Until the group is bound. The binding itself is nobody's: who stops waiting disturbs no other."""
        if self.supervisor.hopeless is not None:
            raise self.supervisor.hopeless
        self.supervisor.start()
        self._bind()
        future = self._joining.get(group)
        if future is None:
            future = self._joining[group] = self.loop.create_future()
        done, _ = await asyncio.wait([future], timeout=timeout)
        if not done:
            raise self.supervisor.unavailable(timeout)
        future.result()
=======
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
            async with asyncio.timeout_at(self.loop.time() + deadline - time.monotonic()):
                await asyncio.shield(task)
        except TimeoutError:
            raise BrokerUnavailable(f"group {group} is not bound: the broker does not answer") from None

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
        except (ConnectionError, LookupError, RuntimeError, LayerError):
            await asyncio.sleep(
                0.02
            )  # the link is gone, which is known a moment later: the caller looks again
>>>>>>> edges

    def group_discard(self, group: str, channel: str) -> None:
        self._pending.pop((group, channel), None)
        if self.mailboxes.leave(group, channel):
            self._bindings.unwant(group, time.monotonic())
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
        """Bind and unbind, many at a time: the broker answers in order, so the last answer is for all."""
        try:
            while wire is self._wire:
                bind, unbind = self._bindings.start(time.monotonic())
                if not bind and not unbind:
                    break
                calls = [(group, True) for group in bind] + [(group, False) for group in unbind]
                async with asyncio.timeout(ANSWER):
                    for number, (group, bound) in enumerate(calls, 1):
                        where = self.queue_name, self._topology.exchange, self._topology.group_key(group)
                        if not bound:
                            await wire.channel.queue_unbind(*where)
                        elif number < len(calls):
                            await wire.channel.queue_bind(*where, nowait=True)
                        else:
                            await wire.channel.queue_bind(*where)
                if wire is self._wire:
                    for group, bound in calls:
                        self._bindings.finished(group, time.monotonic(), bound=bound)
                        if bound:
                            self._joined(group)
        except Exception as error:  # most often the link is gone, and its heir binds all
            wire.give_up(f"a group could not be bound: {error!r}")
        finally:
            self._binder = None
        self._bind()

    def _joined(self, group: str) -> None:
        future = self._joining.pop(group, None)
        if future is not None:
            future.set_result(None)

<<<<<<< HEAD
    # What arrives
=======
        self._spawn(unbind())

    def _spawn(self, coroutine: "asyncio._CoroutineLike[None]") -> "asyncio.Task[None]":
        task = self.loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
>>>>>>> edges

    def _take_in(self, delivery: Delivery) -> None:
        """A batch from the process queue, to the mailboxes of its targets."""
        self.stats.batches_in += 1
        try:
            pairs = codec.decode(delivery.body)
            self.stats.received += self.mailboxes.deliver(pairs, len(delivery.body), time.monotonic())
        except Exception as error:  # whatever others write into our queue
            log.warning("A message for %s could not be taken in: %r", self.queue_name, error)
            self.stats.lose("undecodable", None)

<<<<<<< HEAD
=======
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

>>>>>>> edges
    def _missed(self, delivery: Delivery) -> None:
        """A message came to the gap queue: this one, and those before it that it replaced there, never
        reached us.
        """
        deaths: Any = delivery.headers.get("x-death") or [{}]
        self._announce("expired" if deaths[0].get("reason") == "expired" else "broker_overflow")

<<<<<<< HEAD
    def _announce(self, reason: str) -> None:
        """Every local channel may have missed something, nobody knows how much."""
        self.stats.lose(reason, None)
        self.mailboxes.announce(reason)
=======
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
                            await asyncio.shield(consuming)
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
>>>>>>> edges

    # The link

    async def _setup(self, link: Link) -> None:
        wire = await link.wire(on_delivery=self._take_in)
        channel, topology = wire.channel, self._topology
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
        for group in groups:
            key = topology.group_key(group)
            await channel.queue_bind(self.queue_name, topology.exchange, key, nowait=True)
        await channel.queue_bind(self.queue_name, topology.exchange, topology.process_key(self.process))
        await wire.consume(self.queue_name, no_ack=True)

        def missed(delivery: Delivery) -> None:
            self._missed(delivery)
            gaps.ack(delivery.tag)

        # One at a time: who cannot keep up must not be sent all that was dropped for it.
        gaps = await link.wire(on_delivery=missed)
        await gaps.consume(gap_queue, prefetch=1)
        for consumer in list(self._consumers):
            await consumer.attach(link)
        self._bindings.up(groups, time.monotonic())
        for group in groups:
            self._joined(group)
        self._wire = wire
        self._bind()
        if self._connected_before:
            self._announce("reconnect")
        self._connected_before = True

<<<<<<< HEAD
=======
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

            await asyncio.shield(self._spawn(purge()))

    def _announce(self, reason: str) -> None:
        """Every local channel may have missed something, nobody knows how much."""
        self.stats.lose(reason, None)
        for box in self.boxes.values():
            box.arriving = 0
            gap = self._config.gap(reason, None)
            if gap is not None:
                box.announce(gap)

>>>>>>> edges
    def _lost(self, link: Link, reason: str) -> None:
        self.stats.reconnects += 1
        self._wire = None
        self._bindings.down()
        for consumer in list(self._consumers):
            consumer.lost(None)

    def _failed(self, error: LayerError) -> None:
        """Trying again cannot help: whoever waits must know."""
        for box in self.mailboxes.boxes.values():
            box.fail(error)
        for consumer in list(self._consumers):
            consumer.lost(error)
        self._consumers.clear()
        for future in self._joining.values():
            future.set_exception(error)
            future.exception()  # it may be that nobody waits any more
        self._joining.clear()

    def _sweep(self) -> None:
        """Forget channels that nobody reads, with their memberships."""
        forgotten = {box.channel for box in self.mailboxes.sweep(time.monotonic())}
        self._unhome(forgotten)
        if forgotten:
            for group, members in list(self.mailboxes.groups.items()):
                for channel in forgotten.intersection(members):
                    self.group_discard(group, channel)
        for inbox in self._inboxes.values():
            inbox.box.expire(time.monotonic())
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
            async with link.attempt() as channel:
                await channel.queue_purge(self.queue_name)

    async def close(self, error: LayerError) -> None:
        """Disconnect; everybody who waits hears `error`."""
        for timer in (self._sweeper, self._linger):
            if timer is not None:
                timer.cancel()
        for inbox in self._inboxes.values():
            inbox.close(error)
        self._failed(error)
        self._unhome(self.mailboxes.boxes)
        self.mailboxes.close(error)
        if self._binder is not None:
            self._binder.cancel()
        await self.supervisor.close(error)
