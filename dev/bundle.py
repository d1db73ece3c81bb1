"""`make bundle`: one archive from which a host is installed where no package index can be reached.

In it: the playbooks, the release with its wheels, the static files, and the control node's tools as wheels.
Debian's packages come from the hosts' own sources there.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import time
from collections.abc import Iterator, Mapping
from importlib import util
from pathlib import Path
from types import ModuleType

from dev.config import ROOT
from dev.environments import TOOLS_LOCK
from dev.output import Failure, progress, step

HOSTS = "CARILLON_BUNDLE_FOR"
DEFAULT_HOSTS = "3.13-x86_64"  # Debian 13
# The control node is not known yet: Debian 12, Ubuntu 24.04, Debian 13.
_CONTROL_PYTHONS = ("3.11", "3.12", "3.13")
_FOLDERS = ("ansible", "nginx", "supervisord", "src", "docs/how-to")
_FILES = (
    *("pyproject.toml", "README.md", "LICENSE"),
    *(f"requirements/{name}" for name in ("app.in", "app.txt", "own.in", "tools.in", "tools.txt")),
)
_PRIVATE = frozenset(["__pycache__", "secrets", "backups", "molecule", ".ansible"])


def make(environ: Mapping[str, str] = os.environ) -> Path:
    """The archive of this checkout as it is now, in build/. Raises `Failure`."""
    start = time.monotonic()
    step("Getting the release's wheels and the control node's tools")
    cache = ROOT / "build" / "releases"
    archive = write(ROOT, ROOT / "build", cache, cache, hosts(environ))
    size, seconds = archive.stat().st_size / 2**20, time.monotonic() - start
    progress(f"{archive.relative_to(ROOT)}: {size:.0f} MiB, {seconds:.0f} s")
    progress("how to install from it: docs/how-to/production-bundle.md")
    return archive


def write(
    source: Path,
    folder: Path,
    cache: Path,
    wheels: Path,
    machines: list[tuple[str, str]],
    when: int | None = None,
) -> Path:
    """The bundle of `source` in `folder`; its path. Raises `Failure` when the wheels cannot be had.

    `cache` and `wheels` keep releases and wheels. With `when` it is the same to the byte, as in `ensure` of
    Ansible's module.
    """
    module = release_module(source)
    try:
        releases = [module.ensure(source, cache, *machine, wheels=wheels, when=when) for machine in machines]
        tools = {
            file.name: file
            for python in _CONTROL_PYTHONS
            for file in module.wheelhouse(source / TOOLS_LOCK, wheels, python, "x86_64").iterdir()
        }
        name = f"carillon-bundle-{releases[0][0]}"
        archive = folder / f"{name}.tar"
        members = [*_checkout(source), *((tools[file], f"tools/{file}") for file in sorted(tools))]
        members += [(path, f"build/releases/{path.name}") for _, path, _ in releases]
        _write(archive, name, members, {module.BUNDLE_MARK: f"{releases[0][0]}\n"}, when)
    except (OSError, ValueError, RuntimeError) as error:
        raise Failure(f"the bundle could not be made: {error}") from None
    return archive


def hosts(environ: Mapping[str, str]) -> list[tuple[str, str]]:
    """(Python, machine) of the hosts that the bundle is for."""
    found = []
    for word in (environ.get(HOSTS) or DEFAULT_HOSTS).split():
        python, dash, architecture = word.partition("-")
        if not dash or not python.startswith("3.") or not python[2:].isdecimal() or not architecture:
            raise Failure(f"{HOSTS}: {word} is not <Python>-<machine> of a host, such as {DEFAULT_HOSTS}")
        found.append((python, architecture))
    return found


def release_module(source: Path) -> ModuleType:
    """Ansible's module of that name: it alone knows what a release is made of."""
    path = source / "ansible/plugins/modules/release.py"
    spec = util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise Failure(f"{path} cannot be loaded")
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _checkout(source: Path) -> Iterator[tuple[Path, str]]:
    """Files of the checkout by their names in the bundle; of the inventories the examples alone."""
    for name in _FOLDERS:
        for path in sorted((source / name).rglob("*")):
            parts = path.relative_to(source).parts
            # The role of that name has no secret.
            private = _PRIVATE & set(parts[3:] if parts[:3] == ("ansible", "roles", "secrets") else parts)
            if not (path.is_file() or path.is_symlink()) or private or ".egg-info" in str(path):
                continue
            if parts[:2] == ("ansible", "inventories") and not parts[2].startswith("example-"):
                continue
            yield path, "/".join(parts)
    for name in _FILES:
        yield source / name, name


def _write(
    archive: Path, top: str, members: list[tuple[Path, str]], texts: dict[str, str], when: int | None = None
) -> None:
    """Whole or not at all. SHA256SUMS is in it, for `sha256sum --check`."""
    sums = "".join(
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {name}\n"
        for path, name in members
        if not path.is_symlink()
    )

    def nobodys(member: tarfile.TarInfo) -> tarfile.TarInfo:
        """Not the owner, the umask and, with `when`, the clock of whoever made the bundle."""
        member.uid = member.gid = 0
        member.uname = member.gname = "root"
        member.mtime = member.mtime if when is None else when
        if member.isfile():
            member.mode = 0o755 if member.mode & 0o100 else 0o644
        return member

    partial = archive.with_suffix(".partial")
    with tarfile.open(partial, "w") as tar:
        for path, name in members:
            tar.add(path, f"{top}/{name}", filter=nobodys)
        for name, text in {**texts, "SHA256SUMS": sums}.items():
            member = tarfile.TarInfo(f"{top}/{name}")
            member.size, member.mtime = len(text.encode()), int(time.time())
            tar.addfile(nobodys(member), io.BytesIO(text.encode()))
    os.replace(partial, archive)
