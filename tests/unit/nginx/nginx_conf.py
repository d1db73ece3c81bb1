"""A reader of nginx configuration, enough for lints: words, strings, blocks, and includes followed."""

import re
from dataclasses import dataclass, field
from pathlib import Path

TOKEN = re.compile(r"""\#[^\n]*|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|[{};]|(?:\$\{\w+\}|[^\s;{}"'])+""")


@dataclass
class Directive:
    words: list[str]
    file: Path
    line: int
    block: list["Directive"] | None = None
    parent: "Directive | None" = field(default=None, repr=False)

    @property
    def name(self) -> str:
        return self.words[0]

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {' '.join(self.words)}"


def read(file: Path, root: Path) -> list[Directive]:
    """The directives of `file`; `include` is replaced by what the files under `root` say."""
    tokens = [
        (match.group(), text.count("\n", 0, match.start()) + 1)
        for text in [file.read_text()]
        for match in TOKEN.finditer(text)
        if not match.group().startswith("#")
    ]
    position = 0

    def block(parent: Directive | None) -> list[Directive]:
        nonlocal position
        found: list[Directive] = []
        words: list[str] = []
        line = 0
        while position < len(tokens):
            token, at = tokens[position]
            position += 1
            if token == "}":
                return found
            if token not in ";{":
                line = line or at
                words.append(token[1:-1] if token[0] in "\"'" else token)
                continue
            directive = Directive(words, file, line, None, parent)
            words, line = [], 0
            if token == "{":
                directive.block = block(directive)
            if directive.name != "include":
                found.append(directive)
                continue
            for included in sorted(root.glob(directive.words[1])):
                for child in read(included, root):
                    child.parent = parent
                    found.append(child)
        return found

    return block(None)


def walk(directives: list[Directive]):
    """Every directive, depth first."""
    for directive in directives:
        yield directive
        yield from walk(directive.block or [])
