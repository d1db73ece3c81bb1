"""The pages on failures and threats name tests: each of them is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("page", "least"),
    [("reference/asgi_amqp_failures", 40), ("reference/delivery_failures", 30), ("why/threat-model", 15)],
)
def test_every_test_that_the_page_names_is_there(page, least):
    page = (ROOT / f"docs/{page}.md").read_text()
    named = set(re.findall(r"`(test_\w+)`", page))
    there = set()
    for file in (ROOT / "tests").rglob("test_*.py"):
        there.update(re.findall(r"^ *(?:async )?def (test_\w+)", file.read_text(), re.MULTILINE))
    assert len(named) > least
    assert not named - there


def test_every_fault_at_the_edges_has_its_promise_and_its_proof():
    page = (ROOT / "docs/reference/asgi_amqp_failures.md").read_text()
    section = page.partition("## At the edges")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (\d+) \| .+ \| .+ \| (.*`test_\w+`) \|$", section, re.MULTILINE)
    assert len(rows) > 22
    assert [int(number) for number, _ in rows] == list(range(1, section.count("\n| ")))
