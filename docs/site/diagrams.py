"""Mermaid's diagrams as pictures in the page, drawn by Graphviz: a reader's browser runs no script for them.

As much of Mermaid as the documentation uses; a line of any other kind fails the build.
"""

import re
import subprocess
from html import escape

from docutils import nodes

NODE = re.compile(r'(\w+)(\[\(?)"(.+?)"\)?\]')
FLOW = re.compile(r'(\w+)(?: -- "(.+?)")? (-->|---) (\w+)')
STATE = re.compile(r"(\[\*\]|\w+) --> (\[\*\]|\w+)(?:: (.*))?")
SHAPES = {"[": "box", "[(": "cylinder"}
WIDTH = 34  # characters of a line


class DiagramError(Exception):
    """A line that is not understood."""


def _label(text: str) -> str:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + len(word) >= WIDTH:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".lstrip()
    return "\\n".join(lines).replace('"', '\\"')


def dot(text: str) -> str:
    """The diagram in Graphviz' language. DiagramError."""
    kind, *lines = [line.strip() for line in text.strip().splitlines()]
    if kind not in ("flowchart TB", "stateDiagram-v2"):
        raise DiagramError(f"no such kind of diagram here: {kind}")
    said = [
        "digraph {", "bgcolor=transparent; rankdir=TB; ranksep=0.5",
        'node [shape=box, style=rounded, fontname=sans, fontsize=11, margin="0.15,0.08"]',
        "edge [fontname=sans, fontsize=10, arrowsize=0.7]",
    ]  # fmt: skip
    for number, line in enumerate(lines):
        if kind.startswith("flow") and (found := NODE.fullmatch(line)):
            said.append(f'{found[1]} [shape={SHAPES[found[2]]}, label="{_label(found[3])}"]')
            continue
        if kind.startswith("flow") and (found := FLOW.fullmatch(line)):
            begin, label, arrow, end = found[1], found[2] or "", found[3], found[4]
        elif not kind.startswith("flow") and (found := STATE.fullmatch(line)):
            begin, end, label, arrow = found[1], found[2], found[3] or "", "-->"
            for place in (begin, end):
                if place == "[*]":
                    said.append(f'"{place}{number}" [shape=point, width=0.12]')
            begin, end = (f"{place}{number}" if place == "[*]" else place for place in (begin, end))
        else:
            raise DiagramError(f"a line that is not understood: {line}")
        tail = ", dir=none" if arrow == "---" else ""
        said.append(f'"{begin}" -> "{end}" [label="{_label(label)}"{tail}]')
    return "\n".join([*said, "}"])


def draw(text: str) -> str:
    """The diagram as SVG, in the colour of the text around it."""
    done = subprocess.run(
        ["dot", "-Tsvg"], input=dot(text), capture_output=True, text=True, check=True, timeout=30
    )
    svg = done.stdout[done.stdout.index("<svg") :]
    svg = re.sub(r'\b(stroke|fill)="black"', r'\1="currentColor"', svg)
    return svg.replace("<text ", '<text fill="currentColor" ')


def _pictures(app, document):
    for block in list(document.findall(nodes.literal_block)):
        if block.get("language") == "mermaid":
            text = block.astext()
            picture = f'<figure class="diagram" role="img" aria-label="{escape(text)}">{draw(text)}</figure>'
            block.replace_self(nodes.raw("", picture, format="html"))


def setup(app):
    app.connect("doctree-read", _pictures)
    return {"parallel_read_safe": True}
