"""A model of RabbitMQ: queues, streams, and connections that end between any two frames.

It is what `aiormq.Connection` would be, so the layer's own `connection`, `supervisor`, `sender`, `receiver`,
`consumer` and `stream` run on it unchanged (on the path without frames of their own). It holds to what
RabbitMQ promises and to nothing more: a quorum queue keeps what it confirmed; a stream confirms what a loss
of power may take; offsets skip one now and then; a delivery that was not acknowledged comes again, first.
"""

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import aiormq
from pamqp.commands import Basic

from tests.simulation.loop import Chance

process: contextvars.ContextVar["Process"] = contextvars.ContextVar("process")
"""Whose code runs."""


class Process:
    """Something that can be killed: from then on nothing that its code does has any effect."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.dead = False
        self.unreachable = False  # a link that was cut stays cut until this is healed

    def start(self, coroutine) -> asyncio.Task:
        """Run code as this process."""
        return self.do(asyncio.get_running_loop().create_task, coroutine)

    def do(self, call: Callable, *arguments, **named):
        """Call something as this process: the tasks that it makes are this process's too."""
        context = contextvars.copy_context()
        context.run(process.set, self)
        return context.run(call, *arguments, **named)


@dataclass(eq=False)
class Message:
    body: bytes
    headers: dict
    attempts: int = 0


@dataclass(eq=False)
class Consumer:
    channel: "Channel"
    tag: str
    queue: "Queue | Stream"
    callback: Callable
    prefetch: int
    no_ack: bool
    at: int = 0  # the next offset of a stream
    unacknowledged: int = 0

    @property
    def hungry(self) -> bool:
        return self.no_ack or not self.prefetch or self.unacknowledged < self.prefetch


class Queue:
    def __init__(self, name: str, arguments: dict, owner: "Connection | None") -> None:
        self.name = name
        self.owner = owner  # of an exclusive queue: it ends with this connection
        self.quorum = arguments.get("x-queue-type") == "quorum"
        self.single = bool(arguments.get("x-single-active-consumer"))
        self.limit = arguments.get("x-delivery-limit") if self.quorum else None
        self.dead = arguments.get("x-dead-letter-routing-key")
        self.most = arguments.get("x-max-length")
        self.messages: deque[Message] = deque()
        self.consumers: deque[Consumer] = deque()

    def __len__(self) -> int:
        return len(self.messages)

    def __bool__(self) -> bool:
        return True


class Stream:
    """`log` holds (offset, chunk, body); `synced` is the offset up to which a loss of power takes nothing."""

    def __init__(self, name: str, chance: Chance) -> None:
        self.name = name
        self.log: list[tuple[int, int, bytes]] = []
        self.next = 0
        self.synced = -1
        self.consumers: list[Consumer] = []
        self._chance = chance
        self._chunk = 0

    def __len__(self) -> int:
        return len(self.log)

    def __bool__(self) -> bool:
        return True

    def append(self, body: bytes) -> None:
        if self._chance.often(0.02):
            self.next += 1  # a record of the broker's own
        if self._chance.often(0.7):
            self._chunk += 1
        self.log.append((self.next, self._chunk, body))
        self.next += 1

    def start(self, wanted: int | str) -> int:
        """The offset that a reader begins with."""
        if wanted == "first":
            return self.log[0][0] if self.log else 0
        if wanted == "last":
            last = self.log[-1][1] if self.log else 0
            return next((offset for offset, chunk, _ in self.log if chunk == last), self.next)
        assert isinstance(wanted, int)
        return min(wanted, self.next)  # beyond the end is clamped to it

    def cut(self, keep: int) -> int:
        """Lose what lies behind `keep`, an offset; how many messages."""
        before = len(self.log)
        self.log = [entry for entry in self.log if entry[0] <= keep]
        self.next = self.log[-1][0] + 1 if self.log else 0
        return before - len(self.log)


