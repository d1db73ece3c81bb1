"""The control node is an operator's own machine: nobody is root there, and the inventory is in a checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
ANSIBLE = ROOT / "ansible"
TOOLS = Path(sys.executable).parent
TASK_FILES = sorted(
    path
    for pattern in ("*.yml", "roles/*/tasks/*.yml", "roles/*/handlers/*.yml")
    for path in ANSIBLE.glob(pattern)
    if path.name != "galaxy.yml"
)


def tasks(path: Path):
    """(task, variables in force there, whether it runs on the control node) of every task in a file."""

    def walk(items, variables, local):
        for item in items or []:
            inner = {**variables, **(item.get("vars") or {})}
            here = local or item.get("delegate_to") == "localhost"
            if "block" in item:
                for part in ("block", "rescue", "always"):
                    yield from walk(item.get(part), inner, here)
            else:
                yield item, inner, here

    for entry in yaml.safe_load(path.read_text()) or []:
        if "hosts" not in entry:
            yield from walk([entry], {}, False)
            continue
        for part in ("pre_tasks", "tasks", "post_tasks"):
            yield from walk(entry.get(part), entry.get("vars") or {}, entry["hosts"] == "localhost")


@pytest.mark.parametrize("path", TASK_FILES, ids=lambda path: str(path.relative_to(ANSIBLE)))
def test_nobody_becomes_root_on_the_control_node(path):
    """`become: false` would not do: ansible_become of an inventory's group_vars/all.yml is stronger."""
    for task, variables, local in tasks(path):
        assert "become" not in task, f"{task['name']}: ansible_become of the inventory is stronger"
        if local:
            assert variables.get("ansible_become") is False, task["name"]


def test_what_becomes_of_a_backup_becomes_of_it_on_the_control_node():
    """A role that is included inherits neither `delegate_to` nor variables of the block around it."""
    found = []
    for path in ANSIBLE.glob("*.yml"):
        if path.name == "galaxy.yml":
            continue
        for task, *_ in tasks(path):
            include = task.get("ansible.builtin.include_role", {})
            if include.get("name") == "backup":
                found.append(path.name)
                assert include.get("apply") == {
                    "delegate_to": "localhost",
                    "vars": {"ansible_become": False},
                }, f"{path.name}: {task['name']}"
    assert sorted(found) == [*["backup.yml"] * 3, "check.yml", *["restore.yml"] * 2]
    for path in (ANSIBLE / "roles/backup/tasks").glob("*.yml"):
        assert "include_tasks" not in path.read_text(), f"{path.name}: what is included there would not"


# Each of these goes on without a host that failed, because what follows harms nobody.
ON_THEIR_OWN = {
    "certificates.yml": "a host whose certificate cannot be renewed keeps no other from it",
    "remove-node.yml": "the host may be lost",
    "timers.yml": "the control node alone",
}


def test_a_host_that_is_not_well_ends_the_run_for_all():
    """Ansible goes on with the others otherwise: check.yml would be no gate, and the old login would go
    while programs that were not restarted still use it."""
    found = [
        f"{path.name}: {play['name']}"
        for path in sorted(ANSIBLE.glob("*.yml"))
        if path.name not in ("galaxy.yml", *ON_THEIR_OWN)
        for play in yaml.safe_load(path.read_text())
        if "hosts" in play and play.get("any_errors_fatal") is not True
    ]
    assert found == [
        "restore.yml: What a broker that still runs may have lost",
        "restore.yml: What was decrypted",
    ]


def test_a_file_comes_from_a_host_as_the_user_who_comes_in():
    """As root, Ansible's fetch reads it whole into the memory of both sides; a database is larger."""
    found = [
        (path.name, task["name"], variables.get("ansible_become"))
        for path in TASK_FILES
        for task, variables, _ in tasks(path)
        if "ansible.builtin.fetch" in task
    ]
    assert found
    assert {become for *_, become in found} == {False}, found


def test_the_search_for_tasks_finds_those_of_the_control_node():
    found = {path.name for path in TASK_FILES for *_, local in tasks(path) if local}
    assert found >= {
        "backup.yml",
        "restore.yml",
        "rotate.yml",
        "certificate.yml",
        "install.yml",
        "private.yml",
    }


