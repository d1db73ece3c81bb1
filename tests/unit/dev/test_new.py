"""`carillon new`: a repository whose own tests pass, of a Carillon that can be had; or one line."""

import ast
import hashlib
import importlib.metadata
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from carillon import __main__ as command
from carillon import new
from dev import yours

ROOT = Path(__file__).parents[3]
# What `bin/carillon` hands on to.
TOOL = '#!/bin/sh\necho "$CARILLON_YOURS: $*"\n'


def git(folder, *words):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.test"]
    return subprocess.run(
        ["git", "-C", str(folder), *identity, *words], capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.fixture
def carillon(tmp_path):
    """A folder that `bin/carillon` takes for Carillon; a git repository with the tag v1."""
    folder = tmp_path / "carillon"
    for name, text in {"bin/dev": TOOL, "dev/yours.py": "", ".hidden/file": ""}.items():
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(text)
    (folder / "bin/dev").chmod(0o755)
    git(tmp_path, "init", "--quiet", str(folder))
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message", "one")
    git(folder, "tag", "v1")
    return folder


@pytest.fixture
def site(tmp_path, carillon):
    return new.make(tmp_path / "mysite", f"{carillon}@v1")


def tool(site, *words):
    return subprocess.run([site / "bin/carillon", *words], capture_output=True, text=True, check=False)


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mode & 0o777)
        for path in folder.rglob("*")
        if path.is_file() and ".carillon" not in path.parts
    }


def test_it_has_every_file_with_the_names_filled_in(tmp_path, carillon, site):
    made = contents(site)
    assert {
        *("Makefile", "README.md", "carillon.version", ".gitignore", ".github/workflows/ci.yml"),
        *("bin/carillon", "requirements.in", "requirements.txt"),
        *("inventory/hosts.yml", "inventory/group_vars/all.yml"),
        *(f"src/project/{name}.py" for name in ("__init__", "settings", "testing", "urls", "routing")),
        *(f"src/mysite/{name}.py" for name in ("__init__", "views", "urls", "families", "tests")),
        *("src/project/carillon.toml", "src/mysite/templates/mysite/home.html"),
    } == set(made)
    assert [name for name, (text, _) in made.items() if re.search(rb"@[A-Z]+@|NAME\b(?!\")", text)] == []
    assert {name for name, (_, mode) in made.items() if mode != 0o644} == {"bin/carillon"}
    for name in made:
        if name.endswith(".py"):
            ast.parse(made[name][0], name)
    lines = [line for line in (site / "carillon.version").read_text().splitlines() if line[0] != "#"]
    assert lines == [f"{carillon}@v1"]
    assert (site / ".carillon/dev/yours.py").is_file()


def test_it_is_the_same_every_time_and_for_whatever_umask(tmp_path, carillon, site):
    (tmp_path / "again").mkdir()
    before = os.umask(0o077)
    try:
        again = new.make(tmp_path / "again" / "mysite", f"{carillon}@v1")
    finally:
        os.umask(before)
    assert contents(again) == contents(site)
    assert again.stat().st_mode & 0o777 == 0o755
    assert (again / ".carillon/bin/dev").stat().st_mode & 0o777 == 0o755


