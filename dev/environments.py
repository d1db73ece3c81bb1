"""Private Python environments, made from the hashed locks."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import sys
from pathlib import Path

from dev import process
from dev.config import HOME, ROOT, Config
from dev.output import step
from dev.secret_files import private_directory, write

_MARK = ".made-from"
_SECONDS = 1200
TOOLS_LOCK = "requirements/tools.txt"
_LOCKS = {
    "venv": TOOLS_LOCK,
    "venv-test": "requirements/test.txt",  # has all of the tools, too
    "venv-production": "requirements/production-test.txt",
}


def ensure(config: Config, name: str, lock: str) -> Path:
    """The environment `name` under .dev, with what `lock` says and no more; the path of its python.

    An environment of another lock or interpreter is made anew: pip leaves behind what is no longer listed.
    """
    # Beside each other, whichever stack asks: they do not depend on one.
    directory = HOME / ".dev" / name
    private_directory(directory.parent)
    python = directory / "bin" / "python"
    wanted = f"{hashlib.sha256((ROOT / lock).read_bytes()).hexdigest()} {sys.version}\n"
    mark = directory / _MARK
    with (directory.parent / f"{name}.lock").open("w") as alone:
        fcntl.flock(alone, fcntl.LOCK_EX)  # another run may be making it
        if not (mark.is_file() and mark.read_text() == wanted and python.exists()):
            _make(config, name, directory, lock)
            write(mark, wanted, 0o644)
    return python


def _make(config: Config, name: str, directory: Path, lock: str) -> None:
    step(f"Making the private Python environment {directory.relative_to(HOME)} from {lock}")
    shutil.rmtree(directory, ignore_errors=True)
    # PIP_CERT also for an ordinary pip: a CA bundle that the machine itself uses adds nobody to trust.
    env = {"PIP_CERT": str(config.ca_bundle)} if config.ca_bundle else {}
    env |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    log = config.logs / f"{name}.log"
    # Out of an environment of ours, venv would make a child of it.
    interpreter = getattr(sys, "_base_executable", sys.executable)
    process.work([interpreter, "-m", "venv", str(directory)], what="python -m venv", log=log, seconds=120)
    python = str(directory / "bin" / "python")
    process.work(
        [python, "-m", "pip", "install", "--require-hashes", "--requirement", str(ROOT / lock)],
        what=f"pip install ({lock})",
        log=log,
        seconds=_SECONDS,
        env=env,
        hint="Does the network need a CA of its own? Then set CA_BUNDLE=…",
    )


def enter(config: Config, name: str = "venv") -> None:
    """Go on in that environment, with the same command; returns when we are in it already."""
    python = ensure(config, name, _LOCKS[name])
    if Path(sys.prefix) == python.parent.parent:
        return
    sys.stdout.flush()
    os.execv(str(python), [str(python), "-m", "dev", *sys.argv[1:]])  # noqa: S606 - no shell is the point
