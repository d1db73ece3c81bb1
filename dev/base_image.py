"""debian:trixie-slim: pulled where an image registry can be reached, else made here with mmdebstrap."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from dev import debian, process
from dev.config import Config
from dev.output import Failure, progress, step

IMAGE = "debian:trixie-slim"
_PULL_SECONDS = 120
_MAKE_SECONDS = 900
# What the "slim" of the name stands for: no manuals, no other languages' messages.
_SLIM = (
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/info/*",
)


def ensure(config: Config) -> None:
    """The base image is there. Raises `Failure` when it can be neither pulled nor made."""
    if process.ask(["docker", "image", "inspect", "--format", "{{.Id}}", IMAGE]).returncode == 0:
        return
    step(f"Getting the base image {IMAGE}")
    if _pull(config.logs / "pull.log"):
        return
    progress("no image registry can be reached; making it from Debian's packages with mmdebstrap")
    if not shutil.which("mmdebstrap"):
        if not debian.can_install():
            raise Failure(
                f"{IMAGE} can be neither pulled (no image registry is reached) nor made here: "
                "install mmdebstrap, or load the image with `docker load`"
            )
        debian.install(("mmdebstrap",), config.logs)
    make(config)


def _pull(log: Path) -> bool:
    """True when the pull worked. A network that swallows packets must not hold us: hence the deadline."""
    try:
        process.work(["docker", "pull", IMAGE], what=f"docker pull {IMAGE}", log=log, seconds=_PULL_SECONDS)
    except Failure:
        return False
    return True


def make(config: Config) -> None:
    """mmdebstrap to a tar file, the tar file into the engine; the file is removed again."""
    tar = config.state / "trixie-slim.tar"
    tar.unlink(missing_ok=True)
    options = [f"--dpkgopt={option}" for option in _SLIM]
    try:
        process.work(
            # No mirror is named: it uses Debian's own, with updates and security.
            ["mmdebstrap", "--variant=minbase", "--include=ca-certificates", *options, "trixie", str(tar)],
            what="mmdebstrap",
            log=config.logs / "mmdebstrap.log",
            seconds=_MAKE_SECONDS,
            hint="Is there a network?",
        )
        try:
            answer = process.ask(
                ["docker", "import", "--change", 'CMD ["bash"]', str(tar), IMAGE], seconds=300
            )
        except subprocess.TimeoutExpired:
            raise Failure(f"docker import of {tar} took longer than 300 s") from None
        if answer.returncode:
            raise Failure(f"docker import failed: {answer.stderr.strip()}")
    finally:
        tar.unlink(missing_ok=True)
