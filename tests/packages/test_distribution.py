"""channels-asgi-amqp as a stranger to this repository has it: built, installed, used, checked."""

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile

import pytest

from tests.packages import distribution, suites

README = distribution.PROJECT / "README.md"
METADATA = {"METADATA", "WHEEL", "RECORD", "top_level.txt", "licenses/LICENSE"}
# import name: distribution, where they differ
NAMES = {"aio_pika": "aio-pika", "prometheus_client": "prometheus-client"}
# What `python -m asgi_amqp` imports where a project has it.
OPTIONAL = {"django"}


@pytest.fixture(scope="session")
def archives(tmp_path_factory):
    return distribution.build(tmp_path_factory.mktemp("distribution"))


@pytest.fixture(scope="session", params=["wheel", "sdist"])
def python(request, archives):
    """The interpreter of an environment that has the wheel, or the sdist, and what it declares."""
    return distribution.install(archives[request.param == "sdist"])


@pytest.fixture(scope="session")
def installed(archives):
    """The same with the wheel, for what does not depend on how it was installed."""
    return distribution.install(archives[0])


def sources():
    return sorted(distribution.PACKAGE.rglob("*.py"))


def test_the_wheel_holds_the_package_and_nothing_else(archives):
    names = set(zipfile.ZipFile(archives[0]).namelist())
    package = {f"asgi_amqp/{path.relative_to(distribution.PACKAGE).as_posix()}" for path in sources()}
    info = {name for name in names if ".dist-info/" in name}
    assert names - info == package | {"asgi_amqp/py.typed"}
    assert {name.partition(".dist-info/")[2] for name in info} == METADATA


def test_the_sdist_has_what_a_packager_needs(archives):
    with tarfile.open(archives[1]) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    assert {"README.md", "CHANGELOG.md", "LICENSE", "pyproject.toml", "py.typed"} <= names
    assert (distribution.PROJECT / "LICENSE").read_bytes() == (suites.ROOT / "LICENSE").read_bytes()


def test_it_declares_what_it_imports_and_no_more(archives):
    foreign = distribution.imported(sources()) - sys.stdlib_module_names - OPTIONAL - {"asgi_amqp"}
    project = tomllib.loads((distribution.PROJECT / "pyproject.toml").read_text())["project"]
    extras = [word for words in project["optional-dependencies"].values() for word in words]
    declared = {re.match(r"[\w-]+", word)[0] for word in [*project["dependencies"], *extras]}
    assert {NAMES.get(name, name) for name in foreign} == declared
    text = (
        zipfile.ZipFile(archives[0])
        .read(f"channels_asgi_amqp-{project['version']}.dist-info/METADATA")
        .decode()
    )
    needed = {
        re.match(r"[\w-]+", word)[0] for word in re.findall(r"^Requires-Dist: (.*)$", text, re.MULTILINE)
    }
    assert needed == declared


def test_nothing_that_it_declares_is_missing_or_unfit(python):
    suites.run_command([str(python), "-m", "pip", "--disable-pip-version-check", "check"])


def test_the_quickstart_of_the_readme_runs_as_it_stands(python, broker, tmp_path):
    run_quickstart(python, broker, tmp_path)


def run_quickstart(python, broker, tmp_path):
    program, printed = quickstart()
    assert len([line for line in program.splitlines() if line.strip()]) == 10
    done = subprocess.run(
        [python, "-I", "-c", program],
        env={"AMQP_URL": broker.url, "PATH": os.environ["PATH"]},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout.strip(), done.returncode) == (printed, 0), done.stderr


def quickstart():
    """(the program, what the README says that it prints)"""
    text = README.read_text()
    program = text.partition("## Ten lines")[2].partition("```python\n")[2].partition("```")[0]
    return program, re.search(r"^It prints `(.*)`\.$", text, re.MULTILINE)[1]


def check(python, *options):
    """mypy's words on the user's program, seen from an environment that has the layer installed."""
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--python-executable", str(python), "--config-file", os.devnull,
         "--strict", "--no-incremental", *options, str(suites.HERE / "user_program.py")],
        capture_output=True, text=True, cwd=python.parent, env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    return done.stdout


def test_its_types_reach_its_user(installed):
    said = check(installed)
    assert said.startswith("Success"), said


@pytest.mark.xfail(strict=True, reason="messages are dict[str, Any], and ChannelFull is untyped")
def test_no_any_reaches_its_user(installed):
    said = check(installed, "--disallow-any-expr")
    assert said.startswith("Success"), said


def test_the_root_project_leaves_them_out_and_asks_for_them(tmp_path):
    """Of the files that a release is built from, by what builds it. What is deployed alone has `project`."""
    release = distribution.release_module()
    copy = tmp_path / "source"
    for path in [*release.files(suites.ROOT), suites.ROOT / "README.md", suites.ROOT / "LICENSE"]:
        target = copy / path.relative_to(suites.ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    python = suites.environment("layer")
    options = ["--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path)]
    suites.run_command(
        [str(python), "-m", "pip", "wheel", *options, *(str(copy / own) for own in release.OWN)]
    )
    names = ("channels_asgi_amqp", "django_carillon", "carillon_project")
    wheels = [zipfile.ZipFile(next(tmp_path.glob(f"{name}-*.whl"))) for name in names]
    packages = [
        {name.partition("/")[0] for name in wheel.namelist() if ".dist-info/" not in name} for wheel in wheels
    ]
    assert packages == [{"asgi_amqp"}, {"carillon"}, {"tower", "project"}]
    root = wheels[-1]
    text = next(root.read(name).decode() for name in root.namelist() if name.endswith("/METADATA"))
    asked = re.findall(r"^Requires-Dist: ([\w-]+)", text, re.MULTILINE)
    assert {"channels-asgi-amqp", "django-carillon"} <= set(asked)
