"""The layer's own tests on every Python that this machine has, and with the oldest of what it declares.

Minutes: CARILLON_PACKAGES_FULL=1. What was found is in docs/reference/asgi_amqp_support.md.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.packages import suites

VERSIONS = ("3.11", "3.12", "3.13", "3.14")
TESTS = ("tests/unit/asgi_amqp", "tests/integration/asgi_amqp")
# Names tests of other folders, which these environments could not import anyway.

pytestmark = pytest.mark.skipif(
    not os.environ.get("CARILLON_PACKAGES_FULL"), reason="takes minutes: CARILLON_PACKAGES_FULL=1"
)


def interpreter(version):
    """The path of a Python of that version, on the PATH or among pyenv's; skips where there is none."""
    names = [shutil.which(f"python{version}"), shutil.which("python3")]
    names += sorted(map(str, Path.home().glob(f".pyenv/versions/{version}.*/bin/python")))
    program = "import sys; print('%d.%d' % sys.version_info[:2])"
    for name in filter(None, [*names, "/usr/bin/python3"]):
        done = subprocess.run([name, "-c", program], capture_output=True, text=True)
        if done.stdout.strip() == version:
            return name
    pytest.skip(f"no Python {version} on this machine")


@pytest.mark.parametrize(
    ("version", "lock"), [*((version, "newest") for version in VERSIONS), ("3.11", "oldest")]
)
def test_its_own_tests_pass(version, lock, tmp_path):
    folder = tmp_path / "venv"
    suites.make_environment(folder, suites.HERE / "locks" / f"{lock}.txt", interpreter(version))
    done = subprocess.run(
        # The layer is imported before the tests are: one of their folders has the same name. The other
        # integration tests' conftest asks for what these environments do not have.
        [folder / "bin" / "python", "-m", "pytest", "-q", "-p", "asgi_amqp", "-p", "no:cacheprovider",
         f"--confcutdir={TESTS[1]}", *TESTS],
        cwd=suites.ROOT,
        env={**os.environ, "PYTHONPATH": str(suites.ROOT / "src")},
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    print(done.stdout.splitlines()[-1])
