"""What the pages of Operate print is what there is: playbooks, variables, targets and files."""

from __future__ import annotations

import re
import subprocess

import pytest

from tests.unit.production.test_control_node import ANSIBLE, ROOT

PAGES = sorted(
    path
    for name in (
        "add-node",
        "backup",
        "certificates",
        "production-*",
        "remove-node",
        "retention",
        "rotate",
        "trouble*",
        "upgrade",
    )
    for path in (ROOT / "docs/how-to").glob(f"{name}.md")
)
_NAMES = re.compile(r"\b[a-z]+_[a-z_]+\b|\bnode\b|\brotate\b")
# Roles' defaults, and what is given on a command line and read by a playbook or a task itself.
VARIABLES = {
    name
    for pattern in ("*.yml", "roles/*/defaults/*.yml", "roles/*/vars/*.yml", "roles/*/tasks/*.yml")
    for path in ANSIBLE.glob(pattern)
    for name in _NAMES.findall(path.read_text())
}
_ROLES = "|".join([*(path.parent.name for path in ANSIBLE.glob("roles/*/tasks")), "timers", "check", "prune"])
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))


def commands(path) -> list[str]:
    """Fenced lines and what stands in backticks, joined where a line ends in a backslash."""
    text = path.read_text().replace("\\\n", " ")
    fenced = re.findall(r"^```[a-z]*\n(.*?)^```", text, re.M | re.S)
    inline = re.findall(r"`([^`\n]+(?:\n[^`\n]+)?)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    return [
        line.strip()
        for block in (*fenced, *inline)
        for line in [*block.splitlines(), " ".join(block.split())]
    ]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
class TestPage:
    def test_playbooks_are_there_and_take_what_they_are_given(self, path):
        for command in commands(path):
            words = command.split("#")[0].split()
            if not any(word.endswith("ansible-playbook") for word in words[:3]):
                continue
            names = [word for word in words if re.fullmatch(r"[a-z-]+\.yml", word)]
            for name in names:
                assert (ANSIBLE / name).is_file(), command
            for variable in re.findall(r"-e ([a-z_]+)=", command):
                assert variable in VARIABLES, command

    def test_targets_are_there(self, path):
        for target in re.findall(r"`(?:[A-Z_]+=\S+ )*make ([a-z-]+)", path.read_text()):
            assert target in TARGETS, f"{path.name}: make {target}"

    def test_variables_are_there(self, path):
        named = re.findall(rf"`((?:{_ROLES})_[a-z_]+)(?:: [^`]*)?`", path.read_text())
        # The name of a database.
        assert set(named) - {"carillon_restored"} <= VARIABLES

    def test_blocks_of_shell_can_be_read_by_a_shell(self, path):
        """Blocks without a language are commands, unless they are a file's lines."""
        for block in re.findall(r"^```\n(.*?)^```", path.read_text(), re.M | re.S):
            if re.search(r"^(\[|[a-z_]+: )", block, re.M):
                continue
            text = re.sub(r"<[a-z ]+>|…", "x", block)
            done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{path.name}:\n{block}{done.stderr}"


def test_there_are_pages_and_they_print_commands():
    assert len(PAGES) >= 10
    assert sum("ansible-playbook" in command for path in PAGES for command in commands(path)) > 15