class Broker:
    """The whole of RabbitMQ. Faults: `cut`, `down`, `up`, `lose_power`, `forget`."""

    def __init__(self, seed: int) -> None:
        self.chance = Chance.of(seed, "broker")
        self.seed = seed
        self.queues: dict[str, Queue] = {}
        self.streams: dict[str, Stream] = {}
        self.bindings: dict[str, set[str]] = {}  # routing key: queues
        self.connections: set[Connection] = set()
        self.running = True
        self.homeless = float("-inf")  # until then, streams are there and cannot be used
        self.slow = 1.0  # what every delay is multiplied with
        self.counted: dict[str, int] = {}
        self._numbers = 0

    def count(self, what: str, number: int = 1) -> None:
        self.counted[what] = self.counted.get(what, 0) + number

    # Faults

    def cut(self, which: Callable[["Connection"], bool] = lambda each: True) -> int:
        """End connections; how many."""
        ending = [each for each in sorted(self.connections, key=lambda each: each.number) if which(each)]
        for each in ending:
            each.cut()
        return len(ending)

    def down(self) -> None:
        self.running = False
        self.cut()

    def up(self) -> None:
        self.running = True

    def lose_power(self) -> int:
        """All brokers at once: queues keep what they confirmed, streams what was synced, perhaps some more;
        how many messages of streams are lost."""
        self.down()
        lost = 0
        for stream in self.streams.values():
            if stream.log:
                lost += stream.cut(self.chance.randint(min(stream.synced, stream.next - 1), stream.next - 1))
        self.count("messages lost with the power", lost)
        return lost

    def sync(self) -> None:
        """What the streams hold is on disk."""
        for stream in self.streams.values():
            stream.synced = stream.next - 1

    def retain(self, name: str, count: int) -> int:
        """Retention: a stream forgets its oldest messages, but for the last `count`; how many."""
        stream = self.streams[name]
        before = len(stream.log)
        stream.log = stream.log[-count:]
        return before - len(stream.log)

    def delete(self, name: str) -> None:
        """Somebody deletes a stream: its readers are told."""
        stream = self.streams.pop(name)
        for consumer in stream.consumers:
            consumer.channel.cancelled(consumer)

    def kill(self, dying: Process) -> None:
        """A process ends between two lines."""
        dying.dead = True
        self.cut(lambda each: each.process is dying)

    # Queues

    def find(self, name: str) -> "Queue | Stream | None":
        return self.streams.get(name) or self.queues.get(name)

    def at_home(self, name: str) -> "Queue | Stream | None":
        """Likewise, or the error of a stream whose own broker has not come back yet."""
        if name in self.streams and asyncio.get_running_loop().time() < self.homeless:
            raise aiormq.ChannelNotFoundEntity(f"home node of durable queue {name} is down")
        return self.find(name)

    def declare(self, name: str, arguments: dict, owner: "Connection | None") -> "Queue | Stream":
        found = self.find(name)
        if found is None:
            if arguments.get("x-queue-type") == "stream":
                found = self.streams[name] = Stream(name, Chance.of(self.seed, f"stream {name}"))
            else:
                found = self.queues[name] = Queue(name, arguments, owner)
        return found

    def route(self, exchange: str, keys: list[str]) -> "list[Queue | Stream]":
        names = keys if exchange == "" else [n for key in keys for n in sorted(self.bindings.get(key, ()))]
        return [found for name in dict.fromkeys(names) if (found := self.find(name)) is not None]

    def publish(self, exchange: str, keys: list[str], body: bytes, headers: dict) -> str:
        """`confirmed`, `refused` or `returned`."""
        found = self.route(exchange, keys)
        if not found:
            return "returned"
        for queue in found:
            if isinstance(queue, Queue) and queue.most is not None and len(queue) >= queue.most:
                return "refused"
        for queue in found:
            if isinstance(queue, Stream):
                queue.append(body)
            else:
                queue.messages.append(Message(body, headers))
            self.dispatch(queue)
        return "confirmed"

    def dispatch(self, queue: "Queue | Stream") -> None:
        if isinstance(queue, Stream):
            for consumer in list(queue.consumers):
                self.feed(queue, consumer)
            return
        while queue.messages:
            first = [*queue.consumers][:1] if queue.single else queue.consumers
            ready = [each for each in first if each.hungry]
            if not ready:
                return
            consumer = ready[0]
            queue.consumers.rotate(0 if queue.single else -1)
            message = queue.messages.popleft()
            headers = dict(message.headers)
            if message.attempts and queue.quorum:
                headers["x-delivery-count"] = message.attempts
            consumer.channel.deliver(consumer, message, message.body, bool(message.attempts), headers)

    def feed(self, stream: Stream, consumer: Consumer) -> None:
        log = stream.log
        low, high = 0, len(log)
        while low < high:  # the first at or behind consumer.at
            middle = (low + high) // 2
            low, high = (middle + 1, high) if log[middle][0] < consumer.at else (low, middle)
        while low < len(log) and consumer.hungry:
            offset, _, body = log[low]
            consumer.at = offset + 1
            consumer.channel.deliver(consumer, None, body, False, {"x-stream-offset": offset})
            low += 1

    def requeue(self, queue: Queue, messages: list[Message], failed: bool) -> None:
        """Back to the front, in their order; `failed`: one attempt more."""
        for message in reversed(messages):
            message.attempts += failed
            if queue.limit is not None and message.attempts > queue.limit:
                self.count("dead-lettered")
                dead = self.queues.get(queue.dead or "")
                if dead is not None:
                    dead.messages.append(message)
                continue
            queue.messages.appendleft(message)

    def number(self) -> int:
        self._numbers += 1
        return self._numbers


