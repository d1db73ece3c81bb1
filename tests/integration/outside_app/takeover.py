"""An app that exists, taken over as docs/how-to/existing-app.md says; how many lines that changes.

python -m tests.integration.outside_app.takeover
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from carillon import new

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
BEFORE = HERE / "before"
PATCH = HERE / "takeover.patch"
MOST = 40
# Afterwards: docs/how-to/resumable-consumer.md for its consumer of notifications, what emits, and the page.
RESUMABLE = HERE / "resumable.patch"


def changed(patch: Path = PATCH) -> int:
    """Lines that are taken away or added, in what `carillon new` has made and in what was copied. The lock is
    made, and not written."""
    lines = patch.read_text().splitlines()
    return sum(line[:1] in ("+", "-") and line[:4] not in ("+++ ", "--- ") for line in lines)


def take_over(folder: Path) -> Path:
    """The repository of the team in `folder`, which is called as their app is."""
    site = new.make(folder / "chat", str(ROOT))
    shutil.rmtree(site / "src" / "chat")
    shutil.copytree(BEFORE / "chat", site / "src" / "chat")
    shutil.copy(BEFORE / "mysite" / "celery.py", site / "src" / "project")
    apply(site, PATCH)
    # As `make lock` has made it, which needs uv.
    shutil.copy(HERE / "requirements.txt", site)
    return site


def apply(site: Path, patch: Path) -> None:
    subprocess.run(["git", "apply", "--unidiff-zero", str(patch)], cwd=site, check=True)


if __name__ == "__main__":
    print(f"{changed()} changed lines, at most {MOST}")
