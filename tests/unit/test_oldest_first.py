"""What forgets its oldest first is an OrderedDict. A dict looks for its first key behind the places of all
that were removed before it: with a hundred thousand keys, each new one took up to 0.3 ms."""

import ast
import re
from collections import OrderedDict
from pathlib import Path

from carillon.events.seen import Seen

ROOT = Path(__file__).parents[2]
SMALL = {"Acks._open", "Mailbox.gaps"}  # no more than the prefetch; a handful


def attribute(node):
    """X of `self.X`."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
        return node.attr
    return None


def first_of(node):
    """X of `next(iter(self.X))`."""
    text = ast.unparse(node)
    found = re.match(r"next\(iter\(self\.(\w+)\)", text)
    return found and found[1]


def test_what_forgets_its_oldest_first_finds_it_at_once():
    found = set()
    for path in sorted((ROOT / "src").rglob("*.py")):
        for kind in (
            node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)
        ):
            nodes = list(ast.walk(kind))
            asked = {first_of(node) for node in nodes if isinstance(node, ast.Call)} - {None}
            kinds = {
                attribute(node.target): ast.unparse(node.annotation)
                for node in nodes
                if isinstance(node, ast.AnnAssign) and attribute(node.target)
            }
            found |= {f"{kind.name}.{name}" for name in asked if kinds.get(name, "").startswith("dict")}
    assert found - SMALL == set()
    assert "Acks._open" in found  # it sees something


def test_the_memory_of_ids_forgets_its_oldest_first():
    """It asks by a name of its own, `ids`, which the test above does not see."""
    seen = Seen(2)
    assert isinstance(seen._ids, OrderedDict)
    assert [seen.add(each) for each in (b"a", b"b", b"a", b"c", b"a")] == [True, True, False, True, True]
    assert (len(seen), b"b" in seen) == (2, False)
