"""The roles as a collection: built, installed into an empty folder, used by a playbook that is not ours."""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
import tomllib

import pytest
import yaml

from tests.unit.production.test_control_node import ANSIBLE, ROOT, TOOLS
from tests.unit.production.test_roles import ROLES, SHARED

PLAYBOOKS = sorted(path.name for path in ANSIBLE.glob("*.yml") if path.name != "galaxy.yml")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder that it is installed in, from its archive."""
    folder = tmp_path_factory.mktemp("collection")
    galaxy = [str(TOOLS / "ansible-galaxy"), "collection"]
    # What ansible-lint has put into somebody's own folder is not what is asked for.
    environ = {**os.environ, "ANSIBLE_HOME": str(folder / "home")}
    quiet = {"capture_output": True, "text": True, "check": True, "env": environ}
    subprocess.run([*galaxy, "build", str(ANSIBLE), "--output-path", str(folder)], cwd=folder, **quiet)
    (archive,) = folder.glob("*.tar.gz")
    subprocess.run(
        [
            *galaxy,
            "install",
            "--offline",
            "--force",
            "--collections-path",
            str(folder / "there"),
            str(archive),
        ],
        cwd=folder,
        **quiet,
    )
    return folder


def test_it_has_the_roles_and_plugins_and_nothing_of_a_checkout(installed):
    (archive,) = installed.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = set(tar.getnames())
    tops = {name.split("/")[0] for name in names}
    assert tops == {"CHANGELOG.md", "FILES.json", "MANIFEST.json", "README.md", "meta", "plugins", "roles"}
    assert {name.split("/")[1] for name in names if name.startswith("roles/")} == {
        path.name for path in (*ROLES, *SHARED)
    }
    assert not [name for name in names if "secret" in name and not name.startswith("roles/secrets")]


def test_its_version_is_the_projects():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert yaml.safe_load((ANSIBLE / "galaxy.yml").read_text())["version"] == project["version"]


def test_every_playbook_is_left_out_by_name():
    assert set(PLAYBOOKS) <= set(yaml.safe_load((ANSIBLE / "galaxy.yml").read_text())["build_ignore"])


@pytest.mark.parametrize("role", [*ROLES, *SHARED], ids=lambda role: role.name)
def test_every_role_introduces_itself(role):
    meta = yaml.safe_load((role / "meta/main.yml").read_text())
    assert meta["galaxy_info"]["role_name"] == role.name
    assert f"# carillon.carillon.{role.name}\n" in (role / "README.md").read_text()
    for path in role.rglob("*.yml"):
        text = path.read_text()
        assert "playbook_dir" not in text or role.name == "topology", f"{path}: the checkout's path"
        assert "vars_files" not in text


def test_a_playbook_that_is_not_ours_uses_a_role_from_the_archive(installed, tmp_path):
    """On a host of its own inventory, without the checkout's settings."""
    (tmp_path / "hosts.yml").write_text(
        json.dumps(
            {
                "all": {
                    "children": {
                        "carillon": {
                            "children": {
                                group: {"hosts": {"theirs": {"ansible_connection": "local"}}}
                                for group in ("nginx", "app", "rabbitmq", "postgresql")
                            }
                        }
                    }
                }
            }
        )
    )
    include = {"name": "carillon.carillon.postgresql", "tasks_from": "preflight"}
    shown = (
        "{{ postgresql_login }} in {{ topology_secrets_dir }}: {{ ['443'] | carillon.carillon.listen_ports }}"
    )
    play = {
        "hosts": "postgresql",
        "gather_facts": True,
        "tasks": [
            {"ansible.builtin.set_fact": {"common_listeners": {"stdout_lines": []}}},
            {"ansible.builtin.include_role": {**include, "public": True}},
            {"ansible.builtin.debug": {"msg": shown}},
            {
                "carillon.carillon.files": {
                    "folders": [{"path": str(tmp_path / "made"), "owner": os.getuid(), "group": os.getgid()}]
                }
            },
        ],
    }
    (tmp_path / "theirs.yml").write_text(json.dumps([play]))
    environ = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    done = subprocess.run(
        [str(TOOLS / "ansible-playbook"), "-i", "hosts.yml", "theirs.yml"],
        cwd=tmp_path,
        env={**environ, "ANSIBLE_COLLECTIONS_PATH": str(installed / "there")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"carillon_a in {tmp_path}/secrets: [443]" in " ".join(done.stdout.split())
    assert (tmp_path / "made").is_dir()


@pytest.mark.parametrize(
    "path", sorted((ANSIBLE / "plugins/modules").glob("*.py")), ids=lambda path: path.stem
)
def test_ansible_doc_reads_what_a_module_says_of_itself(path):
    done = subprocess.run(
        [str(TOOLS / "ansible-doc"), "--json", f"carillon.carillon.{path.stem}"],
        cwd=ANSIBLE,
        env={**os.environ, "ANSIBLE_CONFIG": str(ANSIBLE / "ansible.cfg")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (said,) = json.loads(done.stdout).values()
    assert said["doc"]["module"] == path.stem
    assert said["examples"]
