#!/usr/bin/python
"""One archive with everything that a host needs to install a release without a package index."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from contextlib import suppress
from importlib import util
from io import BytesIO
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: release
short_description: Build or find the archive of a release on the control node
description:
  - Runs on the control node. The archive holds the wheels of the hashed lock for the hosts' Python, the
    project's own three wheels and the lock. Its name is made from the project's version and a digest of all
    that goes in, so that what changes has another name and what does not is not built again.
  - An unpacked bundle (C(make bundle)) has its archive in I(cache), and no index is asked, ever.
options:
  source: {type: path, required: true, description: "The checkout."}
  cache: {type: path, required: true, description: "Folder for wheelhouses and archives."}
  python: {type: str, required: true, description: "Python of the hosts, such as 3.13."}
  architecture: {type: str, required: true, description: "Machine of the hosts, such as x86_64."}
  held: {type: str, default: "", description: "Release to find instead; its archive may be gone."}
author: ["Carillon"]
"""

EXAMPLES = r"""
- delegate_to: localhost
  carillon.carillon.release: {source: .., cache: ../build/releases, python: "3.13", architecture: x86_64}
"""

RETURN = r"""
id: {type: str, returned: always, description: "<version>-<digest>"}
archive: {type: str, returned: always, description: "Path of the archive on the control node."}
own: {type: bool, returned: always, description: "Whether it is the release of this checkout."}
"""

# In a bundle: nothing can be built there.
BUNDLE_MARK = ".bundle"
INPUTS = (
    "pyproject.toml",
    "requirements/app.in",
    "requirements/app.txt",
    "requirements/own.in",
    "src",
    "supervisord",
    *("nginx/nginx.conf", "nginx/snippets", "nginx/pages", "nginx/sites/site.conf.j2"),
)
DECLARED = "src/project/carillon.toml"
LOCATIONS = "src/project/nginx"  # the project's own
OWN = ("src/asgi_amqp", "src/carillon", ".")  # each becomes a wheel; own.in: what the last needs
SKIPPED = ("__pycache__", ".egg-info")
KEPT = 10  # of archives and of wheelhouses, some 50 MB each; a host keeps those that it runs
PLATFORMS = (
    "manylinux2014",
    "manylinux_2_17",
    "manylinux_2_24",
    "manylinux_2_27",
    "manylinux_2_28",
    "manylinux_2_31",
    "manylinux_2_34",
)


def files(source: Path) -> list[Path]:
    found = []
    for name in INPUTS:
        path = source / name
        members = path.rglob("*") if path.is_dir() else [path]
        found += [
            member
            for member in members
            if member.is_file() and not any(skip in str(member.relative_to(source)) for skip in SKIPPED)
        ]
    return sorted(found)


def digest(source: Path, paths: list[Path]) -> str:
    total = hashlib.sha256()
    for path in paths:
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        total.update(f"{path.relative_to(source)} {content}\n".encode())
    return total.hexdigest()


def version(source: Path) -> str:
    # A whole TOML parser is not in the library of every Python that Ansible may run under.
    for line in (source / "pyproject.toml").read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition("=")
        if key.strip() == "version":
            return value.strip().strip('"')
    raise ValueError("pyproject.toml names no version")


def settings(source: Path) -> list[tuple[Path, str]]:
    """The files of supervisord and nginx, and where a host has them below its folder of the release."""
    found = []
    for path in files(source):
        name = path.relative_to(source)
        if str(name) == DECLARED:
            found.append((path, f"etc/nginx/{name.name}"))  # nginx's site file is made from it
        if str(name.parent) == LOCATIONS and name.suffix == ".conf":
            found.append((path, f"etc/nginx/site.d/{name.name}"))
        if name.parts[0] in ("supervisord", "nginx"):
            found.append((path, "etc/uwsgi.ini" if name.name == "uwsgi.ini" else f"etc/{name}"))
    return found


def programs(source: Path) -> dict[str, str]:
    """supervisord's files of the processes that the project declares. Raises ValueError."""
    spec = util.spec_from_file_location("carillon_declared", source / "src/carillon/process/declared.py")
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found, problems = module.read(source / DECLARED)
    if problems:
        raise ValueError("; ".join(problems))
    return module.programs(found)


def readable(member: tarfile.TarInfo, when: int | None) -> tarfile.TarInfo:
    """Whatever the umask of the control node's user: on a host the programs' own user reads these."""
    member.mode, member.uid, member.gid, member.uname, member.gname = 0o644, 0, 0, "root", "root"
    member.mtime = member.mtime if when is None else when
    return member


def without_wheel(said: str, where: str) -> str | None:
    """What pip says where the index has a package and no wheel of it that fits: a line with what to do."""
    found = re.search(r"No matching distribution found for ([^\s;(]+)", said)
    if not found or re.search(r"Retrying \(|SSLError|Connection (refused|reset)", said):
        return None
    return (
        f"{found[1]} has no wheel for {where}, and nothing is compiled here: name a version that has one and "
        "run `make lock`, or, where it is Python alone, put its package into src/ beside yours"
    )


def pip(*arguments: str, where: str = "this machine", **environ: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environ},
        umask=0o022,  # wheels keep the modes of what was built
    )
    if done.returncode:
        if why := without_wheel(done.stderr, where):
            raise RuntimeError(why)
        raise RuntimeError(f"pip {arguments[0]} failed: {done.stderr.strip()[-800:]}")


