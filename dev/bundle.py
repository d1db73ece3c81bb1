"""`make bundle`: one archive from which a host is installed where no package index can be reached.

In it: the playbooks, the release with its wheels, the static files, and the control node's tools as wheels.
Debian's packages come from the hosts' own sources there.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping
from importlib import util
from pathlib import Path
from types import ModuleType

from dev.config import ROOT
from dev.development import TOOLS_LOCK
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
    """The archive's path. Raises `Failure` when the wheels cannot be had."""
    start = time.monotonic()
    module = _release_module()
    cache = ROOT / "build" / "releases"
    step("Getting the release's wheels and the control node's tools")
    try:
        releases = [
            module.ensure(ROOT, cache, python, architecture) for python, architecture in hosts(environ)
        ]
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            tools = Path(folder) / "tools"
            for python in _CONTROL_PYTHONS:
                module.download(ROOT / TOOLS_LOCK, tools, python, "x86_64")
            name = f"carillon-bundle-{releases[0][0]}"
            archive = ROOT / "build" / f"{name}.tar"
            members = [*_checkout(), *((file, f"tools/{file.name}") for file in sorted(tools.iterdir()))]
            members += [(path, f"build/releases/{path.name}") for _, path, _ in releases]
            _write(archive, name, members, {module.BUNDLE_MARK: f"{releases[0][0]}\n"})
    except (OSError, RuntimeError) as error:
        raise Failure(f"the bundle could not be made: {error}") from None
    size, seconds = archive.stat().st_size / 2**20, time.monotonic() - start
    progress(f"{archive.relative_to(ROOT)}: {size:.0f} MiB, {seconds:.0f} s")
    progress("how to install from it: docs/how-to/production-bundle.md")
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


def _release_module() -> ModuleType:
    """Ansible's module of that name: it alone knows what a release is made of."""
    path = ROOT / "ansible/plugins/modules/release.py"
    spec = util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise Failure(f"{path} cannot be loaded")
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _checkout() -> Iterator[tuple[Path, str]]:
    """Files of the checkout by their names in the bundle; of the inventories the examples alone."""
    for name in _FOLDERS:
        for path in sorted((ROOT / name).rglob("*")):
            parts = path.relative_to(ROOT).parts
            # The role of that name has no secret.
            private = _PRIVATE & set(parts[3:] if parts[:3] == ("ansible", "roles", "secrets") else parts)
            if not (path.is_file() or path.is_symlink()) or private or ".egg-info" in str(path):
                continue
            if parts[:2] == ("ansible", "inventories") and not parts[2].startswith("example-"):
                continue
            yield path, "/".join(parts)
    for name in _FILES:
        yield ROOT / name, name


def _write(archive: Path, top: str, members: list[tuple[Path, str]], texts: dict[str, str]) -> None:
    """Whole or not at all. SHA256SUMS is in it, for `sha256sum --check`."""
    sums = "".join(
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {name}\n"
        for path, name in members
        if not path.is_symlink()
    )
    partial = archive.with_suffix(".partial")
    with tarfile.open(partial, "w") as tar:
        for path, name in members:
            tar.add(path, f"{top}/{name}", filter=_nobodys)
        for name, text in {**texts, "SHA256SUMS": sums}.items():
            member = tarfile.TarInfo(f"{top}/{name}")
            member.size, member.mode, member.mtime = len(text.encode()), 0o644, int(time.time())
            tar.addfile(member, io.BytesIO(text.encode()))
    os.replace(partial, archive)


def _nobodys(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Not the owner of whoever made the bundle."""
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member
