"""Runs seeds. `python -m tests.simulation --seeds 0-2000`: one line for each that fails, with its story."""

import argparse
import asyncio
import logging
import os
import sys
import time
from unittest import mock

clock = time.perf_counter


def prepare() -> None:
    """Django on an empty database in memory, in this process."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "1"
    import django
    from django.core.management import call_command

    django.setup()
    from tests.simulation.world import CONTEXT

    async def migrate():
        CONTEXT.run(call_command, "migrate", verbosity=0)

    asyncio.run(migrate())
    logging.disable(logging.CRITICAL)


def run(seed: int, wrap=lambda world: None):
    """One seed: the world after it, with what it found wrong."""
    import asgi_amqp.connection
    from carillon.events import heads
    from tests.simulation import broker
    from tests.simulation.loop import simulated
    from tests.simulation.world import World

    with simulated(seed) as loop:

        async def main():
            world = World(seed)
            names = ("current", "save", "replace")
            with contextlib_all(
                [mock.patch.object(heads, name, world.database.wrap(getattr(heads, name))) for name in names]
            ):
                wrap(world)
                try:
                    await world.run()
                except Exception as error:
                    world.say(f"the run ends: {error!r}")
                    return world, [f"{type(error).__name__}: {error}"]
                return world, world.problems()

        with mock.patch.object(asgi_amqp.connection.aiormq, "Connection", broker.Connection):
            task = loop.create_task(main())
            result = loop.run_until_complete(task)
            for each in asyncio.all_tasks(loop):
                each.cancel()
            return result


def contextlib_all(managers):
    import contextlib

    stack = contextlib.ExitStack()
    for manager in managers:
        stack.enter_context(manager)
    return stack


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", default="0-100")
    parser.add_argument("--story", action="store_true")
    parser.add_argument("--log", action="store_true")
    chosen = parser.parse_args()
    prepare()
    if chosen.log:
        logging.disable(logging.NOTSET)
        logging.basicConfig(level=logging.INFO, format="%(relativeCreated)d %(name)s %(message)s")
    first, _, last = chosen.seeds.partition("-")
    began, failed = clock(), 0
    seeds = range(int(first), int(last or first) + 1)
    for seed in seeds:
        world, problems = run(seed)
        if problems:
            failed += 1
            print(f"seed {seed}: {len(problems)} problems; {problems[0]}", flush=True)
        if chosen.story:
            print("\n".join(world.story), *problems, world.broker.counted, len(world.accepted), sep="\n")
    print(f"{len(seeds)} seeds in {clock() - began:.1f} s, {failed} failed")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
