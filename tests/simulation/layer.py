"""The channel layer alone: processes whose channels join and leave groups while links come and go.

Everything that `guarantees` says of groups is checked: nobody is deaf, nothing comes twice or out of order,
what is missing was announced or counted, what is wanted is what is bound, and nobody waits for ever.
"""

import asyncio
import collections
import contextlib
from unittest import mock

from asgi_amqp import AMQPChannelLayer, LayerError
from tests.simulation.broker import Process
from tests.simulation.faults import Faults
from tests.simulation.loop import Chance

URL = "amqp://user:password@broker/simulated"
GROUPS = ("a", "b", "c")
CALM = 14.0
PATIENCE = 20.0  # seconds that any call may take: every one has a deadline of five


class Member:
    """One channel, which is read all the time, and joins and leaves groups."""

    def __init__(self, peer, number: int) -> None:
        self.peer = peer
        self.chance = Chance.of(peer.world.seed, f"{peer.process.name} member {number}")
        self.record: list[tuple] = []  # (number, group, sender), or None for a gap
        self.name = ""

    async def run(self) -> None:
        self.name = await self.peer.again(lambda: self.peer.layer.new_channel())
        reading = asyncio.ensure_future(self._read())
        while not self.peer.world.calm.is_set():
            await self._change()
            await self.peer.world.pause(self.chance.expovariate(1 / 0.3))
        await asyncio.sleep(CALM / 2)  # until what other processes had asked for has come
        for group in GROUPS:  # everybody is in all groups at the end
            await self.peer.again(lambda group=group: self.peer.layer.group_add(group, self.name))
        await reading

    async def _change(self) -> None:
        group = self.chance.choice(GROUPS)
        joining = self.chance.often(0.6)
        # Another process may do it: then it asks ours.
        layer = self.peer.layer if self.chance.often(0.8) else self.chance.choice(self.peer.world.peers).layer
        call = layer.group_add if joining else layer.group_discard
        patience = self.chance.choice([0.0, 0.001, 0.005, PATIENCE, PATIENCE])
        try:
            async with asyncio.timeout(patience):
                await call(group, self.name)
        except LayerError:
            pass
        except TimeoutError:
            if patience == PATIENCE:
                self.peer.world.wrong(f"a call of {call.__name__} took {PATIENCE:g} s")

    async def _read(self) -> None:
        while True:
            message = await self.peer.again(lambda: self.peer.layer.receive(self.name))
            if message["type"] == "gap":
                self.record.append(None)
            else:
                self.record.append((message["number"], message["group"], message["sender"]))


class Peer:
    """One process with a layer."""

    def __init__(self, world, number: int) -> None:
        self.world = world
        self.process = Process(f"process {number}")
        self.chance = Chance.of(world.seed, self.process.name)
        self.layer: AMQPChannelLayer
        self.members = [Member(self, each) for each in range(2)]
        self.sent = 0
        self.process.start(self._run())

    async def again(self, call):
        """Until it works."""
        while True:
            try:
                return await call()
            except LayerError:
                await asyncio.sleep(0.1)

    async def _run(self) -> None:
        self.layer = AMQPChannelLayer(URL, gap_type="gap", capacity=1000, durable=["durable"])
        own = self._send(), self._work(), self._take()
        await asyncio.gather(*(member.run() for member in self.members), *own)

    async def _work(self) -> None:
        """Sends to the durable channel, each until it is confirmed."""
        number = 0
        while not self.world.calm.is_set():
            number += 1
            entry = self.process.name, number
            await self.again(lambda entry=entry: self.layer.send("durable", {"type": "w", "entry": entry}))
            self.world.confirmed.add(entry)
            await self.world.pause(self.chance.expovariate(1 / 0.2))

    async def _take(self) -> None:
        """Receives from it; now and then it stops waiting."""
        while True:
            with contextlib.suppress(TimeoutError, LayerError):
                async with asyncio.timeout(self.chance.choice([0.001, 0.02, 1.0, PATIENCE])):
                    message = await self.layer.receive("durable")
                    self.world.taken[tuple(message["entry"])] += 1
            await asyncio.sleep(0.01)

    async def _send(self) -> None:
        while not self.world.calm.is_set():
            for _ in range(self.chance.choice([1, 1, 3])):
                await self.send(self.chance.choice(GROUPS))
            await self.world.pause(self.chance.expovariate(1 / 0.15))

    async def send(self, group: str) -> int:
        self.sent += 1
        message = {"type": "a", "number": self.sent, "group": group, "sender": self.process.name}
        try:
            async with asyncio.timeout(PATIENCE):
                await self.layer.group_send(group, message)
        except LayerError:
            self.world.refused += 1
        except TimeoutError:
            self.world.wrong(f"a group_send took {PATIENCE:g} s")
        return self.sent


