"""The rules of the house, read off the sources: one test a rule, with the list of offenders."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from bpcli.cli import main
from bpcli.commands import COMMANDS

PACKAGE = Path(__file__).parents[1] / "bpcli"
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}

# Rooms from the ground up; a room may import those on lower floors. Rooms of one floor do not know each other.
FLOORS = (
    ("errors",),
    ("spec",),
    ("graph",),
    ("tape",),
    ("kernels",),
    ("problem", "tasks"),
    ("runtime",),
    ("methods",),
    ("references",),
    ("backends",),
    ("checking",),
    ("bench", "lecture"),
    ("training",),
    ("cluster",),
    ("api",),
    ("papers",),
    ("commands",),
    ("cli", "pytest_plugin"),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
# Room or file, and what it may import beside the floors below: the reason.
DOORS = {
    ("problem", "tasks"): "a task is where inputs come from",
    ("tasks", "problem"): "a task says what it fills in the problem's terms",
    ("pytest_plugin", "cli"): "specs as tests have the options of bp check",
    ("api", "render"): "a report is for people too",
    ("commands", "render"): "output is for whoever talks to the user",
    ("render", "problem.array_files"): "both write files whole or not at all",
    ("render", "errors"): "a path that cannot be written is refused",
    ("__main__", "cli"): "the way in",
}
# Compiled functions take arrays and strides one by one; the public API takes options by keyword.
MANY_ARGUMENTS = ("bpcli.kernels", "bpcli.tape.plan", "bpcli.api.check_functions", "bpcli.api.loaded")


@cache
def tree(module: str) -> ast.Module:
    """A module's syntax."""
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def room(module: str) -> str:
    """`bpcli.graph.nodes` is in the room `graph`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


@cache
def imported(module: str) -> list[tuple[str, bool]]:
    """Every module that is imported, with whether the import stands at module level."""
    return list(_imported(module))


def _imported(module: str) -> Iterator[tuple[str, bool]]:
    syntax = tree(module)
    top = {id(node) for node in syntax.body}
    for node in ast.walk(syntax):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert 0 == node.level, f"{module}: relative import"
            source = str(node.module)
            names = (f"{source}.{alias.name}" for alias in node.names)
            yield from ((name if name in MODULES else source, id(node) in top) for name in names)


def outside(packages: set[str], but: str) -> list[tuple[str, str]]:
    """Modules outside of the room `but` that import one of the packages."""
    pairs = ((m, name) for m in MODULES if room(m) != but for name, _ in imported(m))
    return [(m, name) for m, name in pairs if name.split(".")[0] in packages]


def allowed(importer: str, module: str) -> bool:
    """Whether a module may import another one of the package."""
    here, there = room(importer), room(module)
    if there in ("", here):
        return True
    if here in FLOOR and there in FLOOR and FLOOR[there] < FLOOR[here]:
        return True
    return any(f"{importer}.".startswith(f"bpcli.{a}.") and f"{module}.".startswith(f"bpcli.{b}.") for a, b in DOORS)


def test_imports_run_one_way() -> None:
    """From the command line down to the errors, and by no other way."""
    pairs = [(m, name) for m in MODULES for name, _ in imported(m) if name.split(".")[0] == "bpcli"]
    assert [] == [(m, name) for m, name in pairs if not allowed(m, name)]


@pytest.mark.parametrize("door", DOORS)
def test_doors_are_used(door: tuple[str, str]) -> None:
    """What the rules above let through is there."""
    files = [m for m in MODULES if f"{m}.".startswith(f"bpcli.{door[0]}.")]
    assert any(f"{name}.".startswith(f"bpcli.{door[1]}.") for m in files for name, _ in imported(m))


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle; none where there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_circles_of_imports() -> None:
    """Of any kind: at module level, inside functions, or for types only."""
    graph = {m: {name for name, _ in imported(m) if name in MODULES} - {m} for m in MODULES}
    assert [] == circle(graph)
    assert {"a", "b"} == set(circle({"a": {"b"}, "b": {"a"}}))


def test_one_name_for_one_module() -> None:
    """No two modules of one name, but for packages, and `base`, which holds the protocol of its room."""
    files = [m.split(".")[-1] for m, path in MODULES.items() if path.name not in ("__init__.py", "base.py")]
    files.remove("forward")  # a method, beside the kernel
    assert [] == [name for name, count in Counter(files).items() if count > 1]


def test_numba_stays_in_its_rooms() -> None:
    """Numba compiles kernels; LLVM loads what it made."""
    compilers = {"bpcli.runtime.compiling", "bpcli.runtime.kernel_loader", "bpcli.runtime.kernel_cache"}
    assert [] == [pair for pair in outside({"numba", "llvmlite"}, "kernels") if pair[0] not in compilers]


def test_dask_stays_in_its_room() -> None:
    """Nothing outside of cluster/ imports an extra that may be missing."""
    assert [] == outside({"distributed", "dask"}, "cluster")


def test_commands_start_fast() -> None:
    """At module level the command line imports click, the standard library, and its own package."""
    started = {"click", "bpcli", *sys.stdlib_module_names}
    own = [m for m in MODULES if room(m) in ("commands", "cli")]
    assert [] == [(m, n) for m in own for n, top in imported(m) if top and n.split(".")[0] not in started]
    plugin = {n.split(".")[0] for n, top in imported("bpcli.pytest_plugin") if top}
    assert set() == plugin - {"pytest", "bpcli", *sys.stdlib_module_names}


def test_methods_do_not_know_each_other() -> None:
    """They share the protocol, and all but their windows, schedule or rule; those of other packages come by one way.

    The dense recursion is the definition of a draw where a method is random.
    """
    shared = {f"bpcli.methods.{m}" for m in ("base", "_unrolling", "_online", "_patterned", "_checkpointed")}
    shared |= {f"bpcli.methods.{m}" for m in ("_installed", "_random", "_kronecker", "rtrl_dense")}
    own = [m for m in MODULES if room(m) == "methods"]
    assert [] == [(m, n) for m in own for n, _ in imported(m) if room(n) == "methods" and n not in shared]


def functions(module: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """All of a module."""
    return (n for n in ast.walk(tree(module)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))


def test_sizes() -> None:
    """Modules of 450 lines at most, functions under 60, at most six arguments."""
    assert [] == [m for m, path in MODULES.items() if len(path.read_text(encoding="utf-8").splitlines()) > 450]
    found = defaultdict(list)
    for module in MODULES:
        for node in functions(module):
            if int(node.end_lineno or 0) - node.lineno + 1 > 60:
                found["long"].append(f"{module}:{node.name}")
            own = [a for a in (*node.args.posonlyargs, *node.args.args) if a.arg not in ("self", "cls")]
            many = len(own) + len(node.args.kwonlyargs) > 6
            if many and not module.startswith(MANY_ARGUMENTS) and not _is_command(node):
                found["many arguments"].append(f"{module}:{node.name}")
    assert {} == found


def _is_command(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether it is a command of click or a `validated` function of Python, with an argument for each option."""
    return any("click" in (text := ast.unparse(d)) or text == "validated" for d in node.decorator_list)


def test_nothing_is_left_to_do() -> None:
    """No stubs, no notes to oneself, no mention of where it was written."""
    marks = r"NotImplementedError|\bTODO\b|\bFIXME\b|\bXXX\b|breakpoint\(|\bissue \d"
    assert [] == [m for m, path in MODULES.items() if re.search(marks, path.read_text(encoding="utf-8"))]


def test_everything_public_is_documented() -> None:
    """Every module, class and public function says what it is."""
    found = []
    for module in MODULES:
        if not ast.get_docstring(tree(module)):
            found.append(module)
        for node in tree(module).body:
            public = isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_")
            if public and not ast.get_docstring(node):
                found.append(f"{module}:{node.name}")
    assert [] == found


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_have_help(name: str) -> None:
    """Every command has a line in the group's help, and help for each of its options."""
    assert re.search(rf"^\s+{name}\s+\S", CliRunner().invoke(main, ["--help"]).output, re.MULTILINE)
    command = main.get_command(click.Context(main), name) if isinstance(main, click.Group) else None
    if command is None:
        command = getattr(importlib.import_module(COMMANDS[name].module), COMMANDS[name].name)
    assert command.help
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, option.name
