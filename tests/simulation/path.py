"""Everything at once: emitters, relays, tails, sessions, clients, the broker and the database, in one seeded
loop.

What runs is the code itself: the channel layer, the relay, the row of epochs, the station with its tail, hub,
window and replays, the sessions and the machine of rights. Modelled are the broker (`broker`), the database's
delays and failures (the queries of the row are the real ones, on SQLite), who may hear what (`people`), the
network to the clients, and the clients.
"""

import asyncio
import collections
import contextvars
import json
from types import SimpleNamespace
from unittest import mock

from django.db import OperationalError

from asgi_amqp import AMQPChannelLayer, BrokerUnavailable, Options, Target
from asgi_amqp.stream import Stream
from carillon.client import protocol
from carillon.conf import DEFAULTS
from carillon.events import access, heads
from carillon.events.models import Head
from carillon.fanout.forms import frame
from carillon.fanout.hub import Listener
from carillon.fanout.station import Station
from carillon.relay.relay import Relay
from carillon.sockets.protocol import Limits
from carillon.sockets.session import Session
from carillon.sockets.sockets import Sockets
from tests.simulation.broker import Process, process
from tests.simulation.faults import Faults
from tests.simulation.loop import Chance
from tests.simulation.people import FAMILY, People

CONTEXT = contextvars.copy_context()
"""The context that has the connection to the database: Django makes one for each."""

URL = "amqp://user:password@broker/simulated"
GROUPS = ("bells-1", "bells-2", "bells-3")
QUERIES = ("current", "begin", "reserve", "extend", "note")  # of `heads`
CURRENT = heads.current.func
CALM = 9.0  # seconds after the last fault, within which everybody is to be where the others are
ENDED = "its connection ended"
UNSURE = {"unavailable", "timeout", "ahead", ENDED}  # a server that cannot look says so
PIECE = 1_000
BUDGET = 3_000  # bytes that may wait in a process for a client
SETTINGS = {
    **DEFAULTS,
    "WINDOW_BYTES": 6_000,  # some twenty events: resumes come from the window and from the stream
    "RESUME_SECONDS": 10.0,
}

MEMORIES: tuple[type, ...] = (protocol.Memory,)
"""What the clients remember by, in turns: `simulate --browser` has every second one be a page."""


class Database:
    """The row of epochs. Its queries are the real ones; when it answers, and whether, is up to the seed."""

    def __init__(self, seed: int) -> None:
        self.chance = Chance.of(seed, "database")
        self.running = True
        self.slow = 1.0
        self.read: list = []  # what `current` answered, until something is written: half of all queries
        CONTEXT.run(Head.objects.all().delete)

    async def ask(self, query, *arguments):
        await self._pass()
        if not self.running:
            raise OperationalError("the database is away")
        answer = self._answer(query, arguments)
        await self._pass()
        return answer

    def _answer(self, query, arguments):
        if query is not CURRENT:
            self.read.clear()
            return CONTEXT.run(query, *arguments)
        if not self.read:
            self.read.append(CONTEXT.run(query))
        return self.read[0]

    async def _pass(self) -> None:
        slow = 100 if self.chance.often(0.2) else self.slow
        await asyncio.sleep(slow * self.chance.expovariate(1 / 0.001))
        if process.get().dead:
            await asyncio.get_running_loop().create_future()

    def wrap(self, function):
        """In place of `database_sync_to_async`: asked by way of this database."""

        async def asked(*arguments):
            return await self.ask(function, *arguments)

        return asked


