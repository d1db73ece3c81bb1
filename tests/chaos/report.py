"""What was measured, one line of JSON each, in the file that CARILLON_CHAOS_REPORT names; and as tables:

python -m tests.chaos.report .dev/chaos.jsonl docs/reference/delivery.md
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

BEGIN, END = "<!-- chaos: made by `python -m tests.chaos.report` -->", "<!-- chaos: end -->"


def write_down(row: dict) -> None:
    print(json.dumps(row))
    if path := os.environ.get("CARILLON_CHAOS_REPORT"):
        with Path(path).open("a") as lines:
            lines.write(json.dumps({**row, "load": round(os.getloadavg()[0], 1)}) + "\n")


def table(rows: list[dict], columns: list[str]) -> str:
    def line(cells: list) -> str:
        return "| " + " | ".join(str(cell) for cell in cells) + " |"

    body = [line([row.get(column, "") for column in columns]) for row in rows]
    return "\n".join([line(columns), "|" + "---|" * len(columns), *body])


def tables(rows: list[dict]) -> str:
    """The newest row of each cell, in Markdown."""
    parts = []
    for kind, columns in (
        (
            "cell",
            [
                "cell", "clients", "confirmed", "delivered", "doubled", "out of order", "lost silently",
                "announced lost", "longest gap, s", "longest publish, s", "level after, s",
                "daphne MiB", "runworker MiB", "rabbitmq MiB", "load",
            ],
        ),
        ("rights", ["rights", "processes", "seconds", "load"]),
        ("presence", ["presence", "unlisted, s", "told, s", "load"]),
    ):  # fmt: skip
        newest = {row[kind]: row for row in rows if kind in row}
        for row in newest.values():
            if absent := row.get("announced to the absent"):
                row["announced lost"] = f"{row['announced lost']}; {absent} to the 2 absent"
        if newest:
            parts.append(table(list(newest.values()), columns))
    return "\n\n".join(parts)


def main(report: str, page: str) -> None:
    rows = [json.loads(line) for line in Path(report).read_text().splitlines()]
    text = Path(page).read_text()
    before, rest = text.split(BEGIN)
    Path(page).write_text(f"{before}{BEGIN}\n\n{tables(rows)}\n\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
