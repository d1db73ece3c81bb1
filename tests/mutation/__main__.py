"""Mutation testing of the pure cores: `python -m tests.mutation [core ...]`, from the root of the project.

Each change of a core is one mutant: a comparison, an operator, a constant, a condition, a statement that is
removed, a value that is not returned. The unit tests of that core run on it, in a process of their own; one
that passes them all survives. The report names survivors by line. Below 95 % the exit status is 1.
"""

import argparse
import ast
import copy
import importlib.util
import math
import multiprocessing
import os
import resource
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]


class Core(NamedTuple):
    """A module, and the tests that are to notice a change of it: those that are quick first."""

    module: str
    tests: tuple[str, ...]
    shells: bool = False
    """Whether the tests of what is around it are beside them: they want Django and asyncio."""

    @property
    def source(self) -> str:
        return (ROOT / "src" / f"{self.module.replace('.', '/')}.py").read_text()


LAYER = {
    "outbox": Core("asgi_amqp.outbox", ("asgi_amqp/test_outbox.py", "asgi_amqp/test_outbox_properties.py")),
    "lanes": Core("asgi_amqp.lanes", ("asgi_amqp/test_outbox.py", "asgi_amqp/test_outbox_properties.py")),
    "mailboxes": Core(
        "asgi_amqp.mailboxes", ("asgi_amqp/test_mailboxes.py", "asgi_amqp/test_mailboxes_properties.py")
    ),
    "bindings": Core("asgi_amqp.bindings", ("asgi_amqp/test_bindings.py",)),
    "acks": Core("asgi_amqp.acks", ("asgi_amqp/test_acks.py",)),
}
PATH = {
    "relay": Core(
        "carillon.relay.core", ("relay/test_core.py", "relay/test_core_properties.py"), shells=True
    ),
    "tail": Core(
        "carillon.fanout.core", ("fanout/test_tail.py", "relay/test_core_properties.py"), shells=True
    ),
    "log": Core("carillon.fanout.log", ("fanout/test_tail.py", "relay/test_core_properties.py"), shells=True),
    "window": Core("carillon.fanout.window", ("fanout/test_window.py",)),
    "cursor": Core("carillon.fanout.cursor", ("fanout/test_cursor.py",)),
    "rights": Core("carillon.sockets.rights", ("sockets/test_rights.py",)),
    "seen": Core("carillon.events.seen", ("fanout/test_hub.py",), shells=True),
    "event": Core("carillon.events.event", ("events/test_event.py",)),
    "judge": Core("carillon.relay.judge", ("events/test_event.py",)),
    "wheel": Core("carillon.server.wheel", ("fanout/test_hub.py",), shells=True),
}
CORES = LAYER | PATH
ONCE = ("hypothesis.stateful", "pytest", "pytest_asyncio.plugin", "pytest_django.plugin", "django.test",
        "channels.layers", "aio_pika", "msgpack", "prometheus_client")  # fmt: skip
"""What all children need, and no mutant changes."""
LEAST = 0.95
TIMES = 4  # what the tests take of the processor: a mutant that takes more never ends
EQUAL = Path(__file__).with_name("equivalent.txt")  # mutants that change nothing, each with its reason

COMPARISONS = {
    ast.Lt: [ast.LtE, ast.GtE], ast.LtE: [ast.Lt, ast.Gt],
    ast.Gt: [ast.GtE, ast.LtE], ast.GtE: [ast.Gt, ast.Lt],
    ast.Eq: [ast.NotEq], ast.NotEq: [ast.Eq], ast.Is: [ast.IsNot], ast.IsNot: [ast.Is], ast.In: [ast.NotIn],
    ast.NotIn: [ast.In],
}  # fmt: skip
OPERATORS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.LShift: ast.RShift,
}  # fmt: skip