class Socket(Listener):
    """The writing side of one connection of a client to a daphne. What is written leaves at the client's
    pace, and arrives a moment later, or never."""

    __slots__ = ("_last", "_starved", "client", "daphne", "most_waiting", "moved", "open", "speed", "waiting")

    def __init__(self, client, daphne) -> None:
        super().__init__(None)
        self.client = client
        self.daphne = daphne
        self.open = True
        self.speed = client.chance.choice([1e9, 1e9, 20_000, 500])  # bytes in a second
        self.waiting = self.most_waiting = 0
        self.moved = asyncio.Event()
        self._last = 0.0
        self._starved = False

    # What the hub, the feeder and the session ask

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

    def too_slow(self, at) -> None:
        self.close(4408)

    def accept_messages(self, most: int) -> None:
        """No client here sends a large message."""

    def text(self, text: str) -> None:
        self.put(frame(text.encode()))

    async def drained(self) -> None:
        while self.waiting > PIECE and not self.ended:
            self.moved.clear()
            await self.moved.wait()

    def stop(self) -> None:
        """The connection is no more."""
        self.open = False
        self.end()
        self.moved.set()
        if self.owner is not None:
            self.owner.wake()

    # The network

    def put(self, data: bytes) -> None:
        frames = [protocol.classify(text) for text in texts(data)]
        self.client.world.people.judge(self, frames)
        self.waiting += len(data)
        self.most_waiting = max(self.most_waiting, self.waiting)
        self._later(len(data), self._leave, frames, len(data))

    def close(self, code: int) -> None:
        """Behind all that was written."""
        self.end()
        self._later(0, self.client.closed, self, code)

    def _later(self, size: int, call, *arguments) -> None:
        loop = asyncio.get_running_loop()
        delay = self.client.chance.expovariate(1 / 0.002)
        self._last = max(self._last + 1e-6, loop.time() + delay) + size / self.speed
        if not self.daphne.process.dead:
            loop.call_at(self._last, call, *arguments)

    def _leave(self, frames, size: int) -> None:
        if not self.open or self.daphne.process.dead:
            return
        self.waiting -= size
        self.moved.set()
        for each in frames:
            self.client.heard(each)
        if self._starved and not self.waiting:
            self._starved = False
            self.daphne.process.do(self.feeder.ready, self)


def texts(data: bytes):
    """The texts of the websocket's frames in `data`."""
    at = 0
    while at < len(data):
        size, at = data[at + 1], at + 2
        if size > 125:
            width = 2 if size == 126 else 8
            size, at = int.from_bytes(data[at : at + width]), at + width
        yield data[at : at + size].decode()
        at += size


class Daphne:
    """One process that serves clients."""

    def __init__(self, world, name: str) -> None:
        self.world = world
        self.process = Process(name)
        self.ready = False
        self.dead = asyncio.Event()
        self.told: dict[
            tuple, float
        ] = {}  # whom words concerned: when the last change was made that is known
        self.process.start(self._run())

    async def _run(self):
        self.station = Station()
        self.sockets = self.world.serving[self.process] = Sockets(self.station)
        self.station.hub.on(access.ACCESS.encode(), self._access_changed)
        await self.station.ready(1e9)
        self.ready = True

    def _access_changed(self, event) -> None:
        whom, made = self.world.people.words[event.id]
        self.told[whom] = max(made, self.told.get(whom, 0.0))
        self.sockets._access_changed(event)

    def serve(self, scope, receive, send) -> None:
        """A new connection."""
        session = self.process.start(Session(scope, receive, send, Limits()).run())
        self.world.sessions.add(session)
        session.add_done_callback(self.world.sessions.discard)


