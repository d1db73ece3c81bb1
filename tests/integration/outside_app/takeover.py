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


def changed() -> int:
    """Lines that are taken away or added, in what `carillon new` has made and in what was copied. The lock is
    made, and not written."""
    lines = PATCH.read_text().splitlines()
    return sum(line[:1] in ("+", "-") and line[:4] not in ("+++ ", "--- ") for line in lines)


def take_over(folder: Path) -> Path:
    """The repository of the team in `folder`, which is called as their app is."""
    site = new.make(folder / "chat", str(ROOT))
    shutil.rmtree(site / "src" / "chat")
    shutil.copytree(BEFORE / "chat", site / "src" / "chat")
    shutil.copy(BEFORE / "mysite" / "celery.py", site / "src" / "project")
    subprocess.run(["git", "apply", "--unidiff-zero", str(PATCH)], cwd=site, check=True)
    # As `make lock` has made it, which needs uv.
    shutil.copy(HERE / "requirements.txt", site)
    return site


if __name__ == "__main__":
    print(f"{changed()} changed lines, at most {MOST}")
