"""The container engine: there, answering, new enough; on a bare Debian installed and started by us."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from enum import Enum
from pathlib import Path

from dev import debian, process
from dev.config import Config
from dev.output import Failure, progress, step

# docker-cli apart from docker.io and docker-buildx: so Debian 13 cuts them.
PACKAGES = ("docker.io", "docker-cli", "docker-compose", "docker-buildx")
# 25 is the first that knows a health check's start_interval; 2.20 the first Compose that passes it on.
OLDEST_ENGINE = (25, 0)
OLDEST_COMPOSE = (2, 20)

_ANSWER_SECONDS = 15
_START_SECONDS = 60
_SYSTEMD = Path("/run/systemd/system")
_ENGINE_LOG = Path("/var/log/carillon-dockerd.log")
_PID_FILES = {  # file: the program whose number it should hold
    Path("/run/docker.pid"): "dockerd",
    Path("/run/docker/containerd/containerd.pid"): "containerd",
}
_HOW_TO_INSTALL = (
    "install Docker Engine and its Compose and Buildx plugins "
    "(Debian 13: apt install docker.io docker-cli docker-compose docker-buildx)"
)


class State(Enum):
    MISSING = "no docker command"
    STOPPED = "no engine runs"
    SILENT = "the engine does not answer"
    DENIED = "not allowed to talk to the engine"
    READY = "ready"


def state() -> tuple[State, str]:
    """How the engine is, and its version or what the client said."""
    try:
        answer = process.ask(
            ["docker", "version", "--format", "{{.Server.Version}}"], seconds=_ANSWER_SECONDS
        )
    except FileNotFoundError:
        return State.MISSING, ""
    except subprocess.TimeoutExpired:
        return State.SILENT, ""
    said = answer.stdout.strip() or answer.stderr.strip().replace("\n", " ")
    if answer.returncode == 0:
        return State.READY, answer.stdout.strip()
    if "permission denied" in answer.stderr.lower():
        return State.DENIED, said
    return State.STOPPED, said


def check() -> bool:
    """Before anything is touched: True when an engine is ready, False when we can install or start one.

    Raises `Failure` in every other case.
    """
    found, said = state()
    if found is State.READY:
        _new_enough("Docker Engine", said, OLDEST_ENGINE)
        return True
    if found is State.SILENT:
        raise Failure(
            f"the Docker engine does not answer within {_ANSWER_SECONDS} s: look at its log "
            "(journalctl -u docker) and restart it (systemctl restart docker)"
        )
    if found is State.DENIED:
        raise Failure(
            "Docker refuses this user: add it to the group (sudo usermod -aG docker $USER), then log in again"
        )
    if found is State.MISSING:
        if debian.can_install():
            return False
        raise Failure(f"Docker is missing: {_HOW_TO_INSTALL}")
    if os.environ.get("DOCKER_HOST"):
        raise Failure(
            f"no engine answers at DOCKER_HOST={os.environ['DOCKER_HOST']}: start it, or unset DOCKER_HOST"
        )
    if os.geteuid() == 0:
        return False
    raise Failure("no Docker engine runs: start it with `sudo systemctl start docker`")


def ensure(config: Config) -> None:
    """An engine that answers, with Compose and Buildx: installs and starts what is missing, where it can."""
    found, _ = state()
    if found is State.MISSING:
        debian.install(PACKAGES, config.logs)
        found, _ = state()
    if found is not State.READY:
        start()
    _plugins(config)


def _plugins(config: Config) -> None:
    def versions() -> tuple[str | None, str | None]:
        return _version("compose", "version", "--short"), _version("buildx", "version")

    compose, buildx = versions()
    if not (compose and buildx):
        if not debian.can_install():
            missing = " and ".join(n for n, v in (("Compose (v2)", compose), ("Buildx", buildx)) if not v)
            raise Failure(f"Docker's plugin {missing} is missing: {_HOW_TO_INSTALL}")
        debian.install(PACKAGES, config.logs)
        compose, buildx = versions()
        if not (compose and buildx):
            raise Failure(f"Docker still has no Compose or Buildx plugin: {_HOW_TO_INSTALL}")
    _new_enough("Docker Compose", compose, OLDEST_COMPOSE)


def _version(*arguments: str) -> str | None:
    answer = process.ask(["docker", *arguments], seconds=_ANSWER_SECONDS)
    return answer.stdout.strip() if answer.returncode == 0 else None


def _new_enough(what: str, version: str | None, oldest: tuple[int, int]) -> None:
    numbers = (version or "").removeprefix("v").split(".")
    try:
        found = (int(numbers[0]), int(numbers[1]))
    except (ValueError, IndexError):
        return  # a development build: let it try
    if found < oldest:
        raise Failure(f"{what} {version} is too old: {oldest[0]}.{oldest[1]} or newer is needed")


def start() -> None:
    """Start the engine and wait until it answers. Raises `Failure` with the end of its log."""
    if _SYSTEMD.is_dir():
        step("Starting the Docker engine (systemctl start docker)")
        process.ask(["systemctl", "start", "docker"], seconds=_START_SECONDS)
        _await(None)
        return
    if not shutil.which("dockerd"):
        raise Failure(f"no Docker engine runs and there is no dockerd to start: {_HOW_TO_INSTALL}")
    for file, program in _PID_FILES.items():
        remove_stale_pid(file, program)
    step(f"Starting the Docker engine by hand, because there is no systemd (its log: {_ENGINE_LOG})")
    with _ENGINE_LOG.open("ab") as log:
        # A session of its own: an interrupt of `make` is none of the engine's business.
        dockerd = subprocess.Popen(
            ["dockerd"], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    _await(dockerd)


def remove_stale_pid(file: Path, program: str) -> bool:
    """Remove the file when its number is not that of a running `program`; True when it did.

    After a crash or in a restarted container the number may belong to somebody else, and the engine would
    then take itself to be running already.
    """
    try:
        number = file.read_text().strip()
    except FileNotFoundError:
        return False
    try:
        running = Path("/proc", number, "comm").read_text().strip() if number.isdecimal() else ""
    except FileNotFoundError:
        running = ""
    if running == program:
        return False
    progress(f"removing {file}, which an earlier {program} left behind")
    file.unlink(missing_ok=True)
    return True


def _await(dockerd: subprocess.Popen[bytes] | None) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        if state()[0] is State.READY:
            return
        ended = dockerd is not None and dockerd.poll() is not None
        if ended or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    details = process.tail(_ENGINE_LOG) if dockerd else []
    if dockerd and not ended:
        os.kill(dockerd.pid, signal.SIGTERM)
    why = (
        f"it ended with {dockerd.returncode}" if ended and dockerd else f"no answer within {_START_SECONDS} s"
    )
    where = str(_ENGINE_LOG) if dockerd else "journalctl -u docker"
    raise Failure(f"the Docker engine did not start ({why}): see {where}", details)
