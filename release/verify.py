#!/usr/bin/env python3
"""Verify the artifacts of a release, offline, in their folder: `python3 verify --key ../carillon.pub`.

The key lies outside the folder: what is in it and was not signed is a problem. Checks the signature of
SHA256SUMS, every file against it, every SBOM against the files in its artifact, and the provenance against
both. `--rebuild CHECKOUT` also builds the archives of the commit again and compares them byte by byte. Every
problem is one line that names the file. Exit status 0: all is as signed.

Needs Python 3.11 or newer and minisign; a rebuild also git, and an index for the tools of the checkout.
"""

import argparse
import hashlib
import io
import json
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

SUMS, SIGNATURE, PROVENANCE = "SHA256SUMS", "SHA256SUMS.minisig", "provenance.intoto.json"
SBOM = ".cdx.json"
SECONDS = 60


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def members(path: Path) -> dict[str, str]:
    """SHA-256 of every file in a wheel or a tar archive, and of those in tar archives in that, by its name.

    ValueError: it is neither.
    """
    try:
        if path.suffix == ".whl":
            with zipfile.ZipFile(path) as wheel:
                names = [info.filename for info in wheel.infolist() if not info.is_dir()]
                found = [(name, hashlib.sha256(wheel.read(name)).hexdigest()) for name in names]
        else:
            with tarfile.open(path) as tar:
                found = [*_files(tar)]
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise ValueError(f"cannot be read: {error}") from None
    if len(dict(found)) < len(found):
        raise ValueError("holds two files of one name")
    return dict(found)


def _files(tar: tarfile.TarFile, before: str = "") -> Iterator[tuple[str, str]]:
    for info in tar:
        if info.isdir():
            continue
        name, content = f"{before}{info.name}", _content(tar, info)
        yield name, hashlib.sha256(content).hexdigest()
        if name.endswith(".tar"):
            with tarfile.open(fileobj=io.BytesIO(content)) as inner:
                yield from _files(inner, f"{name}/")


def _content(tar: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(info) if info.isfile() else None
    return file.read() if file is not None else f"link to {info.linkname}".encode()


def parse_sums(text: str) -> dict[str, str]:
    """Digest of each file, by its name. ValueError: a line that is none of `sha256sum`."""
    sums = {}
    for line in text.splitlines():
        value, _, name = line.partition("  ")
        if len(value) != 64 or not name or "/" in name or name in sums:
            raise ValueError(f"not a line of sha256sum: {line[:100]!r}")
        sums[name] = value
    return sums


def problems(folder: Path, key: Path) -> list[str]:
    """What is not as it was signed, one line each."""
    found = [*signature_problems(folder, key)]
    try:
        sums = parse_sums((folder / SUMS).read_text())
    except (OSError, ValueError) as error:
        return [*found, f"{SUMS}: {error}"]
    there = {path.name for path in folder.iterdir()} - {SUMS, SIGNATURE}
    found += [f"{name}: is not in {SUMS}" for name in sorted(there - sums.keys())]
    for name, expected in sorted(sums.items()):
        if name not in there:
            found.append(f"{name}: is missing")
        elif digest(folder / name) != expected:
            found.append(f"{name}: is not what was signed: its digest differs")
        elif name.endswith(SBOM):
            found += sbom_problems(folder, name)
    found += provenance_problems(folder, sums)
    return found


def signature_problems(folder: Path, key: Path) -> list[str]:
    argv = ["minisign", "-V", "-q", "-p", str(key), "-m", str(folder / SUMS), "-x", str(folder / SIGNATURE)]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=SECONDS, check=False)
    except FileNotFoundError:
        return ["minisign is not installed: apt install minisign"]
    if done.returncode:
        return [f"{SIGNATURE}: is not by the owner of {key}: {(done.stderr or done.stdout).strip()}"]
    return []


def sbom_problems(folder: Path, name: str) -> list[str]:
    """Whether an SBOM says of its artifact what is so: its digest, and each file in it."""
    artifact = folder / name.removesuffix(SBOM)
    try:
        document = json.loads((folder / name).read_text())
        subject = document["metadata"]["component"]
        listed = {part["name"]: part["hashes"][0]["content"] for part in subject["components"]}
        said, held = subject["hashes"][0]["content"], members(artifact)
    except (OSError, ValueError, LookupError, TypeError) as error:
        return [f"{name}: does not describe {artifact.name}: {error}"]
    found = [] if said == digest(artifact) else [f"{name}: is of another {artifact.name}"]
    for part in sorted(listed.keys() | held.keys()):
        if listed.get(part) != held.get(part):
            where = (
                "is not listed" if part not in listed else "is not there" if part not in held else "differs"
            )
            found.append(f"{name}: {part} in {artifact.name} {where}")
    return found


def provenance_problems(folder: Path, sums: dict[str, str]) -> list[str]:
    """Whether the provenance names every artifact, as it is."""
    try:
        statement = json.loads((folder / PROVENANCE).read_text())
        subjects = {each["name"]: each["digest"]["sha256"] for each in statement["subject"]}
    except (OSError, ValueError, LookupError, TypeError) as error:
        return [f"{PROVENANCE}: {error}"]
    wanted = {name: value for name, value in sums.items() if name != PROVENANCE}
    return [
        f"{PROVENANCE}: says something else of {name}"
        for name in sorted(subjects.keys() | wanted.keys())
        if subjects.get(name) != wanted.get(name)
    ]


def rebuild_problems(folder: Path, checkout: Path) -> list[str]:
    """Whether the commit of the provenance builds the same archives."""
    commit = json.loads((folder / PROVENANCE).read_text())["predicate"]["buildDefinition"][
        "externalParameters"
    ]["commit"]
    done = subprocess.run(
        [str(checkout / "bin" / "dev"), "release-rebuild", commit, str(folder.resolve())],
        capture_output=True, text=True, timeout=3600, check=False,
    )  # fmt: skip
    if done.returncode:
        return (done.stdout + done.stderr).strip().splitlines() or ["the rebuild failed without a word"]
    return []


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--key", type=Path, required=True, help="the public key of the maintainers (minisign)"
    )
    parser.add_argument("--rebuild", type=Path, metavar="CHECKOUT", help="build the commit again and compare")
    parser.add_argument("folder", type=Path, nargs="?", default=Path(__file__).resolve().parent)
    options = parser.parse_args(arguments)
    found = problems(options.folder, options.key)
    if not found and options.rebuild is not None:
        found = rebuild_problems(options.folder, options.rebuild)
    for problem in found:
        print(problem, file=sys.stderr)
    print(f"{options.folder}: {f'{len(found)} problems' if found else 'everything is as it was signed'}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
