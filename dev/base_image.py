"""Base images: pulled where an image registry can be reached, else made here with mmdebstrap."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from dev import debian, process
from dev.config import Config
from dev.output import Failure, progress, step

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


@dataclass(frozen=True)
class Base:
    """An image by its name, and what mmdebstrap makes it of. `packages`: Debian's, needed to make it."""

    image: str
    suite: str
    components: str
    packages: tuple[str, ...]
    # A file of `packages` that tells whether they are installed.
    proof: Path


# All of ours are built from it.
DEBIAN = Base("debian:trixie-slim", "trixie", "main", ("mmdebstrap",), Path("/usr/bin/mmdebstrap"))
# For hosts of tests alone.
UBUNTU = Base(
    "ubuntu:24.04",
    "noble",
    "main,universe",
    ("mmdebstrap", "ubuntu-keyring"),
    Path("/usr/share/keyrings/ubuntu-archive-keyring.gpg"),
)
IMAGE = DEBIAN.image


def ensure(config: Config, base: Base = DEBIAN) -> None:
    """The base image is there. Raises `Failure` when it can be neither pulled nor made."""
    if not inspect(base.image, "{{.Id}}"):
        renew(config, base)


def renew(config: Config, base: Base = DEBIAN) -> None:
    """The base image as it is today; the one of before goes, where nothing else uses it."""
    step(f"Getting the base image {base.image}")
    before = inspect(base.image, "{{.Id}}")
    if not _pull(base.image, config.logs / "pull.log"):
        progress(
            "no image registry can be reached; making it from the distribution's packages with mmdebstrap"
        )
        if not (shutil.which("mmdebstrap") and base.proof.exists()):
            if not debian.can_install():
                raise Failure(
                    f"{base.image} can be neither pulled (no image registry is reached) nor made here: "
                    f"install {' and '.join(base.packages)}, or load the image with `docker load`"
                )
            debian.install(base.packages, config.logs)
        make(config, base)
    if before and inspect(before, "{{len .RepoTags}}") == "0":
        process.ask(["docker", "image", "rm", before])


def inspect(image: str, form: str) -> str:
    """What the engine says of an image; nothing when it has none of that name."""
    return process.ask(["docker", "image", "inspect", "--format", form, image]).stdout.strip()


def _pull(image: str, log: Path) -> bool:
    """True when the pull worked. A network that swallows packets must not hold us: hence the deadline."""
    try:
        process.work(["docker", "pull", image], what=f"docker pull {image}", log=log, seconds=_PULL_SECONDS)
    except Failure:
        return False
    return True


def make(config: Config, base: Base = DEBIAN) -> None:
    """mmdebstrap to a tar file, the tar file into the engine; the file is removed again."""
    tar = config.state / f"{base.suite}-slim.tar"
    tar.unlink(missing_ok=True)
    options = [f"--dpkgopt={option}" for option in _SLIM]
    try:
        process.work(
            # No mirror is named: it uses the distribution's own, with updates and security.
            [
                *("mmdebstrap", "--variant=minbase", "--include=ca-certificates"),
                *(f"--components={base.components}", *options, base.suite, str(tar)),
            ],
            what="mmdebstrap",
            log=config.logs / "mmdebstrap.log",
            seconds=_MAKE_SECONDS,
            hint="Is there a network?",
        )
        try:
            answer = process.ask(
                ["docker", "import", "--change", 'CMD ["bash"]', str(tar), base.image], seconds=300
            )
        except subprocess.TimeoutExpired:
            raise Failure(f"docker import of {tar} took longer than 300 s") from None
        if answer.returncode:
            raise Failure(f"docker import failed: {answer.stderr.strip()}")
    finally:
        tar.unlink(missing_ok=True)
