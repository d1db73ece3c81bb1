"""The images of production as OCI archives: built of one commit on one day, they are the same in content.

Layers are written anew: in order, no time after the commit's, and without logs and caches of the build.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from dev import base_image, images, process, production
from dev.config import Config
from release.sbom import Pin, normal

SUFFIX = ".oci.tar"
# Files that a build leaves and no program reads: each build has others.
LEFT_OUT = re.compile(r"var/(log/|cache/apt/|cache/ldconfig/|cache/debconf/.*-old$)")
NAMED = 20  # differences of one layer
_MEDIA = "application/vnd.oci.image"
_METADATA = re.compile(r".*/([^/]+)-([^/-]+)[.]dist-info/METADATA")


def moment(when: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(when))


def build(source: Path, folder: Path, config: Config, version: str, when: int) -> Iterator[Path]:
    """An archive of each image in `folder`. Raises `Failure`."""
    base_image.ensure(config)
    for each in production.IMAGES:
        image = replace(each, suffix=f"-release-{when}")
        tag = image.tag(config)
        with tempfile.NamedTemporaryFile(dir=folder, suffix=".unfinished") as saved:
            try:
                images.build(image, f"release {version}", config, fresh=True, source=source, when=when)
                process.work(
                    ["docker", "save", "--output", saved.name, tag],
                    what=f"docker save {tag}", log=config.logs / "save.log", seconds=600,
                )  # fmt: skip
            finally:
                process.ask(["docker", "image", "rm", tag])
            archive = folder / f"carillon-{version}-image-{image.name}{SUFFIX}"
            write(Path(saved.name), archive, f"carillon/{image.name}:{version}", when)
        yield archive


def write(saved: Path, target: Path, tag: str, when: int) -> None:
    """The OCI archive of what `docker save` wrote; `docker load` takes it as well."""
    with tarfile.open(saved) as old, tarfile.open(target, "w") as new:

        def add(name: str, file: BinaryIO) -> None:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = file.seek(0, io.SEEK_END), when
            file.seek(0)
            new.addfile(info, file)

        def blob(file: BinaryIO, kind: str) -> dict[str, Any]:
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            if (name := f"blobs/sha256/{digest}") not in there:
                there.add(name)
                add(name, file)
            return {"mediaType": kind, "digest": f"sha256:{digest}", "size": file.tell()}

        there: set[str] = set()
        manifest = _json(old, "manifest.json")[0]
        config = _json(old, manifest["Config"])
        layers, inner = [], []
        for name in manifest["Layers"]:
            with tempfile.TemporaryFile() as plain, tempfile.TemporaryFile() as packed:
                _layer(old.extractfile(name), plain, when)
                plain.seek(0)
                inner.append(f"sha256:{hashlib.file_digest(plain, 'sha256').hexdigest()}")
                plain.seek(0)
                with gzip.GzipFile("", "wb", 6, packed, mtime=when) as compressed:
                    while part := plain.read(1 << 20):
                        compressed.write(part)
                layers.append(blob(packed, f"{_MEDIA}.layer.v1.tar+gzip"))
        config |= {"created": moment(when), "rootfs": {"type": "layers", "diff_ids": inner}}
        config["history"] = [{**each, "created": moment(when)} for each in config.get("history", ())]
        settings = blob(_bytes(config), f"{_MEDIA}.config.v1+json")
        whole = {"schemaVersion": 2, "mediaType": f"{_MEDIA}.manifest.v1+json"}
        found = blob(_bytes({**whole, "config": settings, "layers": layers}), whole["mediaType"])
        found["annotations"] = {"org.opencontainers.image.ref.name": tag}
        add("index.json", _bytes({"schemaVersion": 2, "manifests": [found]}))
        add("oci-layout", _bytes({"imageLayoutVersion": "1.0.0"}))
        paths = [f"blobs/{each['digest'].replace(':', '/')}" for each in (settings, *layers)]
        add("manifest.json", _bytes([{"Config": paths[0], "RepoTags": [tag], "Layers": paths[1:]}]))


def _json(tar: tarfile.TarFile, name: str) -> Any:
    return json.load(tar.extractfile(name))


def _bytes(document: object) -> BinaryIO:
    return io.BytesIO(json.dumps(document, sort_keys=True).encode())


def _layer(saved: BinaryIO, target: BinaryIO, when: int) -> None:
    with tarfile.open(fileobj=saved) as old, tarfile.open(fileobj=target, mode="w") as new:
        # A hard link comes after what it leads to.
        for info in sorted(old.getmembers(), key=lambda each: (each.islnk(), each.name)):
            if info.isfile() and LEFT_OUT.match(info.name):
                continue
            # Not one time for all: bytecode of Debian's packages goes by the times of its sources.
            info.mtime = min(int(info.mtime), when)
            info.uname = info.gname = ""
            info.pax_headers = {k: v for k, v in info.pax_headers.items() if k.startswith("SCHILY.xattr.")}
            new.addfile(info, old.extractfile(info) if info.isfile() and not info.islnk() else None)


def layers(archive: Path) -> Iterator[tarfile.TarFile]:
    with tarfile.open(archive) as tar:
        for name in _json(tar, "manifest.json")[0]["Layers"]:
            with tarfile.open(fileobj=tar.extractfile(name)) as layer:
                yield layer


def packages(archive: Path) -> list[Pin]:
    """Debian's packages in an image, as its dpkg has them, and Python's."""
    found: dict[tuple[str, str], Pin] = {}
    for layer in layers(archive):
        for info in layer:
            if info.name == "var/lib/dpkg/status":
                for text in layer.extractfile(info).read().decode().split("\n\n"):
                    fields = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line[:40])
                    if "installed" in fields.get("Status", "").split():
                        pin = Pin(fields["Package"], fields["Version"], kind="deb/debian")
                        found[pin.kind, pin.name] = pin
            elif match := _METADATA.match(info.name):
                found["pypi", normal(match[1])] = Pin(normal(match[1]), match[2])
    return [found[key] for key in sorted(found)]


def differences(one: Path, other: Path) -> list[str]:
    """What two archives of an image have not in common: layer and file, one line each."""
    found = []
    both = [[_files(layer) for layer in layers(archive)] for archive in (one, other)]
    if len(both[0]) != len(both[1]):
        return [f"{len(both[0])} layers, and not {len(both[1])}"]
    for number, (ours, theirs) in enumerate(zip(*both, strict=True), 1):
        names = [name for name in sorted(ours.keys() | theirs.keys()) if ours.get(name) != theirs.get(name)]
        found += [f"layer {number}: {name}" for name in names[:NAMED]]
        if len(names) > NAMED:
            found.append(f"layer {number}: {len(names) - NAMED} files more")
    return found or ["its configuration"]


def _files(layer: tarfile.TarFile) -> dict[str, tuple]:
    return {
        info.name: (
            *(info.type, info.mode, info.uid, info.gid, info.mtime, info.linkname),
            hashlib.sha256(layer.extractfile(info).read()).hexdigest() if info.isfile() else "",
        )
        for info in layer
    }
