"""The rules of the house, read off the sources: which way imports run, how long things are, what none may contain."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from bpcli.cli import main
from bpcli.commands.registry import COMMANDS

PACKAGE = Path(__file__).parents[1] / "bpcli"
MODULES = sorted(PACKAGE.rglob("*.py"))
NAMES = [str(path.relative_to(PACKAGE)) for path in MODULES]

# Rooms from the ground up; a room may import those on lower floors. Rooms of one floor do not know each other.
FLOORS = (
    ("errors",),
    ("spec",),
    ("graph",),
    ("kernels",),
    ("problem", "tasks"),
    ("methods",),
    ("references", "peers"),
    ("checking", "benching"),
    ("cluster",),
    ("commands",),
    ("cli", "pytest_plugin"),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
# Room or file, and what it may import beside the floors below: the reason.
DOORS = {
    ("benching", "checking"): "what is benched is vouched for by the check's own verdict",
    ("commands", "cli"): "the table of commands and the names of their options",
    ("pytest_plugin", "render.document"): "what a test is told of a finding",
    ("commands", "render"): "output is for whoever talks to the user",
    ("render", "problem.export"): "both write files whole or not at all",
    ("render", "errors"): "a path that cannot be written is refused",
    ("problem", "tasks"): "a task is where inputs come from",
    ("tasks", "problem"): "a task says what it fills in the problem's terms",
    ("__main__", "cli"): "the way in",
}
LONG_MODULES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {}
MANY_ARGUMENTS = "kernels"  # compiled functions take arrays, offsets and strides one by one


@cache
def tree(path: Path) -> ast.Module:
    """A module's syntax."""
    return ast.parse(path.read_text(encoding="utf-8"))


def room(module: str) -> str:
    """`bpcli.graph.nodes` is in the room `graph`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


@cache
def imported(path: Path) -> list[tuple[str, bool]]:
    """Every module that is imported, with whether the import stands at module level."""
    return list(_imported(path))


def _imported(path: Path) -> Iterator[tuple[str, bool]]:
    syntax = tree(path)
    top = {id(node) for node in syntax.body}
    for node in ast.walk(syntax):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert 0 == node.level, f"{path}: relative import"
            source = str(node.module)
            yield from ((_whole(source, alias.name), id(node) in top) for alias in node.names)


def _whole(source: str, name: str) -> str:
    """`from bpcli.graph import model` imports `bpcli.graph.nodes`, `from bpcli.errors import fail` `bpcli.errors`."""
    deeper = PACKAGE.parent / Path(*source.split(".")) / name
    return f"{source}.{name}" if deeper.with_suffix(".py").exists() or deeper.is_dir() else source


def allowed(importer: str, module: str) -> bool:
    """Whether a file (`commands/check.py`) may import a module of the package."""
    here, there = room(f"bpcli.{importer.removesuffix('.py').replace('/', '.')}"), room(module)
    if there in ("", here):
        return True
    if here in FLOOR and there in FLOOR and FLOOR[there] < FLOOR[here]:
        return True
    return any(here == a and f"{module}.".startswith(f"bpcli.{b}.") for a, b in DOORS)


@pytest.mark.parametrize("name", NAMES)
def test_imports_run_one_way(name: str) -> None:
    """commands, then checking and benching, methods, references and peers, problem, kernels, graph, spec, errors."""
    modules = [module for module, _ in imported(PACKAGE / name) if module.split(".")[0] == "bpcli"]
    assert [] == [module for module in modules if not allowed(name, module)]


@pytest.mark.parametrize("door", DOORS)
def test_doors_are_used(door: tuple[str, str]) -> None:
    """What the rules above let through is there."""
    files = [
        path for path in MODULES if path.relative_to(PACKAGE).as_posix().startswith((f"{door[0]}/", f"{door[0]}.py"))
    ]
    assert any(f"{module}.".startswith(f"bpcli.{door[1]}.") for path in files for module, _ in imported(path))


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("kernels/")])
def test_numba_stays_in_its_room(name: str) -> None:
    """Nothing outside of kernels/ imports the compiler."""
    assert not {"numba", "llvmlite"} & {module.split(".")[0] for module, _ in imported(PACKAGE / name)}


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("cluster/")])
def test_dask_stays_in_its_room(name: str) -> None:
    """Nothing outside of cluster/ imports an extra that may be missing."""
    assert not {"distributed", "dask"} & {module.split(".")[0] for module, _ in imported(PACKAGE / name)}


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith(("commands/", "cli.py", "pytest_plugin"))])
def test_commands_start_fast(name: str) -> None:
    """At module level the command line imports click, the standard library, and its own package."""
    modules = {module.split(".")[0] for module, top in imported(PACKAGE / name) if top}
    started = {"pytest"} if name == "pytest_plugin.py" else {"click"}  # what has been imported by then anyway
    assert set() == modules - started - {"bpcli"} - sys.stdlib_module_names


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("methods/")])
def test_methods_do_not_know_each_other(name: str) -> None:
    """Methods share the protocol, the unrolling ones all but their windows; those of other packages come by one way."""
    others = [module for module, _ in imported(PACKAGE / name) if room(module) == "methods"]
    assert {"bpcli.methods.base", "bpcli.methods._unrolling", "bpcli.methods._installed"} >= set(others)


@pytest.mark.parametrize("name", NAMES)
def test_sizes(name: str) -> None:
    """Modules under 450 lines, functions under 60, at most six arguments."""
    path = PACKAGE / name
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 450 or name in LONG_MODULES
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            long = int(node.end_lineno or 0) - node.lineno + 1 > 60
            assert not long or f"{name}:{node.name}" in LONG_FUNCTIONS, node.name
            own = [a for a in (*node.args.posonlyargs, *node.args.args) if a.arg not in ("self", "cls")]
            many = len(own) + len(node.args.kwonlyargs) > 6
            assert not many or name.startswith(MANY_ARGUMENTS) or _is_command(node), node.name


def _is_command(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether it is decorated by click, which passes an argument for each option."""
    return any("click" in ast.unparse(decorator) for decorator in node.decorator_list)


def test_exceptions_are_exceptions() -> None:
    """What is listed as long is long."""
    for name in LONG_MODULES:
        assert len((PACKAGE / name).read_text(encoding="utf-8").splitlines()) > 450
    for entry in LONG_FUNCTIONS:
        name, function = entry.split(":")
        nodes = [n for n in ast.walk(tree(PACKAGE / name)) if isinstance(n, ast.FunctionDef) and n.name == function]
        assert any(int(n.end_lineno or 0) - n.lineno + 1 > 60 for n in nodes), entry


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_left_to_do(name: str) -> None:
    """No stubs, no notes to oneself, no mention of where it was written."""
    text = (PACKAGE / name).read_text(encoding="utf-8")
    assert [] == re.findall(r"NotImplementedError|\bTODO\b|\bFIXME\b|\bXXX\b|breakpoint\(|\bissue \d", text)


@pytest.mark.parametrize("name", NAMES)
def test_everything_public_is_documented(name: str) -> None:
    """Every module, class and public function says what it is."""
    if name.endswith("__init__.py") and not (PACKAGE / name).read_text(encoding="utf-8").strip():
        return
    syntax = tree(PACKAGE / name)
    assert ast.get_docstring(syntax)
    for node in syntax.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), node.name


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
