"""Everything at once: emitters, relays, tails, clients, the broker and the database, in one seeded loop.

What runs is the code itself: the channel layer, the relay, the row of epochs, the tail, the hub, its window
and the replays. Modelled are the broker (`broker`), the database's delays and failures (the queries are the
real ones, on SQLite), the network to the clients, and the clients.
"""

import asyncio
import collections
import contextvars
import json
from types import SimpleNamespace
from unittest import mock

from django.db import OperationalError

from asgi_amqp import AMQPChannelLayer, BrokerUnavailable, Options, Position, Target
from asgi_amqp.stream import Stream
from carillon.client import protocol
from carillon.events import heads
from carillon.events.models import Head
from carillon.fanout.forms import envelope
from carillon.fanout.hub import Hub, Listener
from carillon.fanout.replay import Replayer
from carillon.fanout.tail import Tail
from carillon.fanout.window import Window
from carillon.relay.relay import Relay
from tests.simulation.broker import Process, process
from tests.simulation.faults import Faults
from tests.simulation.loop import Chance

CONTEXT = contextvars.copy_context()
"""The context that has the connection to the database: Django makes one for each."""

URL = "amqp://user:password@broker/simulated"
GROUPS = ("a", "b", "c")
QUERIES = ("current", "begin", "reserve", "extend", "note")  # of `heads`
CALM = 9.0  # seconds after the last fault, within which everybody is to be where the others are
UNSURE = {"unavailable", "timeout", "ahead"}  # a server that cannot look says so
PIECE = 1_000
BUDGET = 3_000  # bytes that may wait in a process for a client
WINDOW_BYTES = 6_000  # some twenty events: resumes come from the window and from the stream


class Database:
    """The row of epochs. Its queries are the real ones; when it answers, and whether, is up to the seed."""

    def __init__(self, seed: int) -> None:
        self.chance = Chance.of(seed, "database")
        self.running = True
        CONTEXT.run(Head.objects.all().delete)

    async def ask(self, query, *arguments):
        await self._pass()
        if not self.running:
            raise OperationalError("the database is away")
        answer = CONTEXT.run(query, *arguments)
        await self._pass()
        return answer

    async def _pass(self) -> None:
        await asyncio.sleep(self.chance.expovariate(1 / 0.001))
        if process.get().dead:
            await asyncio.get_running_loop().create_future()

    def wrap(self, function):
        """One of `heads`' queries, asked by way of this database."""

        async def asked(*arguments):
            return await self.ask(function.func, *arguments)

        return asked


class Lines:
    """Version 2's frames, a line each."""

    @staticmethod
    def piece(event, epoch):
        return envelope(event, epoch) + b"\n"

    join = b"".join


class Socket(Listener):
    """One connection of a client to a daphne, and what the session does there. What is written leaves at the
    client's pace, and arrives a moment later, or never."""

    __slots__ = ("_last", "_starved", "client", "daphne", "most_waiting", "open", "speed", "waiting")

    def __init__(self, client, daphne) -> None:
        super().__init__(Lines)
        self.client = client
        self.daphne = daphne
        self.owner = self
        self.open = True
        self.speed = client.chance.choice([1e9, 1e9, 20_000, 500])  # bytes in a second
        self.waiting = self.most_waiting = 0
        self._last = 0.0
        self._starved = False

    # What the hub and the feeder ask

    def write(self, data, number) -> None:
        if not self.live or self.waiting + len(data) > BUDGET:
            self.later(len(data))
        else:
            self.sent = number
            self.put(data)

    def give(self, data, number) -> None:
        self.put(data)

    def room(self) -> bool:
        self._starved = bool(self.waiting)
        return not self.waiting

    def failed(self) -> None:
        self.client.world.wrong(f"{self.client.name} could not be served")

    def recovered(self, at) -> None:
        self.text({"recovered": True, "position": str(at)})

    def lost(self, reason, asked=False) -> None:
        self.text({"recovered": False, "reason": reason, "position": str(self.daphne.hub.position)})

    # The network

    def text(self, frame) -> None:
        self.put(json.dumps(frame).encode() + b"\n")

    def put(self, data: bytes) -> None:
        if self in self.client.world.unsure and b'"event"' in data:
            self.client.world.wrong(f"{self.client.name} hears something while its rights are not known")
        loop = asyncio.get_running_loop()
        self.waiting += len(data)
        self.most_waiting = max(self.most_waiting, self.waiting)
        delay = self.client.chance.expovariate(1 / 0.002)
        self._last = max(self._last + 1e-6, loop.time() + delay) + len(data) / self.speed
        if not self.daphne.process.dead:
            loop.call_at(self._last, self._leave, data)

    def _leave(self, data: bytes) -> None:
        if not self.open or self.daphne.process.dead:
            return
        self.waiting -= len(data)
        for line in data.splitlines():
            self.client.heard(line.decode())
        if self._starved and not self.waiting:
            self._starved = False
            self.daphne.process.do(self.feeder.ready, self)


