"""Wall clocks that a test sets, one for each container, by libfaketime (from Debian's package)."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

LIBRARY = "libfaketimeMT.so.1"


class Clock:
    """`options(name)` for a container whose clock `set(name, "+7200")` moves, while it runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.chmod(0o755)
        installed = next(Path("/usr/lib").glob(f"*/faketime/{LIBRARY}"), None)
        self.library = installed or self._fetch()

    def _fetch(self) -> Path:
        """Unpacked here, not installed. The container has the same Debian, or this says so by failing."""
        try:
            subprocess.run(
                ["apt-get", "download", "libfaketime"], cwd=self.folder, check=True, capture_output=True
            )
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("there is no libfaketime: install it")
        package = next(self.folder.glob("libfaketime_*.deb"))
        subprocess.run(["dpkg-deb", "--extract", package, self.folder / "unpacked"], check=True)
        return next((self.folder / "unpacked").rglob(LIBRARY))

    def options(self, name: str) -> dict:
        own = self.folder / name
        own.mkdir()
        own.chmod(0o755)
        self.set(name, "+0")
        return {
            "volumes": [f"{self.library}:/faketime/{LIBRARY}:ro,z", f"{own}:/faketime/clock:ro,z"],
            "environment": {
                "LD_PRELOAD": f"/faketime/{LIBRARY}",
                "FAKETIME_TIMESTAMP_FILE": "/faketime/clock/offset",
                "FAKETIME_CACHE_DURATION": "1",
                # As when somebody sets a real clock: the monotonic one goes on.
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            },
        }

    def set(self, name: str, offset: str) -> None:
        """From now on the clock is `offset` seconds ahead (+) or behind (-)."""
        file = self.folder / name / "offset"
        file.write_text(f"{offset}\n")
        file.chmod(0o644)
