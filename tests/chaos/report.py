"""What was measured, one line of JSON each, in the file that CARILLON_CHAOS_REPORT names; and as tables:

python -m tests.chaos.report .dev/chaos.jsonl docs/reference/delivery.md
python -m tests.chaos.report tests/chaos/composed/record.jsonl docs/reference/delivery.md
"""

from __future__ import annotations

import json
import os
import sys
import textwrap
from pathlib import Path

BEGIN, END = "<!-- chaos: made by `python -m tests.chaos.report` -->", "<!-- chaos: end -->"
COMPOSED = "<!-- composed: made by `python -m tests.chaos.report` -->", "<!-- composed: end -->"


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


def composed(rows: list[dict]) -> str:
    """Of the newest run of each seed: what was found, by the faults that a schedule has, and the seeds."""
    newest = {row["composed"]: row for row in rows}
    void = [seed for seed, row in newest.items() if "void" in row]
    failed = [seed for seed, row in newest.items() if "failures" in row]
    told = [row for row in newest.values() if "confirmed" in row]
    kinds = sorted({kind for row in told for kind in row["faults"]})
    groups = [*((kind, [row for row in told if kind in row["faults"]]) for kind in kinds), ("all", told)]
    lines = [
        {
            "with": kind,
            "schedules": len(group),
            **{
                title: sum(row[name] for row in group)
                for title, name in (
                    ("confirmed", "confirmed"), ("heard", "heard"), ("doubled", "doubled"),
                    ("out of order", "disordered"), ("lost silently", "lost"), ("deaf to", "unseen"),
                    ("told of", "told"), ("told for nothing", "told for nothing"),
                )
            },
            "longest publish, s": max(row["longest publish, s"] for row in group),
            "level after, s": max(row["level after, s"] for row in group),
        }
        for kind, group in groups
        if group
    ]  # fmt: skip
    words = [f"Seeds that were played: {spans([row['composed'] for row in told])}."]
    words += [f"Failed: {spans(failed)}."] if failed else []
    words += [f"Void, since a fault took no effect: {spans(void)}."] if void else []
    return f"{table(lines, list(lines[-1]))}\n\n{textwrap.fill(' '.join(words), 100)}" if lines else ""


def spans(numbers: list[int]) -> str:
    """1, 2, 3, 5 as "1-3, 5"."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in found)


def main(report: str, page: str) -> None:
    rows = [json.loads(line) for line in Path(report).read_text().splitlines()]
    text = Path(page).read_text()
    parts = [((BEGIN, END), tables([row for row in rows if "composed" not in row]))]
    parts += [(COMPOSED, composed([row for row in rows if "composed" in row]))]
    for (begin, end), made in parts:
        if made:
            before, rest = text.split(begin)
            text = f"{before}{begin}\n\n{made}\n\n{end}{rest.split(end)[1]}"
    Path(page).write_text(text)


if __name__ == "__main__":
    main(*sys.argv[1:])