def download(lock: Path, folder: Path, python: str, architecture: str) -> None:
    """The wheels of a lock for that Python on Linux, each checked by its hash."""
    where = f"Python {python} on Linux {architecture}"
    pip(
        "download",
        "--require-hashes",
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
        str(folder),
        "--implementation=cp",
        f"--python-version={python}",
        f"--abi=cp{python.replace('.', '')}",
        "--abi=abi3",
        "--abi=none",
        *(f"--platform={tag}_{architecture}" for tag in PLATFORMS),
        "--requirement",
        str(lock),
        where=where,
    )


def wheelhouse(lock: Path, cache: Path, python: str, architecture: str) -> Path:
    """The wheels of a lock for that Python, fetched once per lock; anew where one is not the lock's."""
    text = lock.read_text()
    name = f"wheels-{hashlib.sha256(text.encode()).hexdigest()[:12]}-{python}-{architecture}"
    final = cache / name
    if final.is_dir():
        if all(hashlib.sha256(wheel.read_bytes()).hexdigest() in text for wheel in final.iterdir()):
            return final
        shutil.rmtree(final)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        partial = Path(folder) / "wheels"
        download(lock, partial, python, architecture)
        partial.rename(final)
    return final


def build(source: Path, wheels: Path, release: str, archive: Path, when: int | None) -> None:
    declared = programs(source)
    # The environment's setuptools, which a lock names, and not the newest: where bytes are to be the same.
    fixed = {} if when is None else {"SOURCE_DATE_EPOCH": str(when), "PYTHONHASHSEED": "0"}
    with tempfile.TemporaryDirectory(dir=archive.parent) as folder:
        # A copy, because setuptools writes beside what it builds and the checkout may be read-only or shared.
        copy = Path(folder) / "source"
        for path in files(source):
            target = copy / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        for extra in ("README.md", "LICENSE"):
            (copy / extra).write_bytes((source / extra).read_bytes() if (source / extra).exists() else b"")
        pip(
            "wheel",
            "--no-deps",
            "--wheel-dir",
            str(Path(folder) / "own"),
            *(["--no-build-isolation"] if fixed else []),
            *(str(copy / name) for name in OWN),
            **fixed,
        )

        def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
            return readable(member, when)

        partial = Path(folder) / "archive.tar"
        with tarfile.open(partial, "w") as tar:
            for wheel in sorted(wheels.iterdir()) + sorted((Path(folder) / "own").iterdir()):
                tar.add(wheel, f"{release}/wheels/{wheel.name}", filter=plain)
            tar.add(source / "requirements/app.txt", f"{release}/requirements.txt", filter=plain)
            for path, name in settings(source):
                tar.add(path, f"{release}/{name}", filter=plain)
            for name, text in declared.items():
                member = tarfile.TarInfo(f"{release}/etc/supervisord/conf.d/{name}")
                member.size = len(text.encode())
                tar.addfile(plain(member), BytesIO(text.encode()))
        os.replace(partial, archive)


def tidy(cache: Path) -> None:
    """All but the `KEPT` archives and wheelhouses that were used last go, and what builds that were cut off
    left. Whoever calls holds the lock."""
    for pattern in ("carillon-*.tar", "wheels-*"):
        found = sorted(cache.glob(pattern), key=lambda path: path.stat().st_mtime, reverse=True)
        for old in found[KEPT:]:
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    for left in cache.glob("tmp*"):
        shutil.rmtree(left, ignore_errors=True)


def ensure(
    source: Path,
    cache: Path,
    python: str,
    architecture: str,
    *,
    dry: bool = False,
    wheels: Path | None = None,
    when: int | None = None,
) -> tuple[str, Path, bool]:
    """(the release's name, its archive, whether it was or would have been built). `dry` builds nothing.

    `wheels`: the folder for wheelhouses, where it is not the cache. With `when`, in seconds since 1970, an
    archive is the same to the byte whenever and wherever it is built.
    """
    release = f"{version(source)}-{digest(source, files(source))[:8]}"
    archive = cache / f"carillon-{release}-{python}-{architecture}.tar"
    if dry:
        return release, archive, not archive.exists()
    if archive.exists():
        with suppress(OSError):  # a bundle may be somebody else's
            os.utime(archive)
        return release, archive, False
    if (source / BUNDLE_MARK).exists():
        there = ", ".join(sorted(path.name for path in cache.glob("carillon-*.tar"))) or "none"
        raise ValueError(
            f"this is an unpacked bundle whose archive ({there}) is not the one asked for ({archive.name}). "
            "If its files were changed, unpack it anew; for another Python or machine make another bundle "
            "(CARILLON_BUNDLE_FOR)"
        )
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not archive.exists():
            house = wheelhouse(source / "requirements/app.txt", wheels or cache, python, architecture)
            os.utime(house)
            if wheels is None:
                tidy(cache)
            build(source, house, release, archive, when)
    return release, archive, True


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "source": {"type": "path", "required": True},
            "cache": {"type": "path", "required": True},
            "python": {"type": "str", "required": True},
            "architecture": {"type": "str", "required": True},
            "held": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    source, cache = Path(module.params["source"]), Path(module.params["cache"])
    python, architecture, held = (module.params[name] for name in ("python", "architecture", "held"))
    try:
        release, archive, changed = ensure(
            source, cache, python, architecture, dry=bool(module.check_mode or held)
        )
        if held == release:
            release, archive, changed = ensure(source, cache, python, architecture, dry=module.check_mode)
    except (OSError, ValueError, RuntimeError) as error:
        module.fail_json(msg=f"The release could not be built from {source}: {error}")
    if held and held != release:
        archive = cache / f"carillon-{held}-{python}-{architecture}.tar"
        module.exit_json(changed=False, id=held, archive=str(archive), own=False)
    module.exit_json(changed=changed, id=release, archive=str(archive), own=True)


if __name__ == "__main__":
    main()
