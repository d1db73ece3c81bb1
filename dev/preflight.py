"""Looks before anything is touched: ports, disk. One line for what is in the way."""

from __future__ import annotations

import errno
import shutil
import socket
import stat
from collections.abc import Iterable
from pathlib import Path

from dev import process, project
from dev.config import OBSERVABILITY, ROOT, YOURS, Config
from dev.output import Failure

_GIB = 2**30
_FOR_CONTAINERS = ("src", "nginx", "images", "supervisord", "observability")
# Measured: the images take 1.7 GB with their build layers, the checkout's private environments 0.5 GB.
NEEDED_FOR_IMAGES = 4 * _GIB
NEEDED_TO_RUN = 1 * _GIB
_STOP = "`make down`, `make test-clean`, `make production-down`, `make cluster-down`"


def check(config: Config, *, images_present: bool, needs_disk: bool = True) -> None:
    """Raises `Failure` with what to do. Changes nothing."""
    project.declared()
    if needs_disk:
        disk(NEEDED_TO_RUN if images_present else NEEDED_FOR_IMAGES)
    if YOURS:
        readable(YOURS, ("src",))
    readable()
    neighbour(config)
    ports(config)


def disk(needed: int) -> None:
    for place in {docker_root(), ROOT}:
        free = shutil.disk_usage(place).free
        if free < needed:
            raise Failure(
                f"too little disk: {place} has {free / _GIB:.1f} GiB, {needed / _GIB:.0f} GiB needed. "
                "Free some (`docker system df` shows what Docker holds)."
            )


def docker_root() -> Path:
    """Where the engine keeps images: as it says, or where Debian's would; or the nearest parent that exists,
    for an engine in a virtual machine has its root elsewhere."""
    said = process.docker("info", "--format", "{{.DockerRootDir}}")
    root = Path(said if said.startswith("/") else "/var/lib/docker")
    return next(path for path in (root, *root.parents) if path.exists())


def readable(root: Path = ROOT, folders: tuple[str, ...] = _FOR_CONTAINERS) -> None:
    """The containers' users, who are neither owner nor group, can read what is mounted or copied."""
    for folder in folders:
        for path in [root / folder, *(root / folder).rglob("*")]:
            if "__pycache__" in path.parts:
                continue
            try:
                mode = path.stat().st_mode
            except FileNotFoundError:  # an editor's temporary file
                continue
            wanted = 0o005 if stat.S_ISDIR(mode) else 0o004
            if mode & wanted != wanted:
                raise Failure(
                    f"{path} is not for others to read, so not for the users in the containers: "
                    f"chmod -R o+rX {' '.join(folders)}"
                )


def neighbour(config: Config) -> None:
    """No stack of another checkout or kind has this name: its containers would be replaced by ours."""
    form = '{{.Label "com.docker.compose.project.config_files"}}'
    label = f"label=com.docker.compose.project={config.project}"
    found = process.docker("ps", "--all", "--filter", label, "--format", form)
    beside = {str(OBSERVABILITY), str(config.processes)}  # whatever is beside it makes no other kind of it

    def kind(files: Iterable[str]) -> str:
        return ",".join(file for file in files if file not in beside)

    ours = kind(map(str, config.compose_files))
    for line in {kind(line.split(",")) for line in found.splitlines()}:
        file = Path(line.partition(",")[0])
        # What is left of a checkout that is gone belongs to nobody.
        if line == ours or not line or not file.exists():
            continue
        if file.parent.parent == ROOT:
            files = " and ".join(str(Path(name).relative_to(ROOT)) for name in line.split(","))
            raise Failure(
                f"the stack {config.project} is of another kind, made from {files}: "
                f"take it down ({_STOP}), or set another CARILLON_PROJECT=…"
            )
        raise Failure(
            f"the stack {config.project} belongs to the checkout {file.parent.parent}: "
            f"take it down there ({_STOP}), or set another CARILLON_PROJECT=…"
        )


def ports(config: Config) -> None:
    """Every port is free, or published by this very stack already."""
    form = '{{.Label "com.docker.compose.project"}}\t{{.Names}}'
    for name, port in config.ports.items():
        if not in_use(config.address_of(name), port):
            continue
        found = process.docker("ps", "--filter", f"publish={port}", "--format", form)
        project, _, container = found.partition("\n")[0].partition("\t")
        if container and project == config.project:
            continue
        whose = f"by container {container}" if container else f"by {_listener(port) or 'another program'}"
        raise Failure(f"port {port} is in use {whose}: stop that, or choose another with {name}=…")


def in_use(address: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # Connections in TIME_WAIT from an earlier run are no obstacle to the engine, so not here.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            # A port below 1024 may be refused to us and be free for the engine.
            return error.errno == errno.EADDRINUSE
    return False


def _listener(port: int) -> str | None:
    """`name (process 123)` of who listens on `port`, where the system lets us see it."""
    inodes = set()
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        if table.exists():
            for line in table.read_text().splitlines()[1:]:
                columns = line.split()
                if columns[3] == "0A" and int(columns[1].rpartition(":")[2], 16) == port:
                    inodes.add(f"socket:[{columns[9]}]")
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if str(descriptor.readlink()) in inodes:
                number = descriptor.parts[2]
                return f"{Path('/proc', number, 'comm').read_text().strip()} (process {number})"
        except OSError:  # it ended, or is not ours to look at
            continue
    return None
