"""Composed chaos on the stack of `make dev`: python -m tests.chaos compose --seeds 20 --seed-from 100"""

import argparse
import asyncio
import json
import sys
from pathlib import Path

from tests.chaos.composed.schedule import schedule
from tests.chaos.composed.stage import compose
from tests.chaos.site import Site

RECORD = Path(__file__).parent / "composed" / "record.jsonl"
"""What was found for each schedule that was played: committed, and a table in docs/reference/delivery.md."""


def main() -> int:
    """The exit status: 1 when a seed failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    commands = parser.add_subparsers(dest="command", required=True)
    composed = commands.add_parser("compose", help="play schedules of faults that overlap, on three brokers")
    composed.add_argument("--seeds", type=int, default=10, help="how many")
    composed.add_argument("--seed-from", type=int, default=0, help="the first")
    composed.add_argument("--seconds", type=float, default=float("inf"), help="no new one after so long")
    composed.add_argument("--record", type=Path, default=RECORD, help="gets a line of JSON for each")
    composed.add_argument("--tell", action="store_true", help="say what would happen, and do nothing")
    composed.add_argument(
        "--stories", action="store_true", help="tell of each, and not of those alone that fail"
    )
    chosen = parser.parse_args()
    seeds = range(chosen.seed_from, chosen.seed_from + chosen.seeds)
    if chosen.tell:
        for seed in seeds:
            print(f"seed {seed}:", *schedule(seed).words(), sep="\n  ")
        return 0
    if (site := Site.from_environment()) is None:
        print("no stack: start one with `make dev` and use `make chaos SEEDS=...`", file=sys.stderr)
        return 2

    def found(row: dict) -> None:
        print(json.dumps(row), flush=True)
        with chosen.record.open("a") as lines:
            lines.write(json.dumps(row) + "\n")

    return int(asyncio.run(compose(site, seeds, found, chosen.seconds, chosen.stories)) > 0)


if __name__ == "__main__":
    sys.exit(main())
