"""Stand-ins for a link to a broker and its wires: they note what they are told, and answer when told to."""

import asyncio

from pamqp.commands import Basic

from asgi_amqp import connection
from asgi_amqp.options import Options, Target
from asgi_amqp.transport import Delivery

OPTIONS = Options((Target.parse("amqp://a"), Target.parse("amqp://b"), Target.parse("amqp://c")), "test")


class Channel:
    """aiormq's: every call is noted, waits for `gate`, and raises what `failing` has for its name."""

    def __init__(self):
        self.calls = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.failing = {}
        self.closing = asyncio.get_running_loop().create_future()
        self.on_consumer_cancel_callbacks = set()

    def __getattr__(self, name):
        async def call(*arguments, **options):
            self.calls.append((name, *arguments))
            await self.gate.wait()
            if name in self.failing:
                raise self.failing[name]

        return call

    def named(self, name):
        return [arguments for called, *arguments in self.calls if called == name]


class Wire:
    def __init__(self, link, callbacks):
        self.channel = Channel()
        self.link = link
        self.callbacks = callbacks
        self.published = []
        self.answers = []
        self.consuming = []
        self.ended = False

    @property
    def closed(self):
        return self.ended or self.link.lost.done()

    async def consume(self, queue, *, prefetch=0, **options):
        self.consuming.append((queue, prefetch))
        return f"tag-{len(self.consuming)}"

    async def cancel(self, tag):
        self.answers.append(("cancel", tag))

    def publish(self, exchange, keys, body, tag=0, **options):
        self.published.append((list(keys), body, tag))
        return b""

    def ask(self):
        self.answers.append("ask")

    def opened(self, tag):
        pass

    def ack(self, tag):
        self.answers.append(("ack", tag))

    def tell(self):
        self.answers.append("tell")

    def ack_all(self, tag):
        self.answers.append(("ack", tag))

    def reject(self, tag, *, requeue):
        self.answers.append(("reject", tag, requeue))

    def give_back(self, tag):
        self.answers.append(("nack", tag))

    def give_up(self, reason):
        self.link.give_up(reason)

    async def close(self):
        self.ended = True

    def deliver(self, body, tag=1, redelivered=False, headers=None):
        self.callbacks["on_delivery"](Delivery(body, tag, redelivered, Basic.Properties(headers=headers)))


class Link(connection.Link):
    """`wires` in the order in which they were opened; calls of `attempt` go to `passing`."""

    unwritten, blocked, plain = 0, False, False

    def __init__(self, target=OPTIONS.targets[0], generation=1):
        self.target = target
        self.generation = generation
        self.lost = asyncio.get_running_loop().create_future()
        self.steps = 0
        self.wires = []
        self.passing = Channel()
        self.closed = False
        self._tasks = set()

    async def wire(self, *, passing=False, **callbacks):
        self.wires.append(Wire(self, callbacks))
        return self.wires[-1]

    async def attempt(self, call):
        return await self.own(call(self.passing))

    def keep(self, wire):
        pass

    def write(self, data):
        pass

    def give_up(self, reason):
        if not self.lost.done():
            self.lost.set_result(reason)

    async def watch(self, heartbeat):
        return await asyncio.shield(self.lost)

    async def close(self, deadline=2.0):
        self.closed = True
        self.give_up("closed")
        for task in list(self._tasks):
            task.cancel()

    def abort(self):
        self.closed = True


class Brokers:
    """Stands for `connect`: what each attempt finds, in turn; the last again and again. A Link class, an
    error, or a coroutine function."""

    def __init__(self, monkeypatch, *found):
        self.found = list(found) or [Link]
        self.tried = []
        self.links = []
        monkeypatch.setattr("asgi_amqp.supervisor.connect", self.connect)
        monkeypatch.setattr("asgi_amqp.supervisor.RETRY_FIRST", 0.001)
        monkeypatch.setattr("asgi_amqp.supervisor.RETRY_MOST", 0.002)

    async def connect(self, target, options, generation, patience=1.0):
        self.tried.append(target.host)
        found = self.found.pop(0) if len(self.found) > 1 else self.found[0]
        if isinstance(found, Exception):
            raise found
        self.links.append(found(target, generation))
        return self.links[-1]


async def until(condition, seconds=5.0):
    """Wait for a condition, by the loop's turns."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.001)
