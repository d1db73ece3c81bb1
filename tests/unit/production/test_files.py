"""The module that writes a role's files: what it says it changed, it changed, and nothing else."""

from __future__ import annotations

import base64
import grp
import json
import os
import pwd
import stat
import subprocess
import sys
from pathlib import Path

import pytest

MODULE = Path(__file__).resolve().parents[3] / "ansible/plugins/modules/files.py"
ME = {"owner": pwd.getpwuid(os.getuid()).pw_name, "group": grp.getgrgid(os.getgid()).gr_name}


def run(files=(), folders=(), *, check: bool = False, expect: int = 0, **more) -> dict:
    arguments = {"files": list(files), "folders": list(folders), "_ansible_check_mode": check, **more}
    done = subprocess.run(
        [sys.executable, str(MODULE)],
        input=json.dumps({"ANSIBLE_MODULE_ARGS": arguments}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def file(tmp_path) -> dict:
    return {"dest": str(tmp_path / "inner/secret"), "content": "whole\n", "mode": "0600", **ME}


@pytest.fixture
def folder(tmp_path) -> dict:
    return {"path": str(tmp_path / "inner"), "mode": "0750", **ME}


def test_a_second_run_changes_nothing(file, folder):
    path = Path(file["dest"])
    assert run([file], [folder])["written"] == [folder["path"], file["dest"]]
    assert path.read_text() == "whole\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o750
    assert [item.name for item in path.parent.iterdir()] == ["secret"], "a temporary file was left"
    again = run([file], [folder])
    assert (again["changed"], again["written"]) == (False, [])


def test_what_differs_is_written_and_nothing_else(file, folder, tmp_path):
    other = {**file, "dest": str(tmp_path / "inner/other"), "base64": base64.b64encode(b"\xff\0").decode()}
    run([file, other], [folder])
    assert Path(other["dest"]).read_bytes() == b"\xff\0"
    Path(file["dest"]).write_text("something else")
    Path(other["dest"]).chmod(0o644)
    os.utime(other["dest"], (1, 1))
    assert run([file, other], [folder])["written"] == [file["dest"], other["dest"]]
    assert Path(other["dest"]).stat().st_mtime == 1, "a mode is no reason to write"
    assert stat.S_IMODE(Path(other["dest"]).stat().st_mode) == 0o600


def test_a_dry_run_says_what_it_would_do(file, folder):
    said = run([file], [folder], check=True)
    assert said["changed"]
    assert said["diff"][0]["after"] == "whole\n"
    assert not Path(folder["path"]).exists()


def test_what_cannot_be_written_is_named(file):
    said = run([file], expect=1)
    assert file["dest"] in said["msg"]


@pytest.fixture
def tree(tmp_path) -> Path:
    """Configuration with a folder of one's own files, one of which is no longer wanted."""
    root = tmp_path / "etc"
    (root / "site.d").mkdir(parents=True)
    (root / "main.conf").write_text("include site.d\n")
    (root / "site.d/old.conf").write_text("good\n")
    (root / "site.d/folder").mkdir()
    return root


def entry(path: Path, content: str) -> dict:
    return {"dest": str(path), "content": content, "mode": "0644", **ME}


def only(tree: Path) -> dict:
    """Every file in site.d must say `good`."""
    command = ["sh", "-c", "! grep -L good %s/site.d/*.conf | grep ."]
    return {"only": [str(tree / "site.d")], "test": {"root": str(tree), "command": command}}


@pytest.mark.parametrize("check", [False, True])
def test_what_would_be_refused_is_not_written_and_nothing_is_removed(tree, check):
    said = run([entry(tree / "site.d/new.conf", "bad\n")], **only(tree), check=check, expect=1)
    assert f"would be refused: {tree}/site.d/new.conf" in said["msg"]
    assert sorted(path.name for path in (tree / "site.d").iterdir()) == ["folder", "old.conf"]


def test_the_folder_is_what_the_files_say(tree):
    files = [entry(tree / "site.d/new.conf", "good\n")]
    (tree / "site.d/old.conf").write_text("bad\n")  # it goes, so it is not asked about
    removed = [str(tree / "site.d/old.conf")]
    assert run(files, **only(tree), check=True)["written"] == [files[0]["dest"], *removed]
    assert (tree / "site.d/old.conf").exists()
    assert run(files, **only(tree))["written"] == [files[0]["dest"], *removed]
    assert sorted(path.name for path in (tree / "site.d").iterdir()) == ["folder", "new.conf"]
    assert run(files, **only(tree))["changed"] is False


def test_a_program_that_is_not_there_yet_tests_nothing(tree):
    test = {"root": str(tree), "command": ["no-such-program", "%s"]}
    assert run([entry(tree / "site.d/new.conf", "bad\n")], test=test)["changed"]
