"""The roles' papers against each other: every default is specified and explained, every specification has its
default.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

ANSIBLE = Path(__file__).resolve().parents[3] / "ansible"
ROLES = sorted(path.parent for path in (ANSIBLE / "roles").glob("*/defaults"))
# For all the others, and without settings of their own.
SHARED = sorted(path for path in (ANSIBLE / "roles").iterdir() if path not in ROLES)


class Loader(yaml.SafeLoader):
    """`!vault` and `!unsafe` are values like any other here."""


Loader.add_multi_constructor("!", lambda loader, suffix, node: loader.construct_scalar(node))


def load(path: Path):
    return yaml.load(path.read_text(), Loader)


def options(role: Path, entry: str = "main") -> dict:
    return load(role / "meta/argument_specs.yml")["argument_specs"][entry]["options"]


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
class TestRole:
    def test_defaults_and_specification_name_the_same_variables_with_the_same_values(self, role):
        defaults = load(role / "defaults/main.yml") or {}
        specified = {name: option.get("default") for name, option in options(role).items()}
        assert specified == defaults

    def test_the_preflight_checks_the_same_types(self, role):
        assert options(role, "preflight") == options(role)
        assert (role / "tasks/preflight.yml").is_file()

    def test_names_begin_with_the_role(self, role):
        names = set(load(role / "defaults/main.yml") or {})
        if (role / "vars/main.yml").is_file():
            names |= set(load(role / "vars/main.yml"))
        assert {name for name in names if not name.startswith(f"{role.name}_")} == set()

    def test_every_default_is_explained(self, role):
        lines = (role / "defaults/main.yml").read_text().splitlines()
        for number, line in enumerate(lines):
            if line[:1].isalpha():
                block = number
                # Lines that belong together share one comment above the first.
                while block and lines[block - 1] and not lines[block - 1].startswith("#"):
                    block -= 1
                assert lines[block - 1].startswith("#"), f"{role.name}: {line}"

    def test_only_builtin_modules(self, role):
        own = {f"carillon.carillon.{path.stem}" for path in (ANSIBLE / "plugins/modules").glob("*.py")}
        words = {
            "name",
            "when",
            "register",
            "loop",
            "loop_control",
            "notify",
            "no_log",
            "block",
            "always",
            "vars",
            "delegate_to",
            "run_once",
            "check_mode",
            "changed_when",
            "failed_when",
            "until",
            "retries",
            "delay",
            "environment",
            "listen",
        }

        def walk(tasks):
            for task in tasks or []:
                modules = set(task) - words
                for module in modules:
                    assert module.startswith("ansible.builtin.") or module in own, f"{role.name}: {module}"
                walk([*(task.get("block") or []), *(task.get("always") or [])])

        for path in [*role.glob("tasks/*.yml"), *role.glob("handlers/*.yml")]:
            walk(load(path))


def test_renamed_variables_name_ones_that_exist():
    known = {name for role in ROLES for name in load(role / "defaults/main.yml") or {}}
    known |= {
        "carillon_domain",
        "carillon_amqp_password",
        "carillon_database_password",
        "carillon_secret_key",
    }
    renamed = load(ANSIBLE / "roles/common/vars/main.yml")["common_renamed"]
    assert set(renamed.values()) <= known
    assert not set(renamed) & known