@pytest.fixture
def repository(tmp_path) -> Path:
    """A checkout with an inventory as the how-to has it made, after a run and a backup."""
    shutil.copy(ROOT / ".gitignore", tmp_path)
    inventory = tmp_path / "ansible/inventories/chimes"
    shutil.copytree(ANSIBLE / "inventories/example-single", inventory)
    for name in ("secrets/admin-password", "secrets/tls/authority.key", "backups/2026-11-25/database.dump"):
        (inventory / name).parent.mkdir(parents=True, exist_ok=True)
        (inventory / name).write_text("Sup3rSecret\n")
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    return tmp_path


def test_git_takes_the_inventory_and_neither_secrets_nor_backups(repository):
    subprocess.run(["git", "add", "-A"], cwd=repository, check=True)
    staged = subprocess.check_output(["git", "ls-files"], cwd=repository, text=True).split()
    assert "ansible/inventories/chimes/hosts.yml" in staged
    assert [name for name in staged if "secrets/" in name or "backups/" in name] == []


def test_no_secret_and_no_backup_is_in_this_repository():
    done = subprocess.run(
        ["git", "ls-files", "ansible/inventories"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip("no repository: an archive of the sources")
    assert "ansible/inventories/example-single/hosts.yml" in done.stdout
    assert not [name for name in done.stdout.split() if "/secrets/" in name or "/backups/" in name]


def test_a_backup_whose_uploads_are_damaged_touches_nothing(repository):
    backup, secrets = repository / "backup", repository / "ansible/inventories/chimes/secrets"
    (backup / "mine").mkdir(parents=True)
    (backup / "mine/secret-key").write_text("of the backup")
    for name in ("secrets.tar", "media.tar"):
        with tarfile.open(backup / name, "w") as archive:
            archive.add(backup / "mine", ".")
    for name in ("certificates.tar", "database.dump", "definitions.json"):
        (backup / name).touch()
    (backup / "media.tar").write_bytes((backup / "media.tar").read_bytes()[:700])
    done = subprocess.run(
        [TOOLS / "ansible-playbook", "-i", secrets.parent, "restore.yml", "-e", f"restore_from={backup}"],
        cwd=ANSIBLE,
        env={**os.environ, "ANSIBLE_CONFIG": str(ANSIBLE / "ansible.cfg")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "Whether the uploads are whole" in done.stdout, done.stdout
    assert "UNREACHABLE" not in done.stdout.upper().replace("UNREACHABLE=0", "")
    assert not (secrets / "secret-key").exists()


def test_what_lies_beside_the_inventory_is_no_host(repository):
    done = subprocess.run(
        [str(TOOLS / "ansible-inventory"), "-i", "inventories/chimes", "--list"],
        cwd=repository / "ansible",
        env={**os.environ, "ANSIBLE_CONFIG": str(ANSIBLE / "ansible.cfg")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "ungrouped" not in json.loads(done.stdout), "a secret is the name of a host"
    assert "Sup3rSecret" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("ignored", "code"),
    [("", 2), ("secrets/\n", 0), (None, 0)],
    ids=["not ignored", "ignored", "no repository"],
)
@pytest.mark.parametrize("folder", ["secrets", "secrets/made/later"])
def test_a_folder_that_git_would_take_is_refused(tmp_path, ignored, code, folder):
    if ignored is not None:
        subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
        (tmp_path / ".gitignore").write_text(ignored)
    (tmp_path / "play.yml").write_text(
        json.dumps(
            [
                {
                    "hosts": "localhost",
                    "gather_facts": False,
                    "tasks": [
                        {
                            "ansible.builtin.include_role": {"name": "common", "tasks_from": "private"},
                            "vars": {
                                "common_private": str(tmp_path / folder),
                                "common_private_variable": "carillon_secrets_dir",
                            },
                        }
                    ],
                }
            ]
        )
    )
    done = subprocess.run(
        [str(TOOLS / "ansible-playbook"), str(tmp_path / "play.yml")],
        env={**os.environ, "ANSIBLE_CONFIG": str(ANSIBLE / "ansible.cfg"), "GIT_CEILING_DIRECTORIES": "/tmp"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert ("carillon_secrets_dir" in done.stdout) == bool(code)
