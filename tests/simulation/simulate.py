"""Runs seeds, and tells the story of those that fail.

    python -m tests.simulation [path|layer] --seeds 0-1999 --seconds 120 --jobs 2 [--browser]

A seed decides everything, so `--seeds 125 --log` runs the one that failed again, with every log line under
its simulated time.
"""

import argparse
import asyncio
import contextlib
import gc
import importlib
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from unittest import mock

clock = time.perf_counter
WORLDS = ("path", "layer")


def prepare() -> None:
    """Django, on an empty database in this process's memory."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "1"
    import django
    from django.core.management import call_command

    django.setup()
    from tests.simulation.path import CONTEXT

    async def migrate():
        CONTEXT.run(call_command, "migrate", verbosity=0)

    asyncio.run(migrate())
    logging.disable(logging.CRITICAL)


def run(name: str, seed: int, **options):
    """One seed in the world of this name: the world after it, and what is wrong with it."""
    from tests.simulation import broker
    from tests.simulation.loop import simulated

    async def main():
        world = importlib.import_module(f"tests.simulation.{name}").World(seed, **options)
        with contextlib.ExitStack() as stack:
            for each in getattr(world, "patches", ()):
                stack.enter_context(each)
            try:
                await world.run()
                problems = world.problems()
            except Exception as error:
                problems = [f"the run ends with {type(error).__name__}: {error}"]
            await world.close()
            return world, problems

    with simulated(seed) as loop, mock.patch("asgi_amqp.connection.aiormq.Connection", broker.Connection):
        return loop.run_until_complete(loop.create_task(main()))


def stories(name: str, seeds: Iterable[int], deadline: float = float("inf")) -> Iterator[str]:
    """Run seeds, until the deadline: for each, "" or how it failed, in words."""
    gc.freeze()  # looking for cycles among all that is imported, and in mid-run, takes a tenth of the time
    gc.disable()
    for seed in seeds:
        if clock() > deadline:
            return
        gc.collect()
        world, problems = run(name, seed)
        lines = [f"{name}, seed {seed}:", *world.story, *problems[:10]] if problems else []
        if len(problems) > 10:
            lines.append(f"and {len(problems) - 10} more")
        yield "\n    ".join(lines)


def several(arguments: list[str], jobs: int, first: int, last: int) -> int:
    """The seeds shared out over some processes: every one takes each `jobs`th."""
    program = [sys.executable, "-m", "tests.simulation", *arguments, "--seeds"]
    running = [subprocess.Popen([*program, f"{first + job}-{last}:{jobs}"]) for job in range(jobs)]
    return max(process.wait() for process in running)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("world", nargs="?", choices=WORLDS)
    parser.add_argument("--seeds", default="0-99", help="first-last, or one")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="no new seed after so long")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--undo", help="undo the mend of this name, and end at the first seed that finds it")
    parser.add_argument(
        "--browser", action="store_true", help="path: every second client remembers as a page does (node)"
    )
    parser.add_argument("--log", action="store_true", help="what the code logs, with the simulated time")
    chosen = parser.parse_args()
    span, _, step = chosen.seeds.partition(":")
    first, _, last = span.partition("-")
    if chosen.jobs > 1:
        own = [*filter(None, [chosen.world]), "--seconds", str(chosen.seconds)]
        own += ["--browser"] * chosen.browser
        return several(own, chosen.jobs, int(first), int(last or first))
    prepare()
    if chosen.browser:
        from tests.simulation import browser, path

        path.MEMORIES = (*path.MEMORIES, browser.Memory)
    if chosen.log:
        logging.disable(logging.NOTSET)
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    began, failed, seeds = clock(), 0, range(int(first), int(last or first) + 1, int(step or 1))
    worlds = [chosen.world] if chosen.world else list(WORLDS)
    if chosen.undo:
        from tests.simulation.undo import UNDONE

        world, undone = UNDONE[chosen.undo]
        with undone():
            for story in filter(None, stories(world, seeds)):
                print(story)
                return 1
        print(f"{len(seeds)} seeds found nothing")
        return 0
    ran = 0
    for number, name in enumerate(worlds, 1):
        for story in stories(name, seeds, began + chosen.seconds * number / len(worlds)):
            ran += 1
            if story:
                failed += 1
                print(story, flush=True)
    print(f"{' and '.join(worlds)}: {ran} seeds in {clock() - began:.0f} s, {failed} failed")
    return int(failed > 0)
