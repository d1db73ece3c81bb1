"""Debian's packages: what the tool may install by itself, and when."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Sequence
from pathlib import Path

from dev import process
from dev.output import step

_NEWEST_WITHOUT_COMPOSE = 12  # Debian 12's docker-compose is version 1


def release() -> int | None:
    """The Debian release of this machine (13); a high number for testing and unstable, None elsewhere."""
    try:
        values = platform.freedesktop_os_release()
    except OSError:
        return None
    if values["ID"] != "debian":
        return None
    version = values.get("VERSION_ID", "")
    return int(version) if version.isdecimal() else 999


def can_install() -> bool:
    """Root on a Debian whose packages are new enough."""
    found = release()
    return (
        os.geteuid() == 0
        and found is not None
        and found > _NEWEST_WITHOUT_COMPOSE
        and bool(shutil.which("apt-get"))
    )


def install(packages: Sequence[str], logs: Path) -> None:
    """Raises `Failure` with the end of apt's log."""
    step(f"Installing {', '.join(packages)} from Debian's packages")
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    log = logs / "apt.log"
    hint = "Is there a network, and a working /etc/apt?"
    process.work(["apt-get", "update"], what="apt-get update", log=log, seconds=300, env=quiet, hint=hint)
    process.work(
        ["apt-get", "install", "--yes", "--no-install-recommends", *packages],
        what="apt-get install",
        log=log,
        seconds=1200,
        env=quiet,
        hint=hint,
    )