class Pipe:
    """One direction of a connection: what goes in comes out in order, a moment later, each for itself or
    several at once."""

    def __init__(self, connection: "Connection", name: str) -> None:
        self._connection = connection
        self._chance = Chance.of(connection.broker.seed, f"{connection.number} {name}")
        self._last = 0.0
        self._packet: list[Callable[[], None]] = []

    def send(self, arrive: Callable[[], None], extra: float = 0.0) -> None:
        if self._packet and not extra and self._chance.often(0.5):
            self._packet.append(arrive)
            return
        loop = asyncio.get_running_loop()
        delay = self._chance.expovariate(1 / 0.0008)
        if self._chance.often(0.01):
            delay += self._chance.uniform(0, 0.2)
        self._last = max(self._last + 1e-6, loop.time() + (delay + extra) * self._connection.broker.slow)
        self._packet = [arrive]
        loop.call_at(self._last, self._come, self._packet)

    def _come(self, packet: list[Callable[[], None]]) -> None:
        if packet is self._packet:
            self._packet = []
        for arrive in packet:
            arrive()


class Connection:
    """`aiormq.Connection`, as far as the layer uses it."""

    def __init__(self, url, transport_factory=None, client_properties=None) -> None:
        self.broker = broker.get()
        self.process = process.get()
        self.number = self.broker.number()
        self.name = url.query.get("name", "")
        self.connection_tune = SimpleNamespace(frame_max=131072, channel_max=2047, heartbeat=60)
        self.closing: asyncio.Future = asyncio.get_running_loop().create_future()
        self.alive = False
        self.up, self.down = Pipe(self, "up"), Pipe(self, "down")
        self.channels: dict[int, Channel] = {}

    def _reachable(self) -> bool:
        return self.broker.running and not self.process.unreachable and not self.process.dead

    async def connect(self) -> None:
        if self.process.dead:
            await asyncio.get_running_loop().create_future()
        await asyncio.sleep(0.002 * self.broker.slow)
        if not self._reachable():
            raise ConnectionRefusedError(111, "refused")
        self.alive = True
        self.broker.connections.add(self)

    async def close(self) -> None:
        self.cut()

    def cut(self) -> None:
        """The broker sees the end at once; this side when what was on its way has arrived."""
        if not self.alive:
            return
        self.alive = False
        self.broker.connections.discard(self)
        for channel in self.channels.values():
            channel.ended_at_broker()
        for queue in [each for each in self.broker.queues.values() if each.owner is self]:
            del self.broker.queues[queue.name]
            for queues in self.broker.bindings.values():
                queues.discard(queue.name)
        if not self.process.dead:
            self.down.send(lambda: self.process.do(self._ended))

    def _ended(self) -> None:
        error = ConnectionResetError("the connection is gone")
        for channel in list(self.channels.values()):
            channel.ended(error)
        if not self.closing.done():
            self.closing.set_exception(error)
            self.closing.exception()

    async def channel(self, number: int, publisher_confirms: bool = True) -> "Channel":
        channel = self.channels[number] = Channel(self, number, publisher_confirms)
        await channel.call(lambda: None)
        return channel

    def upwards(self, act: Callable[[], None]) -> None:
        """To the broker, unless the connection ends first."""
        self.up.send(lambda: act() if self.alive else None)

    def downwards(self, act: Callable[[], None], extra: float = 0.0) -> None:
        """To this side, as its process: also what was on its way when the connection ended."""
        self.down.send(
            lambda: None if self.process.dead or self.closing.done() else self.process.do(act), extra
        )


