"""Some thousand seeds of the simulation, and the proof that it finds what it should."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SEEDS = os.environ.get("CARILLON_SIMULATION_SEEDS", "0-1999")
SECONDS = 55  # for each of the worlds, over all processors
LEAST = 300  # seeds of each, at least


def simulate(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.simulation", *arguments],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": "src", "PYTHONHASHSEED": "0"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.mark.parametrize("world", ["path", "layer"])
def test_no_seed_finds_anything(world):
    """In one go on a machine that is quiet; a slower one has several, for as many."""
    jobs = os.cpu_count() or 1
    first, last = map(int, SEEDS.split("-"))
    begun = first
    for _ in range(4):
        done = simulate(world, "--seeds", f"{first}-{last}", "--seconds", str(SECONDS), "--jobs", str(jobs))
        print(done.stdout)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        ran = [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith(f"{world}: ")]
        first += jobs * min(ran)
        if first > begun + LEAST or first > last:
            break
    assert first > begun + LEAST, done.stdout


def test_pages_remember_as_well():
    """Every second client has the memory of the module that pages load."""
    done = simulate("path", "--seeds", "0-39", "--browser")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "path: 40 seeds" in done.stdout


def undone() -> list[str]:
    source = (ROOT / "tests/simulation/undo.py").read_text().split("\n@undoes(")[1:]
    return [part.split("\ndef ")[1].split("(")[0].replace("_", " ") for part in source]


@pytest.mark.parametrize("mend", undone())
def test_a_mend_that_is_undone_is_found(mend):
    done = simulate("--seeds", "0-399", "--undo", mend)
    assert "Traceback" not in done.stderr
    assert done.returncode == 1, f"{done.stdout}\n{done.stderr}"


def test_a_seed_gives_the_same_run_again():
    once, again = (simulate("--seeds", "0-39", "--undo", undone()[2]) for _ in range(2))
    assert once.stdout == again.stdout
    assert "seed" in once.stdout
