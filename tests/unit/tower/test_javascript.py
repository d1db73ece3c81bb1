"""The JavaScript tests under tests/browser/js, run by Node's own runner."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[2] / "browser" / "js"


def test_the_page_s_modules():
    node = shutil.which("node")
    if node is None:
        message = "node is not installed: apt-get install nodejs (20.19 or later)"
        # A developer may go without; the gate may not.
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    files = sorted(str(path) for path in TESTS.glob("*.test.js"))
    assert files
    ran = subprocess.run([node, "--test", *files], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stdout + ran.stderr