class Client:
    """Hears some groups, remembers where it was, and comes back. It records all that it was told."""

    subprotocols: tuple[str, ...] = (protocol.VERSION_2,)
    codes: tuple[int, ...] = (1013, 4401)

    def __init__(self, world, number: int) -> None:
        self.world = world
        self.user = number + 1
        self.name = f"client {number}"
        self.chance = Chance.of(world.seed, self.name)
        self.groups = tuple(sorted(self.chance.sample(GROUPS, self.chance.randint(1, 2))))
        self.memory = MEMORIES[number % len(MEMORIES)]()
        self.socket: Socket | None = None
        self.since: dict[str, float] = {}  # of each group: when it was let in, but for those it is not now
        self.record: list[tuple] = []  # ("in", group, when), ("event", id, group), ("told", reason, when)
        self.process = Process(self.name)
        self.process.start(self._run())

    def heard(self, what) -> None:
        now = asyncio.get_running_loop().time()
        if isinstance(what, protocol.Welcome):
            self.say({"groups": {FAMILY: [each.partition("-")[2] for each in self.groups]},
                      **self.behind(what.position)})  # fmt: skip
        elif isinstance(what, protocol.Subscription):
            self.record += [("in", group, now) for group in what.current if group not in self.since]
            self.since = {group: self.since.get(group, now) for group in what.current}
        elif isinstance(what, protocol.Event):
            if self.is_new(what):
                self.record.append(("event", what.payload["id"].encode(), what.payload["group"]))
        elif isinstance(what, protocol.Recovery):
            self.memory.settled(what.position)
            if not what.whole:
                self.record.append(("told", what.reason, now))
        elif not isinstance(what, protocol.Refusal | protocol.ServerError):
            self.world.wrong(f"{self.name} was sent {what}")

    def behind(self, position: str | None) -> dict:
        """From where on it asks for what it has missed."""
        self.memory.welcome(position)
        self.memory.asked(self.memory.since)
        return {"since": self.memory.since}

    def is_new(self, event: protocol.Event) -> bool:
        return self.memory.is_new(event)

    def gone(self) -> None:
        """A connection has ended: the next one goes on where this one was."""

    def closed(self, socket: Socket, code: int) -> None:
        if not socket.open or socket.daphne.process.dead:
            return
        if code not in self.codes:
            self.world.wrong(f"{self.name} was closed with {code}")
        if code == 4401:
            self.world.people.log_in(self.user)
        socket.stop()
        self.left.set()

    def say(self, message: dict) -> None:
        self.inbox.put_nowait({"type": "websocket.receive", "text": json.dumps(message)})

    async def _run(self):
        while True:
            await asyncio.sleep(self.chance.uniform(0.01, 0.3))
            ready = [each for each in self.world.daphnes if each.ready and not each.process.dead]
            if ready:
                await self._stay(self.chance.choice(ready))
                await asyncio.sleep(0 if self.world.calm else self.chance.choice([0, 0.1, 2.0]))

    async def _stay(self, daphne) -> None:
        """One connection, and some time to listen."""
        socket = self.socket = Socket(self, daphne)
        if self.world.calm:
            socket.speed = 1e9
        self.left = asyncio.Event()
        self.inbox: asyncio.Queue = asyncio.Queue()
        self.inbox.put_nowait({"type": "websocket.connect"})
        inbox, left = self.inbox, self.left

        async def send(message):
            if message["type"] == "websocket.close":
                socket.close(message["code"])

        daphne.serve(self.world.people.scope(self.user, socket, self.subprotocols), inbox.get, send)
        seconds = self.chance.uniform(0.2, 5)
        staying = [self.world.over.wait() if self.world.calm else asyncio.sleep(seconds)]
        waits = [asyncio.ensure_future(each) for each in (*staying, daphne.dead.wait(), left.wait())]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for each in waits:
            each.cancel()
        self.socket = None
        self.gone()
        if not daphne.process.dead:
            daphne.process.do(socket.stop)
            inbox.put_nowait({"type": "websocket.disconnect"})
        socket.open = False
        if socket.most_waiting > BUDGET + PIECE + 2_000:
            self.world.wrong(f"{socket.most_waiting} bytes waited for {self.name}")


