"""The commands that a how-to page prints, in the order of the page."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs/how-to"
# What a page means by these in backticks is a command, where something follows. Of others, a name.
PROGRAMS = frozenset(
    (
        *(
            "ansible-playbook",
            "apt",
            "apt-get",
            "carillon",
            "carillon-ctl",
            "carillon-roll",
            "certbot",
            "curl",
        ),
        *("docker", "git", "journalctl", "ls", "make", "openssl", "podman", "rabbitmq-diagnostics"),
        *("rabbitmq-upgrade", "rabbitmqctl", "readlink", "rm", "ss", "ssh", "systemctl"),
    )
)
# Programs that are commands by themselves.
_ALONE = frozenset(("carillon-roll",))
_ASSIGNED = re.compile(r"[A-Z_]+=\S*$")
# The lines of a file, and no commands: of a unit, of YAML, of nginx.
LINES_OF_A_FILE = re.compile(r"^(\[[A-Z]|[a-z_]+: |location )", re.M)
_PRINTED = re.compile(
    r"^```(?P<language>[a-z]*)\n(?P<fence>.*?)^```"
    r"|^(?P<indented>(?:    [^\n]*\n)+)"
    r"|`(?P<inline>[^`]+)`",
    re.M | re.S,
)


def operate() -> list[str]:
    """The pages of Operate, by the list in docs/README.md."""
    section = (ROOT / "docs/README.md").read_text().partition("## Operate\n")[2].partition("\n## ")[0]
    return re.findall(r"how-to/([a-z-]+)\.md", section)


def program(command: str) -> str:
    """The first word, after what is assigned."""
    return next((word for word in command.split() if not _ASSIGNED.match(word)), "")


def commands(page: str) -> list[str]:
    """A block, indented or fenced, is one; so is what stands in backticks and begins with a program."""
    found = []
    for match in _PRINTED.finditer((FOLDER / f"{page}.md").read_text()):
        if (block := match["fence"]) is not None:
            if match["language"] in ("", "sh") and not LINES_OF_A_FILE.search(block):
                found.append(block)
        elif block := match["indented"]:
            lines = re.sub(r"^    ", "", block, flags=re.M)
            if lines.startswith("$ "):  # what follows is the answer
                lines = lines.splitlines()[0].removeprefix("$ ")
            if program(lines) in PROGRAMS:
                found.append(lines)
        else:
            line = " ".join(match["inline"].split())
            if program(line) in PROGRAMS and (len(line.split()) > 1 or line in _ALONE):
                found.append(line)
    return found


def filled(command: str, words: Mapping[str, str]) -> str:
    """The command with its placeholders as a reader would fill them in; none may be left."""
    for placeholder, word in words.items():
        command = command.replace(placeholder, word)
    if left := re.findall(r"<[a-z'. ]+>|…", command):
        raise ValueError(f"{command!r}: nobody says what {', '.join(left)} is")
    return command
