"""What is a team's lies in its checkout of Carillon before every command, or one line says why it cannot."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import setuptools

from dev import __main__ as command
from dev import linting, project, yours
from dev.output import Failure

ROOT = Path(__file__).parents[3]
LOCK = """\
django==5.2.8 \\
    --hash=sha256:aa
    # via -r app.in
psycopg[binary]==3.2.1 ; python_version < '3.14' \\
    --hash=sha256:bb
"""
ADDED = """\
# made by make lock
Django==5.0 \\
    --hash=sha256:cc
celery==5.5.0 \\
    --hash=sha256:dd \\
    --hash=sha256:ee
    # via -r requirements.in
"""
CELERY = ADDED.partition("cc\n")[2]


def write(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.fixture
def site(tmp_path):
    write(
        tmp_path,
        {
            "requirements.in": "# none\n",
            "requirements.txt": "# none\n",
            "src/project/__init__.py": "",
            "src/project/settings.py": "mine",
            "src/mysite/__init__.py": "",
            "src/mysite/templates/page.html": "page",
            "src/mysite/__pycache__/x.pyc": "",
            ".carillon/src/carillon/__init__.py": "",
            ".carillon/src/tower/__init__.py": "",
            ".carillon/src/project/settings.py": "Carillon's",
            ".carillon/src/project/routing.py": "Carillon's",
            ".carillon/requirements/app.in": "django\npsycopg[binary]\n",
            ".carillon/requirements/app.txt": LOCK,
        },
    )
    return tmp_path


def put(site, **options):
    yours.put(site / ".carillon", site, **options)


def source(site):
    top = site / ".carillon" / "src"
    return sorted(path.relative_to(top).as_posix() for path in top.rglob("*") if path.is_file())


def test_its_packages_are_there_in_place_of_carillons_project(site):
    put(site)
    assert source(site) == [
        *("carillon/__init__.py", "mysite/__init__.py", "mysite/templates/page.html"),
        *("project/__init__.py", "project/settings.py", "tower/__init__.py"),
    ]
    assert (site / ".carillon/src/project/settings.py").read_text() == "mine"


def test_what_it_no_longer_has_goes_and_what_is_the_same_stays(site):
    write(site, {"src/other/__init__.py": ""})
    put(site)
    there = site / ".carillon/src/project/settings.py"
    before = there.stat().st_mtime_ns
    write(site, {"src/mysite/new.py": "x = 1\n"})
    (site / "src/mysite/templates/page.html").unlink()
    (site / "src/other/__init__.py").unlink()
    (site / "src/other").rmdir()
    put(site)
    assert "mysite/new.py" in source(site)
    assert not {"mysite/templates/page.html", "other/__init__.py"} & set(source(site))
    assert there.stat().st_mtime_ns == before


def test_its_lock_adds_what_carillons_does_not_have(site):
    write(site, {"requirements.in": "celery>=5\n", "requirements.txt": ADDED})
    for _ in range(2):
        put(site)
        assert (site / ".carillon/requirements/app.txt").read_text() == LOCK + CELERY
        assert (site / ".carillon/requirements/app.in").read_text() == "django\npsycopg[binary]\ncelery>=5\n"
    write(site, {"requirements.in": "", "requirements.txt": ""})
    put(site)
    assert (site / ".carillon/requirements/app.txt").read_text() == LOCK


def test_a_lock_that_is_behind_is_refused_until_it_is_made(site):
    write(site, {"requirements.in": "celery\nDjango\n"})
    with pytest.raises(Failure, match=r"names celery, and requirements.txt does not: run `make lock`"):
        put(site)
    assert (site / ".carillon/src/project/settings.py").read_text() == "Carillon's"
    put(site, locked=False)


@pytest.mark.parametrize(
    ("file", "why"),
    [
        ("src/tower/__init__.py", "tower is Carillon's own: give the package another name"),
        ("src/helpers.py", "is no package, so in no release"),
        ("src/data/file", "is no package, so in no release"),
    ],
)
def test_what_no_release_would_have_is_refused(site, file, why):
    write(site, {file: ""})
    with pytest.raises(Failure, match=why):
        put(site)
    assert (site / ".carillon/src/project/settings.py").read_text() == "Carillon's"


@pytest.mark.parametrize(
    ("file", "why"),
    [
        ("requirements.in", "requirements.in is missing: an empty one will do"),
        ("src/project/settings.py", "settings.py is missing"),
    ],
)
def test_what_is_missing_is_named(site, file, why):
    (site / file).unlink()
    with pytest.raises(Failure, match=why):
        put(site)


def test_a_checkout_that_is_worked_on_is_never_written_to(site):
    with pytest.raises(Failure, match=r"is not the \.carillon/ of CARILLON_YOURS="):
        yours.put(ROOT, site)
    done = subprocess.run(
        [sys.executable, "-m", "dev", "test"],
        cwd=ROOT, env={"CARILLON_YOURS": str(site), "PATH": ""}, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, "is not the .carillon/ of" in done.stderr) == (1, True)


@pytest.mark.parametrize("name", ["down", "production-rollback", "production-backup"])
def test_what_needs_no_code_goes_whatever_it_is_like(site, monkeypatch, name):
    write(site, {"src/helpers.py": ""})
    monkeypatch.setattr(command.configuration, "YOURS", site)
    monkeypatch.setattr(yours, "put", lambda **_: pytest.fail("looked at the code"))
    monkeypatch.setattr(command.os, "chdir", lambda _: None)
    monkeypatch.setitem(command.COMMANDS, name, lambda _: 7)
    assert command.main([name]) == 7


def test_state_and_names_are_the_repositorys_own(site):
    program = """if True:
        from dev import config, images, production
        here, live = config.load(), production.load()
        print(here.project, here.state, live.project)
        print(images.IMAGES[0].tag(here), production.IMAGES[0].tag(live))
    """
    folder = site / "My_Site"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT, env={"CARILLON_YOURS": str(folder)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == [
        *("my-site", f"{folder}/.dev", "my-site-production"),
        *("carillon/app:my-site", "carillon/app:my-site-production-built"),
    ]


def test_containers_have_its_code_and_begin_anew_with_another_carillon(site, settings, monkeypatch):
    settings.state.mkdir()
    monkeypatch.setattr(project, "YOURS", site)
    monkeypatch.setattr(project, "ROOT", site / ".carillon")
    write(site, {".carillon/.fetched": "today\n"})
    project.compose(settings)
    services = json.loads(settings.processes.read_text())["services"]
    assert set(services) == {"uwsgi", "daphne", "runworker", "migrate"}
    for service in services.values():
        assert service["volumes"] == [f"{site}/src:/opt/carillon/yours:ro,z"]
        assert service["environment"]["PYTHONPATH"].split(":")[0] == "/opt/carillon/yours"
        assert service["labels"] == {"carillon.fetched": "today"}


def test_hosts_that_are_an_example_and_playbooks_that_are_none_are_refused(site, monkeypatch):
    monkeypatch.setattr(yours, "YOURS", site)
    write(site, {"inventory/hosts.yml": "mysite.example.org:\n"})
    with pytest.raises(Failure, match=r"names example\.org: put your host there"):
        yours.deploy([])
    with pytest.raises(Failure, match=r"PLAYBOOK=sight\.yml: there is none of that name, but .*site\.yml"):
        yours.deploy(["sight.yml"])


def test_a_package_that_is_called_nearly_as_carillon_s_is_in_the_release(tmp_path):
    names = ("asgi_amqp", "asgi_amqp_more", "carillon", "carillon/events", "carillon_site", "carillon_site/a")
    write(tmp_path, {f"{name}/__init__.py": "" for name in names})
    described = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]
    found = setuptools.find_packages(str(tmp_path), exclude=described["exclude"])
    assert sorted(found) == ["asgi_amqp_more", "carillon_site", "carillon_site.a"]


def test_carillon_s_rules_are_for_carillon_s_code(tmp_path):
    for name in (*yours.CARILLONS, "project", "chat"):
        (tmp_path / "src" / name).mkdir(parents=True)
        (tmp_path / "src" / name / "__init__.py").touch()
    assert linting.theirs(tmp_path) == ["chat"]
    (ruff,) = [suite for suite in linting.sources() if suite.name == "ruff"]
    assert ruff.command == ("ruff", "check", ".")  # here are none
