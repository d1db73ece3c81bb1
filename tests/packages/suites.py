"""Unpack what another package is tested by, make the environment for it, and run it on our layer."""

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CACHE = ROOT / ".dev" / "packages"
CLONES = os.environ.get("CARILLON_PACKAGES_CLONES")
SUITE_SECONDS = 240
TRIES = 5  # of a test that races


class Unavailable(Exception):
    """The suite's source is not on this machine and cannot be downloaded by hash."""


@dataclass(frozen=True)
class Suite:
    """One table of suites.toml, whose head says what each field means."""

    name: str
    lock: str
    tests: list[str]
    count: int
    sdist: str = ""
    clone: str = ""
    commit: str = ""
    exceptions: dict[str, str] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)
    races: dict[str, str] = field(default_factory=dict)


def declared() -> list[Suite]:
    return [Suite(name, **table) for name, table in tomllib.loads((HERE / "suites.toml").read_text()).items()]


def environment(lock: str, file: Path | None = None) -> Path:
    """The python of the environment of `locks/<lock>.txt`, or of `file`, which is made when there is none of
    this lock."""
    folder = CACHE / f"venv-{lock}"
    python, mark, file = (
        folder / "bin" / "python",
        folder / ".made-from",
        file or HERE / "locks" / f"{lock}.txt",
    )
    wanted = f"{hashlib.sha256(file.read_bytes()).hexdigest()} {sys.version}\n"
    if not mark.is_file() or mark.read_text() != wanted:
        make_environment(folder, file)
        mark.write_text(wanted)
    return python


def make_environment(folder: Path, lock: Path, interpreter: str | None = None) -> None:
    """Of `interpreter`, or of the Python that we run on, with what the lock says and no more."""
    # Not by the interpreter of the test environment: its venv would be a child of that one.
    interpreter = interpreter or getattr(sys, "_base_executable", sys.executable)
    run_command([interpreter, "-m", "venv", "--clear", str(folder)])
    python = str(folder / "bin" / "python")
    run_command([python, "-m", "pip", "install", "--quiet", "--require-hashes", "-r", str(lock)])


def source(suite: Suite, target: Path) -> Path:
    """The unpacked package under `target`, with the files of beside/ that its source lacks."""
    if suite.sdist:
        archive = _sdist(suite.sdist)
        with tarfile.open(archive) as tar:
            tar.extractall(target, filter="data")
        folder = target / suite.sdist
    else:
        folder = target / suite.name
        folder.mkdir()
        with tarfile.open(fileobj=io.BytesIO(_commit(suite))) as tar:
            tar.extractall(folder, filter="data")
    beside = HERE / "beside" / suite.name
    for file in beside.rglob("*.py"):
        (folder / file.relative_to(beside)).write_bytes(file.read_bytes())
    return folder


def _sdist(name: str) -> Path:
    folder, wanted = CACHE / "sdists", HERE / "sdists.txt"
    archive, mark = folder / f"{name}.tar.gz", folder / ".made-from"
    if not archive.exists() or not mark.is_file() or mark.read_text() != wanted.read_text():
        python = str(environment("sdists"))
        # No isolation: pip would fetch what builds them by name. setuptools is in the lock.
        options = ["--require-hashes", "--no-deps", "--no-binary=:all:", "--no-build-isolation"]
        run_command(
            [python, "-m", "pip", "download", "--quiet", *options, "-r", str(wanted), "-d", str(folder)]
        )
        mark.write_text(wanted.read_text())
    return archive


def _commit(suite: Suite) -> bytes:
    """A tar archive of the commit, whose name is the hash of all that is in it."""
    if not CLONES:
        raise Unavailable(
            f"the sdist has no tests, and CARILLON_PACKAGES_CLONES names no clone of {suite.clone}"
        )
    place = Path(CLONES) / suite.clone
    place = place / "repo" if (place / "repo").is_dir() else place
    done = subprocess.run(["git", "-C", str(place), "archive", suite.commit], capture_output=True)
    if done.returncode:
        raise Unavailable(f"{place} has no commit {suite.commit}: {done.stderr.decode().strip()[-200:]}")
    return done.stdout


def run(suite: Suite, folder: Path, url: str, layer: Path) -> tuple[dict[str, str], str]:
    """({test: passed, failed or skipped}, what pytest printed last). Tests that race are tried again, the
    others once, for most of these suites give a connection one second.
    """
    outcomes, text = _pytest(suite, suite.tests, folder, url, layer)
    options = [word for word in suite.tests if word not in outcomes and not word.startswith("tests")]
    named = suite.exceptions.keys() | suite.faults.keys()
    for number in range(1, TRIES):
        failed = [test for test, outcome in outcomes.items() if outcome == "failed" and test not in named]
        again = [test for test in failed if number == 1 or test in suite.races]
        if not again:
            break
        print(f"{suite.name}: tried again: {', '.join(again)}\n{text if number == 1 else ''}")
        outcomes |= _pytest(suite, [*again, *options], folder, url, layer)[0]
    return outcomes, text


def _pytest(
    suite: Suite, arguments: list[str], folder: Path, url: str, layer: Path
) -> tuple[dict[str, str], str]:
    report = folder / "outcomes.jsonl"
    report.unlink(missing_ok=True)
    keep = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    done = subprocess.run(
        [str(environment(suite.lock)), "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "outside_layer",
         *arguments],
        cwd=folder,
        env={
            **keep,
            "PYTHONPATH": os.pathsep.join(map(str, (layer, HERE, folder))),
            "PYTHONDONTWRITEBYTECODE": "1",
            "CARILLON_PACKAGES_SUITE": suite.name,
            "CARILLON_PACKAGES_URL": url,
            "CARILLON_PACKAGES_REPORT": str(report),
        },
        capture_output=True,
        text=True,
        timeout=SUITE_SECONDS,
    )  # fmt: skip
    outcomes: dict[str, str] = {}
    for line in report.read_text().splitlines() if report.exists() else ():
        test, outcome = json.loads(line)
        if outcomes.get(test) != "failed":  # set-up, call and teardown each report
            outcomes[test] = outcome
    return outcomes, (done.stdout + done.stderr)[-6000:]


def run_command(command: list[str]) -> None:
    """RuntimeError with the end of what it said, when it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:5])} …: {(done.stdout + done.stderr).strip()[-1500:]}")
