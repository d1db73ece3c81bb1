"""django-carillon as a stranger to this repository has it: built, installed, and used as its README says."""

from __future__ import annotations

import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import tarfile
import time
import tomllib
import zipfile
from contextlib import closing, suppress

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.packages import distribution, suites

PACKAGE = distribution.DJANGO
README = PACKAGE / "README.md"
LOCK = suites.ROOT / "requirements" / "app.txt"
WAIT = 60
# import name: distribution, where they differ
NAMES = {
    "aio_pika": "aio-pika",
    "asgi_amqp": "channels-asgi-amqp",
    "django_tasks": "django-tasks",
    "drf_spectacular": "drf-spectacular",
    "jwt": "pyjwt",
    "opentelemetry": "opentelemetry-sdk",
    "prometheus_client": "prometheus-client",
    "rest_framework": "djangorestframework",
}
# Declared for what Django imports by a setting, and no module of ours; and what brings a part of a package.
BY_SETTINGS = {"psycopg", "drf-spectacular-sidecar", "opentelemetry-exporter-otlp-proto-http"}


def metadata():
    return tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]


def sources():
    return sorted(PACKAGE.rglob("*.py"))


@pytest.fixture(scope="session")
def archives(tmp_path_factory):
    return distribution.build(tmp_path_factory.mktemp("django"), PACKAGE)


@pytest.fixture(scope="session")
def python(archives, tmp_path_factory):
    """The interpreter of an environment with the wheel (made from the sdist), its layer, and the deployment's
    lock."""
    layer, _ = distribution.build(tmp_path_factory.mktemp("layer"))
    environment = suites.environment("django-carillon", LOCK)
    return distribution.install(layer, archives[0], python=environment)


def test_the_wheel_holds_the_package_and_nothing_else(archives):
    names = set(zipfile.ZipFile(archives[0]).namelist())
    package = {f"carillon/{path.relative_to(PACKAGE).as_posix()}" for path in sources()}
    static = {"carillon/static/carillon/carillon.js", "carillon/static/carillon/error.css"}
    tree = PACKAGE.glob("starter/**/*-tpl")
    starter = {f"carillon/{path.relative_to(PACKAGE).as_posix()}" for path in tree}
    assert len(starter) > 20
    pages = ("404", "docs", "sign_on_failed")
    templates = {f"carillon/templates/carillon/{name}.html" for name in pages}
    others = {"carillon/py.typed", *templates, *static, *starter}
    assert {name for name in names if ".dist-info/" not in name} == package | others
    info = {name.partition(".dist-info/")[2] for name in names if ".dist-info/" in name}
    assert info == {"METADATA", "WHEEL", "RECORD", "top_level.txt", "entry_points.txt", "licenses/LICENSE"}


def test_the_sdist_has_what_a_packager_needs(archives):
    with tarfile.open(archives[1]) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    assert {"README.md", "CHANGELOG.md", "LICENSE", "pyproject.toml", "py.typed"} <= names
    assert (PACKAGE / "LICENSE").read_bytes() == (suites.ROOT / "LICENSE").read_bytes()


def test_it_declares_what_it_imports_and_no_more():
    foreign = distribution.imported(sources()) - sys.stdlib_module_names - {"carillon"}
    project = metadata()
    extras = [word for words in project["optional-dependencies"].values() for word in words]
    declared = {Requirement(word).name for word in [*project["dependencies"], *extras]}
    assert {NAMES.get(name, name) for name in foreign} == declared - BY_SETTINGS


def test_what_is_deployed_is_what_it_declares():
    """The lock of the deployment, which does not read the package's own list."""
    pins = re.findall(r"^([A-Za-z0-9_.-]+)(?:\[[^]]*\])?==([^ ;\\]+)", LOCK.read_text(), re.MULTILINE)
    locked = {canonicalize_name(name): version for name, version in pins}
    for word in metadata()["dependencies"]:
        needed = Requirement(word)
        if needed.name == "channels-asgi-amqp":
            own = tomllib.loads((distribution.PROJECT / "pyproject.toml").read_text())["project"]
            assert needed.specifier.contains(own["version"])
        else:
            assert needed.specifier.contains(locked[canonicalize_name(needed.name)]), word


def test_nothing_that_it_declares_is_missing_or_unfit(python):
    suites.run_command([str(python), "-m", "pip", "--disable-pip-version-check", "check"])


def test_the_quickstart_of_the_readme_runs_as_it_stands(python, broker, tmp_path):
    run_quickstart(python, broker, tmp_path)


def run_quickstart(python, broker, tmp_path):
    text = README.read_text().partition("## Quickstart")[2]
    blocks = re.findall(r"^```(sh|python)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    printed = re.search(r"^It prints `(.*)`\.$", text, re.MULTILINE)[1]
    (_, start), (_, settings), (_, routing), (_, run), (_, client) = blocks
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environ = {
        "PATH": f"{python.parent}:{os.environ['PATH']}",
        "AMQP_URL": broker.url,
        "PORT": str(port),
        "PYTHONUNBUFFERED": "1",
    }
    assert shell(start, tmp_path, environ).wait(WAIT) == 0
    with (tmp_path / "mysite" / "settings.py").open("a") as file:
        file.write(settings)
    (tmp_path / "mysite" / "routing.py").write_text(routing)
    (tmp_path / "client.py").write_text(client)
    log = tmp_path / "log"
    with log.open("wb") as output:
        running = shell(f"{run}wait\n", tmp_path, environ, output)
    try:
        until(lambda: begun(tmp_path / "db.sqlite3") and listens(port), running, log)
        done = subprocess.run(
            [python, "client.py"], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=WAIT
        )
        assert (done.stdout.strip(), done.returncode) == (printed, 0), done.stderr + log.read_text()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGTERM)
        running.wait(WAIT)


def shell(commands, folder, environ, output=None):
    return subprocess.Popen(
        ["sh", "-e", "-c", commands],
        cwd=folder, env=environ, stdout=output, stderr=output and subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


def begun(database):
    """runworker has begun the log."""
    with suppress(sqlite3.Error), closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as file:
        return file.execute("SELECT epoch FROM carillon_head").fetchone() is not None
    return False


def listens(port):
    with suppress(OSError), closing(socket.create_connection(("127.0.0.1", port), 1)):
        return True
    return False


def until(so, running, log):
    deadline = time.monotonic() + WAIT
    while not so():
        assert running.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
