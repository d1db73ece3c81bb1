"""What happens to the broker, its links and the processes, drawn from the seed, across each other."""

import asyncio
from collections.abc import Awaitable, Callable

from tests.simulation import broker as model
from tests.simulation.broker import Broker, Process
from tests.simulation.loop import Chance

BETWEEN = 1.2  # seconds between two faults, on average


class Faults:
    """The broker of a world, what happens to it, and to `victims`, the processes that may be cut off. `story`
    says what did, in words, for who reads a failing seed; `found` what should not be so."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.chance = Chance.of(seed, "world")
        self.homes = Chance.of(seed, "homes")
        self.broker = Broker(seed)
        model.broker.set(self.broker)
        self.story: list[str] = []
        self.found: list[str] = []

    def wrong(self, what: str) -> None:
        """Note what should not be so."""
        self.found.append(what)

    lost_at = float("-inf")
    """When a loss of power last took something that a stream had held."""

    @property
    def victims(self) -> list[Process]:
        raise NotImplementedError

    def say(self, what: str) -> None:
        self.story.append(f"{asyncio.get_running_loop().time():8.3f} {what}")

    async def suffer(self, seconds: float, kinds: list[Callable[[], Awaitable[None]]]) -> None:
        """Faults for so long; all of them are over at the end."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        running = []
        while loop.time() < end:
            await asyncio.sleep(self.chance.expovariate(1 / BETWEEN))
            running.append(loop.create_task(self.chance.choice(kinds)()))
        await asyncio.gather(*running)

    async def cut(self) -> None:
        share = self.chance.uniform(0.2, 1)
        count = self.broker.cut(lambda each: self.chance.often(share))
        self.say(f"{count} connections are cut")

    async def broker_away(self) -> None:
        if self.broker.running:
            self.say("the broker is stopped")
            self.broker.sync()
            self.broker.down()
            await self.broker_returns()

    async def power(self) -> None:
        if self.broker.running:
            lost = self.broker.lose_power()
            if lost:
                self.lost_at = asyncio.get_running_loop().time()
            self.say(f"the brokers lose power: {lost} messages of the streams are gone")
            await self.broker_returns()

    async def stream_deleted(self) -> None:
        for name in list(self.broker.streams):
            self.say(f"{name} is deleted")
            self.broker.delete(name)
            self.lost_at = asyncio.get_running_loop().time()

    async def retention(self) -> None:
        for name in list(self.broker.streams):
            lost = self.broker.retain(name, self.chance.randint(1, 20))
            self.say(f"{name} drops its oldest {lost} messages")
            if lost:
                self.lost_at = asyncio.get_running_loop().time()

    async def broker_returns(self) -> None:
        await asyncio.sleep(self.chance.uniform(0.05, 2))
        self.broker.up()
        self.say("the broker is back")
        if self.homes.often(0.3):
            seconds = self.homes.uniform(0.05, 1)
            self.broker.homeless = asyncio.get_running_loop().time() + seconds
            self.say(f"the home of the streams is another broker, which comes {seconds:.2f} s later")

    async def slow(self) -> None:
        self.broker.slow = self.chance.choice([5.0, 30.0])
        self.say(f"the broker is {self.broker.slow:g} times slower")
        await asyncio.sleep(self.chance.uniform(0.5, 2))
        self.broker.slow = 1.0

    async def partition(self) -> None:
        victim = self.chance.choice(self.victims)
        self.say(f"{victim.name} cannot reach the broker")
        victim.unreachable = True
        self.broker.cut(lambda each: each.process is victim)
        await asyncio.sleep(self.chance.uniform(0.1, 4))
        victim.unreachable = False