class Daphne:
    """One process that serves clients: what `Station` puts together."""

    def __init__(self, world, name: str) -> None:
        self.world = world
        self.process = Process(name)
        self.sockets: dict[Socket, None] = {}
        self.ready = False
        self.dead = asyncio.Event()
        self.process.start(self._run())

    async def _run(self):
        world = self.world
        self.hub = Hub(Window(WINDOW_BYTES))
        self.tail = Tail(world.options("tail"), self.hub, heads.current, self._gap)
        self.replayer = self.hub.feeder.log = Replayer(world.options("replay"), self.hub.feeder)
        self.hub.feeder.patience = 10.0
        self.tail.start()
        await self.tail.level.wait()
        self.ready = True

    def _gap(self, reason: str) -> None:
        for socket in list(self.sockets):
            socket.interrupted(self.hub.position)
            socket.lost(reason)

    def leave(self, socket) -> None:
        self.sockets.pop(socket, None)
        socket.end()
        if not self.process.dead:
            self.process.do(self.hub.subscribe, socket, frozenset())


class Client:
    """Hears some groups, remembers where it was as the Python client does, and comes back. It records all
    that it was told."""

    def __init__(self, world, number: int) -> None:
        self.world = world
        self.name = f"client {number}"
        self.chance = Chance.of(world.seed, self.name)
        self.groups = tuple(sorted(self.chance.sample(GROUPS, self.chance.randint(1, 2))))
        self.memory = protocol.Memory()
        self.socket: Socket | None = None
        self.since: float | None = None  # when it first heard its groups
        self.record: list[tuple] = []  # ("event", id, group) and ("told", reason, when)
        self.process = Process(self.name)
        self.process.start(self._run())

    def heard(self, line: str) -> None:
        frame = protocol.classify(line)
        if isinstance(frame, protocol.Welcome):
            self.memory.welcome(frame.position)
        elif isinstance(frame, protocol.Subscription):
            self.since = self.since or asyncio.get_running_loop().time()
        elif isinstance(frame, protocol.Event):
            if self.memory.is_new(frame):
                self.record.append(("event", frame.payload["id"].encode(), frame.group))
        elif isinstance(frame, protocol.Recovery):
            self.memory.settled(frame.position)
            if not frame.whole:
                self.record.append(("told", frame.reason, asyncio.get_running_loop().time()))
        else:
            self.world.wrong(f"{self.name} was sent {line}")

    async def _run(self):
        while True:
            await asyncio.sleep(self.chance.uniform(0.01, 0.3))
            ready = [each for each in self.world.daphnes if each.ready and not each.process.dead]
            if ready:
                await self._stay(self.chance.choice(ready))
                await asyncio.sleep(0 if self.world.calm else self.chance.choice([0, 0.1, 2.0]))

    async def _stay(self, daphne) -> None:
        """One connection: what a session does with `{"groups": …, "since": …}`, and some time to listen."""
        socket = self.socket = Socket(self, daphne)
        hub, since = daphne.hub, self.memory.since
        if self.world.calm:
            socket.speed = 1e9
        daphne.sockets[socket] = None
        daphne.process.do(hub.subscribe, socket, frozenset())
        socket.text({"accept": True, "user": 1, "position": str(hub.position)})
        socket.text({"groups_current": self.groups})
        if since is not None:
            self.memory.asked(since)
        groups = frozenset(name.encode() for name in self.groups)
        daphne.process.do(hub.subscribe, socket, groups, None if since is None else Position.parse(since))
        seconds = self.chance.uniform(0.2, 5)
        leaving = asyncio.ensure_future(self.world.over.wait() if self.world.calm else asyncio.sleep(seconds))
        dying = asyncio.ensure_future(daphne.dead.wait())
        await asyncio.wait([leaving, dying], return_when=asyncio.FIRST_COMPLETED)
        leaving.cancel()
        dying.cancel()
        socket.open = False
        self.socket = None
        daphne.leave(socket)
        if socket.most_waiting > BUDGET + PIECE + 2_000:
            self.world.wrong(f"{socket.most_waiting} bytes waited for {self.name}")