def replacements(node):
    """What a node may become."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        for kind in COMPARISONS.get(type(node.ops[0]), []):
            yield ast.Compare(node.left, [kind()], node.comparators)
    elif isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        yield ast.BinOp(node.left, OPERATORS[type(node.op)](), node.right)
    elif isinstance(node, ast.AugAssign) and type(node.op) in OPERATORS:
        yield ast.AugAssign(node.target, OPERATORS[type(node.op)](), node.value)
        yield ast.Pass()
    elif isinstance(node, ast.BoolOp):
        other = ast.And if isinstance(node.op, ast.Or) else ast.Or
        yield ast.BoolOp(other(), node.values)
        for number in range(len(node.values)):
            rest = node.values[:number] + node.values[number + 1 :]
            yield rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield node.operand
    elif isinstance(node, ast.IfExp):
        yield node.body
        yield node.orelse
    elif isinstance(node, ast.Constant):
        yield from constants(node.value)
    elif isinstance(node, (ast.If, ast.While)):
        test = ast.UnaryOp(ast.Not(), node.test)
        yield type(node)(test, node.body, node.orelse)
    elif isinstance(node, ast.Return) and node.value is not None:
        if not (isinstance(node.value, ast.Constant) and node.value.value is None):
            yield ast.Return(ast.Constant(None))
    elif isinstance(node, ast.Break):
        yield ast.Continue()
    elif isinstance(node, ast.Continue):
        yield ast.Break()
    elif isinstance(node, (ast.Assign, ast.Expr, ast.Delete, ast.Raise)) and not is_text(node):
        yield ast.Pass()


def constants(value):
    if isinstance(value, bool):
        yield ast.Constant(not value)
    elif isinstance(value, (int, float)):
        yield ast.Constant(value + 1)
    elif isinstance(value, str) and value in ("inf", "-inf"):
        yield ast.Constant("-inf" if value == "inf" else "inf")


def is_text(node):
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def places(tree):
    """(parent, field, index or None, node) of all code that runs: no annotations, texts or slots."""
    found = []

    def walk(node):
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "returns", "decorator_list", "bases") or isinstance(
                node, ast.JoinedStr
            ):
                continue
            for index, each in enumerate(value) if isinstance(value, list) else [(None, value)]:
                if isinstance(each, ast.Assign) and getattr(each.targets[0], "id", "") == "__slots__":
                    continue
                if isinstance(each, ast.AST) and not isinstance(
                    each, (ast.Import, ast.ImportFrom, ast.Assert)
                ):
                    found.append((node, field, index, each))
                    walk(each)

    walk(tree)
    return found


def mutants(source):
    """(line, what, source) of each change."""
    lines = source.splitlines()
    for number, (_, _, _, node) in enumerate(places(ast.parse(source))):
        for replacement in replacements(node):
            tree = ast.parse(source)
            parent, field, index, original = places(tree)[number]
            replacement = ast.copy_location(copy.deepcopy(replacement), original)
            if index is None:
                setattr(parent, field, replacement)
            else:
                getattr(parent, field)[index] = replacement
            ast.fix_missing_locations(tree)
            what = f"{brief(original)}  ->  {brief(replacement)}"
            yield node.lineno, lines[node.lineno - 1].strip(), what, tree


def brief(node):
    if isinstance(node, (ast.If, ast.While)):
        return f"{type(node).__name__.lower()} {ast.unparse(node.test)}"
    return ast.unparse(node)


class Mutant:
    """Finds and loads the tree in place of its module, whoever imports it."""

    def __init__(self, name, tree):
        self.name, self.code = name, compile(tree, "mutant", "exec")

    def find_spec(self, name, path, target=None):
        return importlib.util.spec_from_loader(name, self) if name == self.name else None

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        exec(self.code, module.__dict__)


def run(core, tree, examples, seconds):
    """The tests of a core with this tree in place of its module; whether they passed. In a child process,
    which has so many seconds of the processor."""
    import hypothesis
    import pytest

    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    for name in list(sys.modules):
        if name.startswith(("asgi_amqp", "carillon", "tests.unit")):
            del sys.modules[name]
    sys.meta_path.insert(0, Mutant(core.module, tree))
    os.environ["CARILLON_CORE_EXAMPLES"] = str(examples)
    os.environ["CARILLON_CORE_SHRINK"] = "0"
    hypothesis.settings.register_profile(
        "mutants", phases=[hypothesis.Phase.generate], derandomize=True, database=None
    )
    hypothesis.settings.load_profile("mutants")  # one example that fails is enough
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # each costs every mutant
    arguments = ["-x", "-q", "--noconftest", "-p", "no:cacheprovider", "--assert=plain"]
    if core.shells:
        arguments += ["-p", "pytest_asyncio.plugin", "-p", "pytest_django.plugin"]
    os._exit(int(pytest.main([*arguments, *(str(ROOT / "tests/unit" / each) for each in core.tests)])))


def survives(core, tree, examples, seconds):
    process = multiprocessing.get_context("fork").Process(target=run, args=(core, tree, examples, seconds))
    process.start()
    process.join()
    return process.exitcode == 0


def spent():
    """Seconds of the processor that children have had."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__.splitlines()[0])
    parser.add_argument("cores", nargs="*", default=list(CORES), metavar="core", help=", ".join(CORES))
    parser.add_argument("--line", type=int, help="only the mutants of this line")
    parser.add_argument("--part", type=int, nargs=2, default=(0, 1), help="0 3: every third")
    parser.add_argument("--examples", type=int, default=50, help="of each property test")
    options = parser.parse_args()
    sys.path[:0] = [str(ROOT / "src"), str(ROOT)]
    for name in ONCE:
        importlib.import_module(name)
    equal = set(EQUAL.read_text().splitlines()) if EQUAL.exists() else set()
    enough = True
    for name in options.cores:
        core = CORES[name]
        source = core.source
        before = spent()
        if not survives(core, ast.parse(source), options.examples, 60):
            sys.exit(f"{name}: its tests do not pass as it is")
        seconds = math.ceil(TIMES * (spent() - before)) + 1
        begun, total, left, alike = time.monotonic(), 0, [], 0
        part, parts = options.part
        for number, (line, text, what, tree) in enumerate(mutants(source)):
            if options.line in (None, line) and number % parts == part:
                total += 1
                if f"{name}: {text} | {what}" in equal:
                    alike += 1
                elif survives(core, tree, options.examples, seconds):
                    left.append((line, text, what))
                    print(f"{name}: {text} | {what}", f"(line {line})", flush=True)
        score = (total - alike - len(left)) / max(1, total - alike)
        print(
            f"{name}: {total} mutants, {alike} of them equivalent, {len(left)} not noticed: {score:.1%} "
            f"({time.monotonic() - begun:.0f} s)",
            flush=True,
        )
        enough = enough and score >= LEAST
    sys.exit(not enough)


if __name__ == "__main__":
    main()