class World(Faults):
    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.calm = asyncio.Event()
        self.refused = 0
        self.confirmed: set[tuple[str, int]] = set()
        self.taken: collections.Counter = collections.Counter()
        self.patches = [mock.patch("asgi_amqp.bindings.LINGER", 0.2)]
        self.peers = [Peer(self, number) for number in range(3)]

    async def pause(self, seconds: float) -> None:
        """Unless it becomes calm first."""
        try:
            async with asyncio.timeout(seconds):
                await self.calm.wait()
        except TimeoutError:
            pass

    @property
    def victims(self) -> list[Process]:
        return [peer.process for peer in self.peers]

    async def run(self, seconds: float = 5.0) -> None:
        await self.suffer(seconds, [self.cut, self.cut, self.broker_away, self.slow, self.partition])
        self.calm.set()
        self.say("all is calm")
        await asyncio.sleep(CALM)
        each = [(peer, group) for peer in self.peers for group in GROUPS]
        self.last = {(peer.process.name, group): await peer.send(group) for peer, group in each}
        await asyncio.sleep(1)

    def problems(self) -> list[str]:
        found = list(self.found)
        for entry in sorted(self.confirmed):
            if not self.taken[entry]:
                found.append(f"{entry}, confirmed on the durable channel, was given to nobody")
        for peer in self.peers:
            found += [f"{peer.process.name}: {what}" for what in self._of_peer(peer)]
            for number, member in enumerate(peer.members):
                found += [f"{peer.process.name} member {number}: {what}" for what in self._of_member(member)]
        return found

    def _of_peer(self, peer):
        session = next(iter(peer.layer._sessions.values()))
        outbox, receiver = session.sender.outbox, session.receiver
        if not outbox.idle or outbox.buffered:
            yield f"{outbox.buffered} bytes are still in the outbox"
        if session._questions:
            yield "it still waits for an answer of another process"
        if receiver._joining or receiver._pending:
            yield f"somebody still waits to join: {receiver._joining} {receiver._pending}"
        bound = {
            key[2:]
            for key, queues in self.broker.bindings.items()
            if key.startswith("g.") and receiver.queue_name in queues
        }
        wanted = set(receiver.mailboxes.groups)
        if bound != wanted:
            yield f"bound is {sorted(bound)}, wanted is {sorted(wanted)}"
        if receiver.mailboxes.used:
            yield f"{receiver.mailboxes.used} bytes are counted, and all was read"

    def _of_member(self, member):
        seen = collections.Counter(entry for entry in member.record if entry is not None)
        for entry, count in seen.items():
            if count > 1:
                yield f"{entry} came {count} times"
        newest: dict = {}
        for entry in member.record:
            if entry is None:
                continue
            number, group, sender = entry
            if number < newest.get((group, sender), 0):
                yield f"{entry} came after {newest[group, sender]}"
            newest[group, sender] = number
        for (sender, group), number in self.last.items():
            if (number, group, sender) not in seen:
                yield f"it is deaf: {number} of {sender} to group {group} did not come"
