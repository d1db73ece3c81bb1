"""What an artifact is made of, as a CycloneDX document. Pure."""

import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

_PIN = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^\s;\\]+)")
_NAME = re.compile(r"^[A-Za-z0-9._-]+")
_VIA = re.compile(r"^\s+#\s+(?:via\s+)?(\S+)")


@dataclass
class Pin:
    """One package of a lock: its version, the digests of its files, and who asked for it."""

    name: str
    version: str
    hashes: list[str] = field(default_factory=list)
    via: set[str] = field(default_factory=set)
    kind: str = "pypi"  # of package URL

    @property
    def purl(self) -> str:
        return f"pkg:{self.kind}/{self.name}@{quote(self.version, safe='')}"


def normal(name: str) -> str:
    """A package's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def parse_lock(text: str) -> dict[str, Pin]:
    """The pins of a file that `uv pip compile --generate-hashes` wrote, by their normal names."""
    pins: dict[str, Pin] = {}
    pin: Pin | None = None
    for line in text.splitlines():
        if found := _PIN.match(line):
            pin = pins[normal(found[1])] = Pin(normal(found[1]), found[2])
        elif pin is not None and "--hash=sha256:" in line:
            pin.hashes.append(line.partition("--hash=sha256:")[2].rstrip(" \\"))
        elif pin is not None and (found := _VIA.match(line)) and found[1] != "via":
            pin.via.add(normal(found[1]))
    return pins


def closure(pins: Mapping[str, Pin], requirements: Iterable[str]) -> list[Pin]:
    """What installing these requirements (`name>=1; marker`) brings, as the lock pins it, by name."""
    wanted = {normal(found[0]) for each in requirements if (found := _NAME.match(each))}
    size = -1
    while size < len(wanted):
        size = len(wanted)
        wanted |= {name for name, pin in pins.items() if pin.via & wanted}
    return [pins[name] for name in sorted(wanted & pins.keys())]


def wheels(files: Mapping[str, str]) -> list[Pin]:
    """The packages whose wheels are among the files of an artifact, with the digests of those."""
    pins: dict[tuple[str, str], Pin] = {}
    for path in sorted(files):
        if path.endswith(".whl"):
            name, version = path.rpartition("/")[2].split("-")[:2]
            key = (normal(name), version)
            pins.setdefault(key, Pin(*key)).hashes.append(files[path])
    return [pins[key] for key in sorted(pins)]


def document(
    name: str, version: str, digest: str, files: Mapping[str, str], dependencies: Iterable[Pin], when: str
) -> dict[str, Any]:
    """The SBOM of one artifact: `files` are the SHA-256 digests of those in it, `when` is RFC 3339."""
    parts = [
        {"type": "file", "name": each, "hashes": [{"alg": "SHA-256", "content": files[each]}]}
        for each in sorted(files)
    ]
    needed = [
        {
            "type": "library",
            "bom-ref": pin.purl,
            "name": pin.name,
            "version": pin.version,
            "purl": pin.purl,
            "hashes": [{"alg": "SHA-256", "content": each} for each in sorted(pin.hashes)],
        }
        for pin in dependencies
    ]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        # Of the content alone: made twice, it is the same.
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, f'sha256:{digest}')}",
        "version": 1,
        "metadata": {
            "timestamp": when,
            "component": {
                "type": "file",
                "bom-ref": name,
                "name": name,
                "version": version,
                "hashes": [{"alg": "SHA-256", "content": digest}],
                "components": parts,
            },
        },
        "components": needed,
        "dependencies": [{"ref": name, "dependsOn": [each["bom-ref"] for each in needed]}],
    }
