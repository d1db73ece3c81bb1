"""What the pages of Operate print is what there is: playbooks, variables, targets and files."""

from __future__ import annotations

import re
import subprocess

import pytest

from tests.production import how_to
from tests.production.pages import plans
from tests.unit.production.test_control_node import ANSIBLE, ROOT

PAGES = [how_to.FOLDER / f"{page}.md" for page in how_to.operate()]
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
        metrics = set(re.findall(r"`(carillon_[a-z_]+)", (ROOT / "docs/reference/metrics.md").read_text()))
        # The name of a database.
        assert set(named) - {"carillon_restored"} - metrics <= VARIABLES

    def test_blocks_of_shell_can_be_read_by_a_shell(self, path):
        """Blocks without a language are commands, unless they are a file's lines."""
        for block in re.findall(r"^```\n(.*?)^```", path.read_text(), re.M | re.S):
            if how_to.LINES_OF_A_FILE.search(block):
                continue
            text = re.sub(r"<[a-z ]+>|…", "x", block)
            done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{path.name}:\n{block}{done.stderr}"


def test_there_are_pages_and_they_print_commands():
    assert len(PAGES) >= 10
    assert sum("ansible-playbook" in command for path in PAGES for command in commands(path)) > 15


class TestTyped:
    """Every page of Operate is typed (tests/production/pages), or it is said which other suite proves it."""

    def test_each_page_is_in_one_plan(self):
        planned = [*plans.HOST_PAGES, *plans.CONTAINER_PAGES, *plans.ELSEWHERE]
        assert sorted(planned) == sorted(how_to.operate())

    @pytest.mark.parametrize("page", [*plans.HOST_PAGES, *plans.CONTAINER_PAGES])
    def test_what_is_not_typed_is_still_on_the_page(self, page):
        printed = how_to.commands(page)
        for start in plans.NOT_TYPED.get(page, {}):
            assert any(command.startswith(start) for command in printed), start
        assert any(plans.not_typed(page, command) is None for command in printed)

    def test_no_reason_is_of_another_page(self):
        assert set(plans.NOT_TYPED) <= {*plans.HOST_PAGES, *plans.CONTAINER_PAGES}

    def test_a_placeholder_that_nobody_fills_in_is_refused(self):
        assert how_to.filled("git checkout <release>", {"<release>": "next"}) == "git checkout next"
        with pytest.raises(ValueError, match="nobody says what <release> is"):
            how_to.filled("git checkout <release>", {})

    def test_commands_are_blocks_and_what_stands_in_backticks(self, tmp_path, monkeypatch):
        monkeypatch.setattr(how_to, "FOLDER", tmp_path)
        (tmp_path / "page.md").write_text(
            "Run `git checkout\n<release>` of `git`, then `carillon-roll`, `A=1 make dev`, `a.toml`:\n\n"
            "```\ncd ansible\nls -l\n```\n\n    $ carillon explain 1:2\n    an answer\n\n"
            "    carillon check --url \\\n        https://a.example\n\n    CARILLON_X=1\n\n"
            "```\n[Peer]\nx = 1\n```\n\n```json\n{}\n```\n\n```\na_variable: 1\n```\n"
        )
        assert how_to.commands("page") == [
            *("git checkout <release>", "carillon-roll", "A=1 make dev"),
            "cd ansible\nls -l\n",
            "carillon explain 1:2",
            "carillon check --url \\\n    https://a.example\n",
        ]