class Emitter:
    """Emits numbered events, again and again until each is accepted."""

    def __init__(self, world, number: int) -> None:
        self.world = world
        self.name = f"emitter {number}"
        self.chance = Chance.of(world.seed, self.name)
        self.number = 0
        self.pending: dict[bytes, float] = {}
        self.process = Process(self.name)
        self.task = self.process.start(self._run())

    async def _run(self):
        self.layer = self.world.layer()
        while True:
            for _ in range(self.chance.choice([1, 1, 2, 6])):
                await self.emit(self.chance.choice(GROUPS))
            await asyncio.sleep(1.0 if self.world.calm else self.chance.expovariate(1 / 0.2))

    async def emit(self, group: str) -> bytes:
        self.number += 1
        id = f"{self.name[8:]:>4}{self.number:>12}".encode()
        text = json.dumps({"id": id.decode(), "text": "x" * self.chance.choice([1, 50, 600])})
        message = {"id": id, "group": group, "text": text, "audience": None, "stamp": 1}
        self.world.begun[id] = asyncio.get_running_loop().time(), group
        while True:
            try:
                await self.layer.send("notifications", message)
            except BrokerUnavailable:
                await asyncio.sleep(0.05)
            else:
                self.world.accepted[id] = asyncio.get_running_loop().time()
                return id


class Runworker:
    def __init__(self, world, name: str) -> None:
        self.world = world
        self.process = Process(name)
        self.task = self.process.start(self._run())

    async def _run(self):
        self.relay = Relay()
        await self.relay.run()