class Channel:
    """aiormq's channel."""

    def __init__(self, connection: Connection, number: int, confirms: bool) -> None:
        self.connection = connection
        self.number = number
        self.confirms = confirms
        self.closing: asyncio.Future = asyncio.get_running_loop().create_future()
        self.on_consumer_cancel_callbacks: set = set()
        self.open_at_broker = True
        self.consumers: dict[str, Consumer] = {}
        self.unacknowledged: dict[int, tuple[Consumer, Message | None]] = {}
        self.prefetch = 0
        self._tag = 0
        self._waiting: set[asyncio.Future] = set()

    @property
    def broker(self) -> Broker:
        return self.connection.broker

    @property
    def is_closed(self) -> bool:
        return self.closing.done()

    # The ends

    def ended(self, error: BaseException | None) -> None:
        """This side knows that the channel is closed."""
        if self.connection.channels.get(self.number) is self:
            del self.connection.channels[self.number]
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_exception(error or RuntimeError("the channel is closed"))
                waiter.exception()
        if not self.closing.done():
            if error is None:
                self.closing.set_result(None)
            else:
                self.closing.set_exception(error)
                self.closing.exception()

    def ended_at_broker(self) -> None:
        if not self.open_at_broker:
            return
        self.open_at_broker = False
        for consumer in self.consumers.values():
            if consumer in consumer.queue.consumers:
                consumer.queue.consumers.remove(consumer)
        held: dict[Queue, list[Message]] = {}
        for consumer, message in self.unacknowledged.values():
            if message is not None:
                held.setdefault(consumer.queue, []).append(message)
        self.unacknowledged.clear()
        for queue, messages in held.items():
            self.broker.requeue(queue, messages, failed=True)
        for queue in {consumer.queue: None for consumer in self.consumers.values()}:
            self.broker.dispatch(queue)

    # Calls

    async def call(self, act: Callable):
        """Have the broker do something, and its answer. An aiormq error that it raises closes the channel."""
        if self.closing.done() or self.connection.closing.done():
            raise RuntimeError("the channel is closed")
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.add(waiter)

        def answered(result, error):
            if error is not None:
                self.ended(error)
            if waiter.done():
                return
            waiter.set_result(result) if error is None else waiter.set_exception(error)

        def at_broker():
            if not self.open_at_broker:
                return
            result = error = None
            try:
                result = act()
            except aiormq.AMQPError as problem:
                error = problem
                self.ended_at_broker()
            self.connection.downwards(lambda: answered(result, error))

        self.connection.upwards(at_broker)
        try:
            return await waiter
        finally:
            self._waiting.discard(waiter)

    async def close(self) -> None:
        def act():
            self.ended_at_broker()

        try:
            await self.call(act)
        finally:
            self.ended(None)

    async def exchange_declare(self, exchange, **options):
        await self.call(lambda: None)

    async def queue_declare(self, name, *, passive=False, durable=False, exclusive=False, arguments=None):
        def act():
            found = self.broker.at_home(name)
            if found is None and passive:
                raise aiormq.ChannelNotFoundEntity(f"no queue {name}")
            owner = self.connection if exclusive else None
            found = found or self.broker.declare(name, arguments or {}, owner)
            return SimpleNamespace(message_count=len(found), queue=name)

        return await self.call(act)

    async def queue_bind(self, queue, exchange, key, nowait=False, **options):
        def act():
            self.broker.bindings.setdefault(key, set()).add(queue)

        if nowait:
            self.connection.upwards(act)
        else:
            await self.call(act)

    async def queue_unbind(self, queue, exchange, key, **options):
        await self.call(lambda: self.broker.bindings.get(key, set()).discard(queue))

    async def queue_purge(self, name, **options):
        await self.call(lambda: self.broker.queues[name].messages.clear())

    async def queue_delete(self, name, **options):
        def act():
            self.broker.queues.pop(name, None)
            self.broker.streams.pop(name, None)

        await self.call(act)

    async def basic_qos(self, *, prefetch_count=0, **options):
        def act():
            self.prefetch = prefetch_count
            for consumer in self.consumers.values():
                consumer.prefetch = prefetch_count

        await self.call(act)

    async def basic_consume(self, name, callback, *, no_ack=False, arguments=None, **options):
        tag = f"{self.connection.number}.{self.number}.{self.broker.number()}"

        def act():
            found = self.broker.at_home(name)
            if found is None:
                raise aiormq.ChannelNotFoundEntity(f"no queue {name}")
            consumer = Consumer(self, tag, found, callback, self.prefetch, no_ack)
            self.consumers[tag] = consumer
            if isinstance(found, Stream):
                consumer.at = found.start((arguments or {}).get("x-stream-offset", "next"))
            found.consumers.append(consumer)
            # What it is sent comes behind the answer.
            asyncio.get_running_loop().call_soon(self.broker.dispatch, found)
            return SimpleNamespace(consumer_tag=tag)

        return await self.call(act)

    async def basic_cancel(self, tag, **options):
        def act():
            consumer = self.consumers.get(tag)
            if consumer is not None and consumer in consumer.queue.consumers:
                consumer.queue.consumers.remove(consumer)
                self.broker.dispatch(consumer.queue)

        await self.call(act)

    async def basic_publish(self, body, *, exchange="", routing_key="", properties=None, mandatory=False):
        properties = properties or Basic.Properties()
        headers = dict(properties.headers or {})
        keys = [routing_key, *headers.pop("CC", ())]
        if self.closing.done():
            raise RuntimeError("the channel is closed")
        if not self.confirms:
            self.connection.upwards(lambda: self._take(exchange, keys, body, headers))
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.add(waiter)

        def at_broker():
            if not self.open_at_broker:
                return
            outcome = self._take(exchange, keys, body, headers)
            self.connection.downwards(lambda: waiter.done() or waiter.set_result(outcome), extra=0.002)

        self.connection.upwards(at_broker)
        try:
            outcome = await waiter
        finally:
            self._waiting.discard(waiter)
        if outcome == "returned" and mandatory:
            raise aiormq.exceptions.PublishError(SimpleNamespace(delivery=Basic.Return()), Basic.Return())
        if outcome == "refused":
            raise aiormq.exceptions.DeliveryError(None, Basic.Nack())

    def _take(self, exchange, keys, body, headers) -> str:
        return self.broker.publish(exchange, keys, body, headers) if self.open_at_broker else ""

    # Deliveries

    def deliver(self, consumer, message, body, redelivered, headers) -> None:
        self._tag += 1
        tag = self._tag
        if not consumer.no_ack:
            self.unacknowledged[tag] = consumer, message
            consumer.unacknowledged += 1
        properties = Basic.Properties(headers=headers)
        arrived = SimpleNamespace(
            body=body,
            delivery_tag=tag,
            redelivered=redelivered,
            header=SimpleNamespace(properties=properties),
        )

        def here():
            if not self.closing.done():
                coroutine = consumer.callback(arrived)
                try:
                    coroutine.send(None)
                except StopIteration:
                    return
                raise AssertionError("a callback of deliveries waits for something")

        self.connection.downwards(here)

    def cancelled(self, consumer) -> None:
        """The broker ends a consumer."""
        frame = Basic.Cancel(consumer_tag=consumer.tag)
        self.connection.downwards(lambda: [call(frame) for call in list(self.on_consumer_cancel_callbacks)])

    def _settle(self, tag: int, multiple: bool, how: str) -> None:
        tags = [each for each in self.unacknowledged if each <= tag] if multiple else [tag]
        back: dict[Queue, list[Message]] = {}
        queues = {}
        for each in tags:
            found = self.unacknowledged.pop(each, None)
            if found is None:
                continue
            consumer, message = found
            consumer.unacknowledged -= 1
            queues[consumer.queue] = None
            if how in ("reject", "nack") and message is not None:
                back.setdefault(consumer.queue, []).append(message)
        for queue, messages in back.items():
            self.broker.requeue(queue, messages, failed=how == "reject")
        for queue in queues:
            self.broker.dispatch(queue)

    async def basic_ack(self, tag, multiple=False, wait=True):
        self.connection.upwards(lambda: self._settle(tag, multiple, "ack"))

    async def basic_nack(self, tag, multiple=False, requeue=True, wait=True):
        self.connection.upwards(lambda: self._settle(tag, multiple, "nack" if requeue else "drop"))

    async def basic_reject(self, tag, requeue=True, wait=True):
        self.connection.upwards(lambda: self._settle(tag, False, "reject" if requeue else "drop"))


broker: contextvars.ContextVar[Broker] = contextvars.ContextVar("broker")
"""The one that connections go to."""