class Client1(Client):
    """Of version 1: has no positions, and knows by the end of its connection that it may have missed
    something."""

    subprotocols = ()
    codes = (1013, 4401, 4408)

    def behind(self, position: str | None) -> dict:
        return {}

    def is_new(self, event: protocol.Event) -> bool:
        return True

    def gone(self) -> None:
        self.record.append(("told", ENDED, asyncio.get_running_loop().time()))
        self.since = {}


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
        text = json.dumps({"group_name": FAMILY, "group": group, "id": id.decode(),
                           "text": "x" * self.chance.choice([1, 50, 600])})  # fmt: skip
        self.world.begun[id] = asyncio.get_running_loop().time(), group
        await self.send(id, group, text)
        self.world.accepted[id] = asyncio.get_running_loop().time()
        return id

    async def send(self, id: bytes, group: str, text: str) -> None:
        message = {"id": id, "group": group, "text": text, "audience": None, "stamp": 1}
        while True:
            try:
                return await self.layer.send("notifications", message)
            except BrokerUnavailable:
                await asyncio.sleep(0.05)


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
        self.people = People(self)
        self.serving: dict[Process, Sockets] = {}
        self.sessions: set[asyncio.Task] = set()
        self.heads = {name: self.database.wrap(getattr(heads, name).func) for name in QUERIES}
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
            *(
                mock.patch(f"carillon.{module}.broker", reached)
                for module in ("relay.relay", "fanout.station")
            ),
            mock.patch("carillon.fanout.station.conf", SimpleNamespace(**SETTINGS)),
            mock.patch("carillon.sockets.session.sockets", self.here),
            *self.people.patches,
        ]
        self.calm = False
        self.over = asyncio.Event()
        self.last: dict[str, bytes] = {}  # of each group, when all is calm
        self.begun: dict[bytes, tuple[float, str]] = {}
        self.accepted: dict[bytes, float] = {}
        self.runworkers = [Runworker(self, f"runworker {n}") for n in (1, 2)]
        self.daphnes = [Daphne(self, f"daphne {n}") for n in (1, 2)]
        self.emitters = [Emitter(self, n) for n in range(2)]
        self.clients = [*(Client(self, n) for n in range(3)), Client1(self, 3)]

    def options(self, name: str) -> Options:
        return Options((Target.parse(URL),), name)

    def here(self) -> Sockets:
        """Those of the process that asks."""
        return self.serving[process.get()]

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
        """Somebody's rights change, perhaps several times, or are said to have changed."""
        user = self.chance.choice(self.clients).user
        for _ in range(self.chance.choice([1, 2, 4, 8])):
            self.say(self.people.change(user, self.chance))
            await asyncio.sleep(self.chance.uniform(0, 0.2))

    async def database_slow(self) -> None:
        self.say("the database is slow")
        self.database.slow = self.chance.choice([20.0, 300.0])
        await asyncio.sleep(self.chance.uniform(0.5, 3))
        self.database.slow = 1.0
        self.say("the database is fast again")

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
        kinds = [
            self.kill_runworker, self.kill_daphne, self.cut, self.broker_away, self.slow, self.partition,
            self.database_away, self.database_slow, self.rights, self.rights, self.rights,
        ]  # fmt: skip
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

    async def close(self) -> None:
        """What has been found wrong has been told: the sessions end while there is a loop."""
        for session in self.sessions:
            session.cancel()
        await asyncio.gather(*self.sessions, return_exceptions=True)

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
        since: dict[str, float] = {}
        told: set = set()  # of which emitters and groups all that has not come is excused
        keys = {(emitter.name[8:].rjust(4).encode(), group) for emitter in self.emitters for group in GROUPS}
        for kind, what, rest in client.record:
            if kind == "in":
                since[what] = rest
            elif kind == "told":
                told = set(keys)
                if what == ENDED:
                    newest.clear()
                    seen.clear()  # of what another process has yet to read, this one may have heard
            elif kind == "event":
                seen[what] += 1
                if seen[what] > 1:
                    # What the log lost with the power comes again from the queue, under another number: a
                    # process that had not read it before cannot know that a client has.
                    if self.begun[what][0] > self.lost_at:
                        yield f"{what!r} came {seen[what]} times"
                    continue
                key, number = (what[:4], rest), int(what[4:])
                if number <= newest.get(key, 0):
                    # It comes again like a double, and is none: the client joined after it.
                    if not self.begun[what][0] <= min(self.lost_at, since[rest]):
                        yield f"{what!r} came after number {newest[key]}"
                    continue
                missing = [
                    id
                    for id in (b"%b%12d" % (what[:4], each) for each in range(newest.get(key, 0) + 1, number))
                    if id in self.accepted and self.begun[id][1] == rest and id not in seen
                ]
                if key not in told and any(self.begun[id][0] >= since[rest] for id in missing):
                    yield f"{what!r} came, without a word of what had not come before it: {missing}"
                newest[key] = number
                told.discard(key)
        tells = [when for kind, _, when in client.record if kind == "told"]
        reasons = {reason for kind, reason, _ in client.record if kind == "told"} - UNSURE
        if reasons and self.lost_at < 0:
            yield f"it was told {reasons}, and nothing was lost"
        for id, when in self.accepted.items():
            begun, group = self.begun[id]
            if group not in client.since or begun < client.since[group] or id in seen:
                continue
            if not any(told >= begun for told in tells):
                yield f"{id!r} of group {group}, accepted at {when:.3f}, never came, and nothing was said"
        for group in client.groups:
            may = self.people.may(client.user, group)
            if may and self.last[group] not in seen:
                yield f"it is deaf: the last event of group {group} did not come"
            if self.last[group] in seen and not may:
                yield f"it heard the last event of group {group}, which it may not"
