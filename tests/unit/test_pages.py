"""The documentation hangs together: docs/README.md lists every page, and every link leads somewhere."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.chaos.report import composed

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
LINK = re.compile(r"\]\(([^()\s]+)\)")
# By git where there is one: a folder of packages that somebody installed below here has pages of its own.
LISTED = subprocess.run(
    ["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=False
).stdout.split()
PAGES = sorted({ROOT / name for name in LISTED if (ROOT / name).is_file()} | set(DOCS.rglob("*.md")))
OUTSIDE = ("http:", "https:", "mailto:")


def prose(page: Path) -> str:
    """Without code: what looks like a link there is none."""
    text = re.sub(r"^(```|~~~).*?^\1", "", page.read_text(), flags=re.M | re.S)
    return re.sub(r"`[^`\n]*`", lambda code: code[0].replace("](", "] ("), text)


def links(page: Path) -> list[tuple[Path, str]]:
    """(file, anchor) of each link of a page within the repository."""
    found = []
    for target in LINK.findall(prose(page)):
        if not target.startswith(OUTSIDE):
            name, _, anchor = target.partition("#")
            found.append(((page.parent / name).resolve() if name else page, anchor))
    return found


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    found: dict[str, int] = {}
    for heading in re.findall(
        r"^#+ +(.+?) *#*$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S), re.M
    ):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
        found[slug] = found.get(slug, -1) + 1
    return {slug if not n else f"{slug}-{n}" for slug, count in found.items() for n in range(count + 1)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_link_is_dead(page):
    dead = [
        f"{target}#{anchor}"
        for target, anchor in links(page)
        if not target.exists() or (anchor and anchor not in anchors(target))
    ]
    assert dead == []


def test_the_first_page_lists_every_page():
    listed = {target for target, _ in links(DOCS / "README.md")}
    assert sorted(set(DOCS.rglob("*.md")) - listed - {DOCS / "README.md"}) == []


def test_every_picture_is_shown():
    shown = {target for page in PAGES for target, _ in links(page)}
    pictures = {path for path in DOCS.rglob("*") if path.suffix in (".png", ".svg", ".webp")}
    assert sorted(pictures - shown) == []


def test_what_faults_that_compose_have_found_is_what_the_record_says():
    record = (ROOT / "tests/chaos/composed/record.jsonl").read_text().splitlines()
    assert composed([json.loads(line) for line in record]) in (DOCS / "reference/delivery.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_line_of_prose_is_short(page):
    """Tables, code and addresses are as long as they must be."""
    text = re.sub(r"^ *(```|~~~).*?^ *\1", "", page.read_text(), flags=re.M | re.S)
    lines = [line for line in text.splitlines() if not line.startswith(("|", "    ", "\t"))]
    assert [line for line in lines if len(line) > 100 and " " in line[90:]] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_sentence_is_short(page):
    """At most 35 words. Headings, tables and code are none, and where a link leads is no word."""
    text = re.sub(r"^ *(```|~~~).*?^ *\1", "", page.read_text(), flags=re.M | re.S)
    text = "\n".join(line for line in text.splitlines() if not line.startswith(("|", "    ", "\t", "#")))
    blocks = re.split(r"\n\s*\n|\n(?= *- |\n *\d+\. )", re.sub(r"\]\([^)]*\)", "]", text))
    sentences = [each for block in blocks for each in re.split(r"(?<=[.!?])\s+", block)]
    assert [each for each in sentences if len(each.split()) > 35] == []