class World(Faults):
    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.database = Database(seed)
        self.heads = {name: self.database.wrap(getattr(heads, name)) for name in QUERIES}
        layer = self.layer()
        reached = SimpleNamespace(
            options=self.options,
            topology=lambda: layer._topology,
            queue=lambda: layer.destination("notifications").queue,
            declaration=Stream,
        )
        self.patches = [
            *(mock.patch(f"carillon.fanout.{module}.PIECE", PIECE) for module in ("cursor", "hub")),
            *(mock.patch.object(heads, name, query) for name, query in self.heads.items()),
            mock.patch("carillon.relay.relay.broker", reached),
        ]
        self.unsure: dict[Socket, int] = {}  # whose rights are not known
        self.calm = False
        self.over = asyncio.Event()
        self.last: dict[str, bytes] = {}  # of each group, when all is calm
        self.begun: dict[bytes, tuple[float, str]] = {}
        self.accepted: dict[bytes, float] = {}
        self.runworkers = [Runworker(self, f"runworker {n}") for n in (1, 2)]
        self.daphnes = [Daphne(self, f"daphne {n}") for n in (1, 2)]
        self.emitters = [Emitter(self, n) for n in range(2)]
        self.clients = [Client(self, n) for n in range(4)]

    def options(self, name: str) -> Options:
        return Options((Target.parse(URL),), name)

    def layer(self) -> AMQPChannelLayer:
        return AMQPChannelLayer(URL, durable={"notifications": {"single": True, "delivery_limit": None}})

    # Faults

    @property
    def victims(self) -> list[Process]:
        return [each.process for each in (*self.runworkers, *self.daphnes) if not each.process.dead]

    async def kill_runworker(self) -> None:
        place = self.chance.randrange(len(self.runworkers))
        old = self.runworkers[place]
        if not old.process.dead:
            self.kill(old)
            await asyncio.sleep(self.chance.uniform(0.1, 3))
            self.runworkers[place] = Runworker(self, f"{old.process.name}'")
            self.say(f"{old.process.name}' starts")

    async def kill_daphne(self) -> None:
        place = self.chance.randrange(len(self.daphnes))
        old = self.daphnes[place]
        if not old.process.dead:
            self.kill(old)
            old.dead.set()
            await asyncio.sleep(self.chance.uniform(0.1, 3))
            self.daphnes[place] = Daphne(self, f"{old.process.name}'")
            self.say(f"{old.process.name}' starts")

    def kill(self, what) -> None:
        self.say(f"{what.process.name} is killed")
        self.broker.kill(what.process)

    async def rights(self) -> None:
        """Somebody's rights change: nothing is written to it until they are known."""
        daphne = self.chance.choice(self.daphnes)
        held = [socket for socket in daphne.sockets if self.chance.often(0.5)]
        self.say(f"{daphne.process.name} holds {len(held)} clients")
        for socket in held:
            socket.hold(daphne.hub.position)
            self.unsure[socket] = self.unsure.get(socket, 0) + 1
        await asyncio.sleep(self.chance.uniform(0, 1))
        for socket in held:
            self.unsure[socket] -= 1
            if self.unsure[socket]:
                continue
            del self.unsure[socket]
            if socket in daphne.sockets:
                socket.release()
                daphne.process.do(daphne.hub.feeder.ready, socket)

    async def database_away(self) -> None:
        self.say("the database is away")
        self.database.running = False
        await asyncio.sleep(self.chance.uniform(0.1, 3))
        self.database.running = True
        self.say("the database is back")

    # The run

    async def run(self, seconds: float = 6.0) -> None:
        """Faults, then calm; then one last event for each group, which everybody must hear soon."""
        syncing = asyncio.get_running_loop().create_task(self._sync())
        kinds = [self.kill_runworker, self.kill_daphne, self.cut, self.broker_away, self.slow, self.rights,
                 self.rights, self.database_away, self.partition]  # fmt: skip
        if self.chance.often(0.5):
            kinds += [self.power, self.power, self.power, self.retention, self.stream_deleted]
        await self.suffer(seconds, kinds)
        self.calm = True
        self.say("all is calm")
        await asyncio.sleep(CALM)
        for emitter in self.emitters:
            emitter.task.cancel()
        await asyncio.gather(*(emitter.task for emitter in self.emitters), return_exceptions=True)
        emitter = self.emitters[0]
        for group in GROUPS:
            self.last[group] = await asyncio.wait_for(emitter.process.start(emitter.emit(group)), 5)
        await asyncio.sleep(1)
        syncing.cancel()
        self.over.set()

    async def _sync(self):
        """The brokers write to disk now and then."""
        while True:
            await asyncio.sleep(self.chance.uniform(0.2, 2.0))
            if self.broker.running:
                self.broker.sync()

    def problems(self) -> list[str]:
        """What should not be so, in words."""
        found = list(self.found)
        for client in self.clients:
            found += [f"{client.name}: {problem}" for problem in self._problems_of(client)]
        return found

    def _problems_of(self, client):
        seen: collections.Counter = collections.Counter()
        newest: dict = {}
        for kind, id, *rest in client.record:
            if kind != "event":
                continue
            seen[id] += 1
            if seen[id] > 1:
                # What the log lost with the power comes again from the queue, under another number: a process
                # that had not read it before cannot know that a client has.
                if self.begun[id][0] > self.lost_at:
                    yield f"{id!r} came {seen[id]} times"
                continue
            key = id[:4], rest[0]
            if int(id[4:]) <= newest.get(key, 0):
                yield f"{id!r} came after number {newest[key]}"
            newest[key] = int(id[4:])
        if client.since is None:
            yield "it never began"
            return
        tells = [when for kind, _, when in client.record if kind == "told"]
        reasons = {reason for kind, reason, _ in client.record if kind == "told"} - UNSURE
        if reasons and self.lost_at < 0:
            yield f"it was told {reasons}, and nothing was lost"
        for id, when in self.accepted.items():
            begun, group = self.begun[id]
            if group not in client.groups or begun < client.since or id in seen:
                continue
            if not any(told >= begun for told in tells):
                yield f"{id!r} of group {group}, accepted at {when:.3f}, never came, and nothing was said"
        for group in client.groups:
            if self.last[group] not in seen:
                yield f"it is deaf: the last event of group {group} did not come"