def test_its_own_checks_and_tests_pass(site):
    values = {**os.environ, **yours._NOTHING_RUNS, "PYTHONPATH": f"{site}/src{os.pathsep}{ROOT}/src"}
    program = """if True:
        import django, sys
        from django.core.management import call_command
        django.setup()
        call_command("makemigrations", check_changes=True, dry_run=True)
        call_command("test", sys.argv[1])  # and the checks
    """
    done = subprocess.run(
        [sys.executable, "-c", program, f"{site}/src"], cwd=site, env=values, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Ran 3 tests" in done.stderr


@pytest.mark.parametrize(
    ("name", "why"),
    [
        *((name, "is no name of a Python package") for name in ("my-site", "1st", "class", "Site", "a" * 41)),
        *((name, "is a module already") for name in ("project", "django", "json", "tower", "rest_framework")),
    ],
)
def test_a_name_that_would_not_do_is_refused(tmp_path, carillon, name, why):
    with pytest.raises(new.Refused, match=f"^{name} {why}"):
        new.make(tmp_path / name, str(carillon))
    assert not (tmp_path / name).exists()


def test_names_that_the_lock_brings_are_taken():
    lock = (ROOT / "requirements/app.txt").read_text() + (ROOT / "requirements/dev.txt").read_text()
    locked = yours.names(lock)
    brought = {
        top
        for top, distributions in importlib.metadata.packages_distributions().items()
        if locked & {yours._plain(name) for name in distributions} and new._NAME.fullmatch(top)
    }
    assert {"django", "rest_framework"} <= brought
    assert brought - new.TAKEN == set()


def test_a_folder_that_is_not_empty_is_not_touched(tmp_path, carillon):
    site = tmp_path / "mysite"
    site.mkdir()
    (site / "notes").write_text("mine")
    with pytest.raises(new.Refused, match="mysite is not empty: name a folder"):
        new.make(site, str(carillon))
    assert [path.name for path in site.iterdir()] == ["notes"]
    with pytest.raises(new.Refused, match="is no folder: make it first"):
        new.make(tmp_path / "there" / "mysite", str(carillon))
    (site / "notes").unlink()
    assert new.make(site, str(carillon)) == site


def test_a_carillon_that_cannot_be_had_leaves_nothing(tmp_path, carillon):
    archive = tmp_path / "carillon-1-source.tar.gz"
    archive.write_bytes(b"")
    (tmp_path / "nothing").mkdir()
    before = sorted(tmp_path.iterdir())
    for line, why in {
        f"{tmp_path}/away": "there is no such folder",
        f"{tmp_path}/away@v1": "does not appear to be a git repository",
        f"{carillon}@v2": "couldn't find remote ref v2",
        f"{archive}#sha256={'0' * 64}": "the file has another SHA-256",
        f"{tmp_path}/away.tar.gz#sha256={'0' * 64}": "there is no such file",
        f"{tmp_path}/nothing": "what is there is no Carillon",
    }.items():
        with pytest.raises(new.Refused) as refused:
            new.make(tmp_path / "mysite", line)
        assert str(refused.value).startswith(f"carillon.version: {line} cannot be had: ")
        assert why in str(refused.value)
        assert "\n" not in str(refused.value)
        assert sorted(tmp_path.iterdir()) == before


def test_a_folder_is_named_whole_and_from_outside(tmp_path, carillon, monkeypatch):
    with pytest.raises(new.Refused, match="lies in Carillon's own checkout"):
        new.make(carillon / "mysite", str(carillon))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(new.Refused, match=f"by its whole path, {carillon}"):
        new.make(tmp_path / "mysite", "carillon@v1")
    monkeypatch.setattr(new, "here", lambda: None)
    with pytest.raises(new.Refused, match="which Carillon shall run it"):
        new.make(tmp_path / "mysite")


def test_an_archive_of_a_release_is_taken_by_its_hash(tmp_path, carillon):
    archive = tmp_path / "carillon-1-source.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(carillon, "carillon-1")
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    site = new.make(tmp_path / "mysite", f"{archive}#sha256={digest}")
    assert tool(site, "dev", "x").stdout == f"{site}: dev x\n"


def test_a_folder_comes_as_it_is_but_for_what_is_private(tmp_path, carillon):
    (carillon / "ansible/inventories/mine/secrets").mkdir(parents=True)
    (carillon / "ansible/inventories/mine/secrets/key").write_text("secret")
    (carillon / "bin/dev").write_text(TOOL.replace("$*", "as it is"))
    site = new.make(tmp_path / "mysite", str(carillon))
    assert tool(site, "dev").stdout == f"{site}: as it is\n"
    fetched = {path.relative_to(site / ".carillon").as_posix() for path in (site / ".carillon").rglob("*")}
    assert not {".git", ".hidden", "ansible/inventories/mine/secrets"} & fetched


def test_another_line_is_another_carillon_and_one_that_fails_changes_nothing(tmp_path, carillon, site):
    assert tool(site, "dev").stdout == f"{site}: dev\n"
    (site / ".carillon/build").mkdir()
    (site / ".carillon/build/archive").write_text("of a release")
    (carillon / "bin/dev").write_text(TOOL.replace("$*", "two"))
    git(carillon, "commit", "--quiet", "--all", "--message", "two")
    version = site / "carillon.version"
    version.write_text(version.read_text().replace("@v1", "@v9"))
    failed = tool(site, "dev")
    assert (failed.returncode, failed.stderr.count("\n")) == (1, 1)
    assert "@v9 cannot be had" in failed.stderr
    version.write_text(version.read_text().replace("@v9", f"@{git(carillon, 'rev-parse', 'HEAD')}"))
    assert tool(site, "dev").stdout.splitlines()[1:] == [f"{site}: two"]
    assert (site / ".carillon/build/archive").read_text() == "of a release"
    assert not (site / ".carillon.new").exists()
    version.write_text("# none\n")
    assert tool(site, "dev").stderr == (
        "carillon: carillon.version: one line says which Carillon, and all others begin with #\n"
    )


def test_every_target_of_its_makefile_is_a_command(site):
    text = (site / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", text, re.M))
    assert set(re.search(r"^\.PHONY: (.*)$", text, re.M)[1].split()) == targets
    assert set(re.findall(r"^([a-z-]+):.* ## ", text, re.M)) == targets
    from dev.__main__ import COMMANDS

    words = set(re.findall(r"^\t@bin/carillon ([a-z-]+)", text, re.M)) - {"fetch"}
    assert words <= {*COMMANDS, *yours.COMMANDS}
    assert {name for name in COMMANDS if name.startswith("production")} <= words


def test_the_command_needs_no_configuration(tmp_path, carillon, monkeypatch, capsys):
    monkeypatch.setattr(command.environment, "load", lambda: pytest.fail("read the configuration"))
    assert command.main(["new", str(tmp_path / "mysite"), "--carillon", f"{carillon}@v1"]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path}/mysite is made.")
    assert command.main(["new", str(tmp_path / "mysite")]) == 1
    assert capsys.readouterr().err.startswith(f"carillon: {tmp_path}/mysite is not empty")


def test_the_checkout_that_it_runs_from_is_named_by_its_commit(carillon, monkeypatch):
    (carillon / "src/carillon").mkdir(parents=True)
    monkeypatch.setattr(new, "__file__", str(carillon / "src/carillon/new.py"))
    assert new.here() == f"{carillon}@{git(carillon, 'rev-parse', 'HEAD')}"
    # In somebody's repository, and no repository itself.
    (carillon / ".git").rename(carillon.parent / ".git")
    assert new.here() == str(carillon)
    (carillon / "dev/yours.py").unlink()
    assert new.here() is None
