"""Where the distributions lie, and how they are built: by setuptools alone, in a copy, from no index."""

import ast
import shutil
import subprocess
import tarfile
from collections.abc import Iterable
from importlib import util
from pathlib import Path
from types import ModuleType

from tests.packages import suites

PROJECT = suites.ROOT / "src" / "asgi_amqp"  # the folder of its pyproject.toml
PACKAGE = PROJECT  # the folder of its __init__.py
DJANGO = suites.ROOT / "src" / "carillon"  # likewise, of django-carillon


def build(folder: Path, project: Path = PROJECT) -> tuple[Path, Path]:
    """(wheel, sdist) under `folder`. The wheel is made from the sdist, as `python -m build` does."""
    checkout, out = folder / "checkout", folder / "dist"
    # setuptools writes beside what it builds.
    shutil.copytree(
        project, checkout, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "build", "dist")
    )
    out.mkdir()
    sdist = out / _backend(checkout, "build_sdist", out)
    with tarfile.open(sdist) as tar:
        tar.extractall(folder, filter="data")
    unpacked = folder / sdist.name.removesuffix(".tar.gz")
    return out / _backend(unpacked, "build_wheel", out), sdist


def _backend(folder: Path, hook: str, out: Path) -> str:
    program = f"import sys; from setuptools import build_meta; print(build_meta.{hook}(sys.argv[1]))"
    python = suites.environment("layer")
    done = subprocess.run([python, "-c", program, out], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()[-1]


def install(*archives: Path, python: Path | None = None) -> Path:
    """The python of an environment that has the archives, and by the lock's hashes what they declare."""
    python = suites.environment("layer") if python is None else python
    options = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--force-reinstall"]
    suites.run_command([str(python), "-m", "pip", "install", *options, *map(str, archives)])
    return python


def imported(paths: Iterable[Path]) -> set[str]:
    """The top-level packages that these modules import by their full names."""
    found = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    return found


def release_module() -> ModuleType:
    """What builds a release's wheels for Ansible and the bundle."""
    path = suites.ROOT / "ansible/plugins/modules/release.py"
    spec = util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
