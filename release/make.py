"""`make release`: the artifacts of the commit that is checked out, in dist/<version>/, whole or not at all.

Made twice from one commit, every artifact is the same to the byte: sources come from git and not from the
folder, all times are the commit's, archives are packed in order and belong to nobody.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Mapping
from email.parser import Parser
from pathlib import Path

from dev import bundle, engine, production
from dev.environments import TOOLS_LOCK
from dev.output import Failure
from release import images, provenance, sbom, verify

ROOT = Path(__file__).parent.parent
DISTRIBUTIONS = ("src/asgi_amqp", "src/carillon")  # `project` is a team's, and in no wheel that is published
LOCK = "requirements/app.txt"
# The second is of the bundle's tools, the third has what makes the artifacts.
LOCKS = (LOCK, TOOLS_LOCK, "requirements/test.txt")
KEY = "CARILLON_RELEASE_KEY"
IMAGES = "CARILLON_RELEASE_IMAGES"
# What makes the documentation a site: `make docs` as well.
SITE = ("sphinx-build", "--quiet", "--fail-on-warning", "--keep-going", "--conf-dir", "docs/site")
MOST, MOST_OF_THE_BUNDLE, MOST_OF_AN_IMAGE = 32 << 20, 64 << 20, 256 << 20  # bytes of one artifact
WHEELS = Path("build/releases")  # of a checkout: what was downloaded for a bundle, and is checked by its hash
SECONDS = 300


class ReleaseError(Exception):
    """The release cannot be made; one line that says what to do."""


def run(*argv: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
    try:
        done = subprocess.run(
            [str(each) for each in argv], cwd=cwd, env=dict(os.environ, **(env or {})),
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS, check=False,
            umask=0o022,  # wheels keep the modes of what was built
        )  # fmt: skip
    except FileNotFoundError:
        raise ReleaseError(f"{argv[0]} is not installed: apt install {Path(argv[0]).name}") from None
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no word"]
        raise ReleaseError(f"{Path(argv[0]).name} {argv[1]} failed: {last[0]}")
    return done.stdout


def release(checkout: Path, output: Path, key: Path, *, with_images: bool) -> Path:
    """The folder with the signed artifacts. ReleaseError: nothing was made."""
    if with_images and (found := engine.state()[0]) is not engine.State.READY:
        raise ReleaseError(
            f"images need a container engine, and {found.value}: start one, or leave them out ({IMAGES}=no)"
        )
    changed = run("git", "status", "--porcelain", cwd=checkout).splitlines()
    if changed:
        raise ReleaseError(f"the checkout has changes, such as {changed[0][3:]}: commit them first")
    if not key.is_file():
        raise ReleaseError(
            f"{KEY}={key} is not there: `minisign -G` makes a key, and the maintainers have theirs"
        )
    commit = run("git", "rev-parse", "HEAD", cwd=checkout).strip()
    version = tomllib.loads((checkout / "pyproject.toml").read_text())["project"]["version"]
    final = output / version
    if final.exists():
        raise ReleaseError(f"{final} exists: a version is made once; raise it in pyproject.toml")
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output, prefix=".unfinished-") as folder:
        partial = Path(folder) / "artifacts"
        build(checkout, commit, partial, with_images=with_images)
        describe(checkout, commit, version, partial)
        sums = "".join(f"{verify.digest(path)}  {path.name}\n" for path in sorted(partial.iterdir()))
        (partial / verify.SUMS).write_text(sums)
        comment = f"carillon {version} of commit {commit}"
        run("minisign", "-S", "-s", key, "-m", partial / verify.SUMS, "-t", comment, "-c", comment)
        partial.rename(final)
    return final


def build(checkout: Path, commit: str, folder: Path, *, with_images: bool) -> None:
    """The archives of a commit in a new folder: all but what describes and proves them."""
    folder.mkdir()
    when = int(run("git", "show", "--no-patch", "--format=%ct", commit, cwd=checkout))
    with tempfile.TemporaryDirectory() as scratch:
        archive, source = Path(scratch) / "source.tar", Path(scratch) / "source"
        run("git", "archive", "--format=tar", f"--output={archive}", commit, cwd=checkout)
        with tarfile.open(archive) as tar:
            tar.extractall(source, filter="data")
        version = tomllib.loads((source / "pyproject.toml").read_text())["project"]["version"]
        repack(archive, folder / f"carillon-{version}-source.tar.gz", when, f"carillon-{version}")
        for name in DISTRIBUTIONS:
            distribution(source / name, folder, when)
        npm_package(source, version, folder, when)
        documentation(source, version, folder, when)
        made = Path(scratch) / "collection"
        galaxy = Path(sys.executable).parent / "ansible-galaxy"
        run(galaxy, "collection", "build", source / "ansible", "--output-path", made)
        for archive in made.iterdir():
            repack(archive, folder / archive.name, when)
        for path in folder.iterdir():
            limit(path, MOST)
        try:
            cache, wheels = Path(scratch) / "releases", checkout / WHEELS
            limit(bundle.write(source, folder, cache, wheels, bundle.hosts({}), when), MOST_OF_THE_BUNDLE)
            if with_images:
                config = production.load(state=str(Path(scratch) / "state"))
                for path in images.build(source, folder, config, version, when):
                    limit(path, MOST_OF_AN_IMAGE)
        except Failure as error:
            raise ReleaseError("; ".join([str(error), *error.details[-1:]])) from None


def limit(path: Path, most: int) -> None:
    size = path.stat().st_size
    if size > most:
        raise ReleaseError(f"{path.name} has {size} bytes, more than {most}: what came into it?")


def distribution(source: Path, folder: Path, when: int) -> None:
    """sdist and wheel, the wheel from the unpacked sdist, as who installs from it would get it."""
    with tempfile.TemporaryDirectory() as scratch:
        sdist = Path(scratch) / _backend(source, "build_sdist", Path(scratch), when)
        repack(sdist, folder / sdist.name, when)
        with tarfile.open(folder / sdist.name) as tar:
            tar.extractall(scratch, filter="data")
        _backend(Path(scratch) / sdist.name.removesuffix(".tar.gz"), "build_wheel", folder, when)


def _backend(source: Path, hook: str, output: Path, when: int) -> str:
    program = f"import sys; from setuptools import build_meta; print(build_meta.{hook}(sys.argv[1]))"
    epoch = {"SOURCE_DATE_EPOCH": str(when), "PYTHONHASHSEED": "0"}
    return run(sys.executable, "-c", program, output, cwd=source, env=epoch).splitlines()[-1]


def npm_package(source: Path, version: str, folder: Path, when: int) -> None:
    """The client for browsers as `npm install` takes it: one version with the wheel that brings it, too."""
    described = json.loads((source / "release/npm/package.json").read_text()) | {"version": version}
    files = {
        "package.json": (json.dumps(described, indent=2) + "\n").encode(),
        "README.md": (source / "release/npm/README.md").read_bytes(),
        "LICENSE": (source / "LICENSE").read_bytes(),
        "carillon.d.ts": (source / "release/npm/carillon.d.ts").read_bytes(),
        "carillon.js": (source / "src/carillon/static/carillon/carillon.js").read_bytes(),
    }
    with tempfile.NamedTemporaryFile(suffix=".tar") as archive:
        with tarfile.open(fileobj=archive, mode="w") as tar:
            for name, content in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        archive.flush()
        repack(Path(archive.name), folder / f"{described['name']}-{version}.tgz", when, "package")


def documentation(source: Path, version: str, folder: Path, when: int) -> None:
    """The site of `make docs`, to be read from a folder or put on a web server."""
    with tempfile.TemporaryDirectory() as scratch:
        site, archive = Path(scratch) / "site", Path(scratch) / "site.tar"
        program, *options = SITE
        run(
            Path(sys.executable).parent / program, *options, "--doctree-dir", Path(scratch) / "doctrees",
            ".", site, cwd=source, env={"SOURCE_DATE_EPOCH": str(when), "PYTHONHASHSEED": "0"},
        )  # fmt: skip
        with tarfile.open(archive, "w") as tar:
            for path in site.rglob("*"):
                tar.add(path, str(path.relative_to(site)), recursive=False)
        repack(archive, folder / f"carillon-{version}-docs.tar.gz", when, f"carillon-{version}-docs")


def repack(archive: Path, target: Path, when: int, top: str = "") -> None:
    """A tar archive in order, with one time and no owner, compressed without a name; `top` goes before."""
    packed = io.BytesIO()
    with tarfile.open(archive) as old, tarfile.open(fileobj=packed, mode="w") as new:
        for info in sorted(old.getmembers(), key=lambda each: each.name):
            content = old.extractfile(info) if info.isfile() else None
            info.name = f"{top}/{info.name}" if top else info.name
            info.mtime, info.uid, info.gid, info.uname, info.gname = when, 0, 0, "", ""
            info.mode = 0o755 if info.isdir() or info.mode & 0o100 else 0o644
            info.pax_headers = {}
            new.addfile(info, content)
    with target.open("wb") as file, gzip.GzipFile("", "wb", 9, file, mtime=when) as compressed:
        compressed.write(packed.getvalue())


def describe(checkout: Path, commit: str, version: str, folder: Path) -> None:
    """An SBOM for each artifact, the provenance of all, and the program that verifies them."""
    when = int(run("git", "show", "--no-patch", "--format=%ct", commit, cwd=checkout))
    locks = {name: run("git", "show", f"{commit}:{name}", cwd=checkout) for name in LOCKS}
    pins = sbom.parse_lock(locks[LOCK])
    for path in sorted(folder.iterdir()):
        files = verify.members(path)
        needed = [*sbom.closure(pins, requirements(path, folder)), *sbom.wheels(files)]
        if path.name.endswith(images.SUFFIX):
            needed += images.packages(path)
        text = sbom.document(path.name, version, verify.digest(path), files, needed, images.moment(when))
        write(folder / f"{path.name}{verify.SBOM}", text)
    shutil.copyfile(Path(verify.__file__), folder / "verify")
    (folder / "verify").chmod(0o755)
    subjects = {path.name: verify.digest(path) for path in folder.iterdir()}
    materials = {name: sha256(text) for name, text in locks.items()}
    builder = f"make release, Python {sys.version.split()[0]}"
    asked = {"commit": commit, "version": version, "images": bool([*folder.glob(f"*{images.SUFFIX}")])}
    write(folder / verify.PROVENANCE, provenance.statement(subjects, materials, asked, builder))


def requirements(artifact: Path, folder: Path) -> list[str]:
    """What a Python artifact asks for; of an sdist, what the wheel beside it does."""
    if not artifact.name.endswith(".whl"):
        wheels = list(folder.glob(f"{artifact.name.removesuffix('.tar.gz')}-*.whl"))
        return requirements(wheels[0], folder) if wheels else []
    with zipfile.ZipFile(artifact) as wheel:
        metadata = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(wheel.read(metadata).decode()).get_all("Requires-Dist") or []


def sha256(text: str) -> str:
    return verify.hashlib.sha256(text.encode()).hexdigest()


def write(path: Path, document: object) -> None:
    path.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")


def rebuild(checkout: Path, commit: str, folder: Path) -> list[str]:
    """What of the artifacts in a folder the commit does not build to the byte, one line each."""
    with tempfile.TemporaryDirectory() as scratch:
        again = Path(scratch) / "again"
        build(checkout, commit, again, with_images=bool([*folder.glob(f"*{images.SUFFIX}")]))
        built = {path.name: verify.digest(path) for path in again.iterdir()}
        # An SBOM names an artifact: one that the commit does not build was put there by somebody.
        there = {path.name.removesuffix(verify.SBOM) for path in folder.glob(f"*{verify.SBOM}")}
        found = []
        for name in sorted(built.keys() | there):
            path, said = folder / name, f"{name}: commit {commit[:12]} builds"
            if name not in built:
                found.append(f"{said} no such artifact")
            elif not path.is_file() or verify.digest(path) != built[name]:
                image = path.is_file() and name.endswith(images.SUFFIX)
                parts = images.differences(path, again / name) if image else []
                found += [f"{said} another: {part}" for part in parts] or [f"{said} another"]
    return found
