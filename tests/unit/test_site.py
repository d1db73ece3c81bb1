"""What docs/site makes of the pages. `make docs` is the check that the whole of it builds."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SITE = ROOT / "docs/site"
MERMAID = re.compile(r"^```mermaid\n(.*?)^```", re.M | re.S)


def load(name):
    spec = importlib.util.spec_from_file_location(f"site_{name}", SITE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


diagrams = load("diagrams")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('flowchart TB\n a["one"]\n b[("two")]\n a -- "goes, to" --> b', '"a" -> "b" [label="goes, to"]'),
        ("flowchart TB\n a --- b", '"a" -> "b" [label="", dir=none]'),
        ("stateDiagram-v2\n [*] --> held: a word", '"[*]0" -> "held" [label="a word"]'),
        ("stateDiagram-v2\n held --> [*]", '"held" -> "[*]0" [label=""]'),
        (
            "stateDiagram-v2\n a --> b: a label that is longer than one line of a picture should be",
            '[label="a label that is longer than one\\nline of a picture should be"]',
        ),
    ],
)
def test_an_arrow_becomes_an_edge(text, said):
    assert said in diagrams.dot(text)


def test_a_database_is_a_cylinder():
    assert 'b [shape=cylinder, label="two"]' in diagrams.dot('flowchart TB\n b[("two")]')


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sequenceDiagram\n a->>b: x", "no such kind of diagram here: sequenceDiagram"),
        ("flowchart TB\n a -.-> b", "not understood: a -.-> b"),
        ('flowchart TB\n a(["x"])', 'not understood: a(["x"])'),
        ("stateDiagram-v2\n note left of a", "not understood: note left of a"),
    ],
)
def test_what_is_not_understood_stops_the_build(text, said):
    with pytest.raises(diagrams.DiagramError, match=re.escape(said)):
        diagrams.dot(text)


def test_no_line_of_a_diagram_is_left_out():
    for page in ROOT.glob("docs/**/*.md"):
        for text in MERMAID.findall(page.read_text()):
            arrows = len(re.findall(r"-->|---", text))
            assert diagrams.dot(text).count("->") == arrows, page


def test_the_navigation_has_every_page_of_the_contents():
    conf = load("conf")

    class App:
        class env:
            doc2path = staticmethod(lambda name: ROOT / f"{name}.md")

    source = ["# Carillon\n"]
    conf._navigation(App, "docs/architecture", source)
    assert source == ["# Carillon\n"]
    conf._navigation(App, "README", source)
    pages = {f"docs/{path.relative_to(ROOT / 'docs').with_suffix('')}" for path in ROOT.glob("docs/**/*.md")}
    assert set(re.findall(r"^docs/\S+$", source[0], re.M)) == pages - {"docs/README"}
    assert re.findall(r":caption: (\w+)", source[0]) == ["Start", "Operate", "Build", "Reference", "Why"]
