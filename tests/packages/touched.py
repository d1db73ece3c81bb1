"""What the layer touches of aio-pika, aiormq and pamqp, as mypy sees it: every name that it takes from a
module of theirs, every class that it inherits from, every attribute of an object whose class is theirs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mypy import build, modulefinder, nodes, options, types

LIBRARIES = ("aio_pika", "aiormq", "pamqp")
UNKNOWN = "?"  # stands for the class of an object of which mypy knows none, when a private name of it is used
# What leads from a node of mypy's away from the text, to what a name in it means.
_ELSEWHERE = frozenset(["node", "info", "def_var", "analyzed", "names", "original_def", "expanded"])
_MEANINGS = (nodes.MypyFile, nodes.TypeInfo, nodes.Var)


@dataclass(frozen=True, order=True)
class Touch:
    """`how` is name, subclass or attribute; `name` is what is touched, with the class that defines it."""

    name: str
    how: str
    where: str

    def __str__(self) -> str:
        return f"{self.where}: {self.how} {self.name}"


def touched(*packages: Path, cache: Path) -> list[list[Touch]]:
    """Of all modules of each package, given by its folder. `cache` is a folder that mypy may write to."""
    chosen = options.Options()
    chosen.export_types = chosen.preserve_asts = True
    chosen.incremental = False
    chosen.ignore_missing_imports = True
    chosen.mypy_path = [str(package.parent) for package in packages]
    chosen.cache_dir = str(cache)
    files = {
        _module(file, package): (file, package) for package in packages for file in package.rglob("*.py")
    }
    sources = [modulefinder.BuildSource(str(file), module, None) for module, (file, _) in files.items()]
    result = build.build(sources, chosen)  # its errors are the linter's matter
    found: dict[Path, set[Touch]] = {package: set() for package in packages}
    for module, (file, package) in files.items():
        tree = result.graph[module].tree
        assert tree is not None
        for node in _nodes(tree):
            for how, name in _of(node, result.types):
                if name.partition(".")[0] in (*LIBRARIES, UNKNOWN):
                    found[package].add(Touch(name, how, f"{file.name}:{node.line}"))
    return [sorted(found[package]) for package in packages]


def _module(file: Path, package: Path) -> str:
    parts = file.relative_to(package.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def _nodes(tree: nodes.MypyFile) -> Iterator[nodes.Node]:
    """All nodes of the text. mypy's own visitors are compiled and cannot be inherited from."""
    waiting: list[object] = list(tree.defs)
    seen: set[int] = set()
    while waiting:
        node = waiting.pop()
        if isinstance(node, list | tuple):
            waiting += node
        elif isinstance(node, nodes.Node) and not isinstance(node, _MEANINGS) and id(node) not in seen:
            seen.add(id(node))
            yield node
            for each in type(node).__mro__:
                for name in getattr(each, "__mypyc_attrs__", ()):
                    if name not in _ELSEWHERE and not name.startswith("_"):
                        waiting.append(getattr(node, name, None))


def _of(node: nodes.Node, known: dict[nodes.Expression, types.Type]) -> Iterator[tuple[str, str]]:
    if isinstance(node, nodes.Import):
        for name, _ in node.ids:
            yield "name", name
    elif isinstance(node, nodes.ImportFrom) and not node.relative:
        for name, _ in node.names:
            yield "name", f"{node.id}.{name}"
    elif isinstance(node, nodes.ClassDef):
        for base in node.info.bases:
            yield "subclass", base.type.fullname
    elif isinstance(node, nodes.MemberExpr):
        if isinstance(node.expr, nodes.RefExpr) and isinstance(node.expr.node, nodes.MypyFile):
            yield "name", f"{node.expr.node.fullname}.{node.name}"
        kind = types.get_proper_type(known.get(node.expr))
        if isinstance(kind, types.AnyType) and node.name.startswith("_") and not node.name.endswith("__"):
            yield "attribute", f"{UNKNOWN}.{node.name}"
        for owner in _classes(kind):
            holder = owner.get_containing_type_info(node.name) or owner
            yield "attribute", f"{holder.fullname}.{node.name}"


def _classes(known: types.Type | None) -> Iterator[nodes.TypeInfo]:
    """The classes that a value of this type may be of."""
    if known is None:
        return
    known = types.get_proper_type(known)
    if isinstance(known, types.UnionType):
        for item in known.items:
            yield from _classes(item)
    elif isinstance(known, types.TypeVarType):
        yield from _classes(known.upper_bound)
    elif isinstance(known, types.TypeType):
        yield from _classes(known.item)
    elif isinstance(known, types.Instance):
        yield known.type
