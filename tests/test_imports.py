"""The rooms of the house: which module may import which. ROOMS is the table that docs/architecture.md speaks of.

Every import statement counts, wherever it stands: in a function, or under TYPE_CHECKING. Imports of a package's
parents, which Python adds by itself, do not.
"""

from __future__ import annotations

import ast
import functools
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# From the ground up. A room may import what stands on earlier lines. Rooms on one line do not know each other.
ROOMS = (
    ("ground",),
    ("texts",),
    ("lengths",),
    ("model",),
    ("families", "runs"),
    ("checkpoints",),
    ("tasks",),
    ("engine",),
    ("bulk", "evaluation", "pipelines", "trace"),
    ("integrations",),
    ("door",),
    ("convert", "search", "serve", "training"),
    ("cli",),
    ("bench", "recipes"),
)
# The modules that stand in qla_runtime itself. The other rooms are folders.
MODULES = {
    "ground": {
        "_checkout", "_core", "activations", "arrays", "bars", "drawing", "errors", "fork_safe", "hub", "lifetime",
        "options", "progress", "ragged", "real_numbers", "settings", "stages", "task_kinds", "terminal", "vectors",
    },
    "runs": {"run_folder"},
    "engine": {"engine", "inputs", "output", "runner"},
    "door": {"__init__"},
}  # fmt: skip
# `qla bench` finds the benchmarks in a source checkout by their name; no installed package has them.
BY_NAME = ("qla_runtime.cli.commands.bench", "bench.command")
# What `pip install qla_runtime` brings, and who may need more than that as soon as it is imported.
RUNTIME = {"numpy", "tokenizers", "tqdm"}
NEED_AN_EXTRA = (
    "qla_runtime.bulk.", "qla_runtime.convert.neural_compressor", "qla_runtime.integrations.",
    "qla_runtime.model.fake_quantized", "qla_runtime.model.float_model", "qla_runtime.serve",
    "qla_runtime.training",
)  # fmt: skip
# Other people's names that have no public spelling.
NO_PUBLIC_WAY = {
    "_ActionsContainer", "_SubParsersAction", "_actions", "_dynamo", "_getframe", "_inductor", "_model_card_text",
    "_similarity_fn_name",
}  # fmt: skip


@dataclass
class Module:
    tree: ast.Module
    imports: set[str] = field(default_factory=set)  # wherever they stand
    at_import: set[str] = field(default_factory=set)  # those that importing the module runs


@functools.cache
def modules() -> dict[str, Module]:
    found = {}
    for folder in ("qla_runtime", "bench", "recipes"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            found[name] = Module(ast.parse(path.read_text(encoding="utf-8")))
    ours = found.keys() | {"qla_runtime._core"}
    for module in found.values():
        module.imports = set(imported(ast.walk(module.tree), ours))
        module.at_import = set(imported(run_at_import(module.tree), ours))
    return found


def imported(nodes: Iterator[ast.AST], ours: set[str]) -> Iterator[str]:
    """`from PACKAGE import MODULE` imports the module; of any other name, what it is taken from."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, f"line {node.lineno}: a relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in ours else node.module
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from (word.value for word in node.args[:1] if isinstance(word, ast.Constant))


def run_at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """All but the bodies of functions and what stands under TYPE_CHECKING."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from run_at_import(node)


def room_of(module: str) -> str:
    first, _, rest = module.partition(".")
    if first != "qla_runtime":
        return first
    name = rest.split(".")[0] or "__init__"
    return next((room for room, names in MODULES.items() if name in names), name)


def arrows() -> Iterator[tuple[str, str]]:
    """Between modules of this repository."""
    known = modules().keys() | {"qla_runtime._core"}
    for name, module in modules().items():
        yield from ((name, target) for target in sorted(module.imports & known))


def reached(direct: dict[str, set[str]]) -> dict[str, set[str]]:
    """What every module imports, directly or through others."""
    result = {name: set(targets) for name, targets in direct.items()}
    grown = True
    while grown:
        grown = False
        for targets in result.values():
            more = set().union(*(result.get(target, ()) for target in targets)) - targets
            targets |= more
            grown |= bool(more)
    return result


def private_names_of_others(module: Module) -> Iterator[str]:
    """Names with one leading underscore that the module uses and does not define."""
    used, own = set(), set()
    for node in ast.walk(module.tree):
        match node:
            case ast.ImportFrom():
                used |= {alias.name for alias in node.names}
            case ast.Attribute(value=ast.Name(id="self" | "cls")):
                own.add(node.attr)
            case ast.Attribute():
                used.add(node.attr)
            case ast.ClassDef():
                own |= {part.name for part in node.body if isinstance(part, ast.FunctionDef)}
                own |= {part.target.id for part in node.body if isinstance(part, ast.AnnAssign)}
    private_modules = {name.split(".")[-1] for name in modules()} | {"_core"}
    return (name for name in used - own - private_modules if name.startswith("_") and name[1:2] != "_")


def test_every_room_stands_in_the_table():
    listed = {room for line in ROOMS for room in line}
    assert {room_of(name) for name in modules()} == listed
    stand = {name.removeprefix("qla_runtime.") for name in modules() if name.count(".") == 1}
    for room, names in MODULES.items():
        assert names <= stand | {"__init__", "_core"}, f"{room}: a module that is gone"


def test_imports_go_down():
    height = {room: line for line, rooms in enumerate(ROOMS) for room in rooms}
    upward = set()
    for source, target in arrows():
        above, below = room_of(source), room_of(target)
        if above != below and height[above] <= height[below]:
            upward.add((source, target))
    assert upward == {BY_NAME}


def test_no_circle():
    reach = reached({name: module.imports for name, module in modules().items()})
    circles = {
        tuple(sorted(other for other in reach if other in reach[name] and name in reach[other])) for name in reach
    }
    assert circles == {()}


def test_only_some_modules_need_more_than_the_runtime():
    enough = set(sys.stdlib_module_names) | RUNTIME | {"qla_runtime"}
    reach = reached({name: module.at_import for name, module in modules().items()})
    for name, targets in reach.items():
        if name.startswith("qla_runtime") and not name.startswith(NEED_AN_EXTRA):
            assert {target.split(".")[0] for target in targets} <= enough, name


def test_private_names_stay_in_their_module():
    used = {(name, private) for name, module in modules().items() for private in private_names_of_others(module)}
    assert {use for use in used if use[1] not in NO_PUBLIC_WAY} == set()
    assert {private for _, private in used} >= NO_PUBLIC_WAY, "an exception that nobody needs"
