"""A user's Python file: loaded once, run with its folder importable, and a line of it for everything that is said."""

from __future__ import annotations

import ast
import importlib.util
import random
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import numpy as np

from bpcli.checking.guard import guarded
from bpcli.errors import Place, fail, nearest, printable

_SHOWN = 200
_A_FILE = "name a Python file that can be read"


@dataclass(frozen=True, eq=False)
class UserFile:
    """`shown` is the path as the user wrote it; `modules` are those that the file imported from its own folder."""

    path: Path
    shown: str
    module: ModuleType
    source: bytes
    modules: dict[str, ModuleType] = field(default_factory=dict)

    @contextmanager
    def running(self, again: bool = False) -> Iterator[None]:
        """Run code of this file: guarded, its folder importable, and its neighbours hidden from other files.

        Global generators stand where they stood at any earlier time; not where it runs `again`: what it draws from
        them then differs from what it drew before.
        """
        with guarded(), _importable(self.path.parent, self.modules):
            if again:
                random.random()
                np.random.random()
            yield

    def get(self, name: str, place: Place | None = None) -> Any:
        """What the file calls `name`; `BpError` at `place` with the nearest name where there is nothing."""
        if name not in vars(self.module):
            own = [n for n, v in vars(self.module).items() if not n.startswith("_") and not isinstance(v, ModuleType)]
            fail(
                "unknown-name",
                f'{printable(self.shown)} has no "{printable(name)}"',
                place,
                help=nearest(name, own, "define it at the top level of the file"),
            )
        return vars(self.module)[name]

    def line_of(self, name: str) -> int:
        """Where `name` is defined at the top level of the file, or inside the class or function before the dot."""
        found = 1
        body: list[ast.stmt] = ast.parse(self.source).body
        for part in name.split("."):
            places = [node for node in body if part in _bound(node)]
            if not places:
                break
            found, body = places[-1].lineno, list(getattr(places[-1], "body", []))
        return found

    def at(self, line: int) -> str:
        """`file.py:3`, for the end of a sentence."""
        return f"{self.shown}:{line}"

    def place(self, line: int, column: int = 1) -> Place:
        """A place in the file, with its line."""
        lines = self.source.decode("utf-8", errors="replace").splitlines()
        return Place(self.shown, line, column, lines[line - 1] if line <= len(lines) else "")

    def raised(self, error: BaseException, otherwise: int) -> str:
        """What was raised, and the last line of this file on the way there; line `otherwise` where there is none."""
        line = _last_line(error.__traceback__, str(self.path)) or otherwise
        return f"raises {described(error)} ({self.at(line)})"


def load(path: Path, shown: str, place: Place | None = None) -> UserFile:
    """Run the file at `path` as a module. `BpError` where it is missing, at `place`, or where it fails, at its line."""
    source = _read(path, shown, place)
    name = f"_bp_{path.stem}_{zlib.crc32(str(path).encode()):08x}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None:
        fail("bad-file", f'"{printable(shown)}" is no Python file', place, help="name a file that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    file = UserFile(path, shown, module, source)
    try:
        # Compiled here and not by the importer, whose cached bytecode is stale after a quick change.
        with file.running():
            exec(compile(source, str(path), "exec", dont_inherit=True), vars(module))
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        _refuse(file, error)
    return file


def described(error: BaseException) -> str:
    """An exception in one line, whatever its own text does."""
    try:
        text = " ".join(str(error).split())
    except Exception:
        text = ""
    name = type(error).__name__
    return printable(f"{name}: {text}" if text else name, _SHOWN)


def _read(path: Path, shown: str, place: Place | None) -> bytes:
    try:
        if path.is_dir():
            fail("unreadable-file", f'"{printable(shown)}" is a folder, not a Python file', place, help=_A_FILE)
        if not path.exists():
            near = [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
            fail(
                "no-such-file",
                f'no file "{printable(shown)}"',
                place,
                help=nearest(path.name, near, "there is no Python file in that folder"),
            )
        if not path.is_file():
            fail("unreadable-file", f'"{printable(shown)}" is not a regular file', place, help=_A_FILE)
        return path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "this can't be the name of a file"
        fail("unreadable-file", f'cannot read "{printable(shown)}": {reason}', place, help=_A_FILE)


def _refuse(file: UserFile, error: BaseException) -> None:
    """A file that can't be loaded has no function to judge."""
    line, column = _last_line(error.__traceback__, str(file.path)) or 1, 1
    if isinstance(error, SyntaxError) and error.filename == str(file.path):
        line, column = error.lineno or 1, error.offset or 1
    place = file.place(line, max(1, column))
    words = f"{type(error).__name__}: {error.msg}" if isinstance(error, SyntaxError) else described(error)
    fail("user-code", f"{printable(file.shown)} cannot be loaded: {words}", place, help="run it with python first")


def _bound(node: ast.stmt) -> set[str]:
    """The names that a statement binds."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {alias.asname or alias.name for alias in node.names}
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}


def _last_line(trace: TracebackType | None, path: str) -> int | None:
    line = None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == path:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


@contextmanager
def _importable(folder: Path, modules: dict[str, ModuleType]) -> Iterator[None]:
    """`folder` first on the path. What is imported from it is kept in `modules`: another folder may have its own."""
    before = {name.partition(".")[0] for name in sys.modules}
    sys.modules.update({n: m for n, m in modules.items() if n not in sys.modules})
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        fresh = {n for n, m in sys.modules.items() if "." not in n and n not in before and _lives_in(m, folder)}
        for name in [n for n in sys.modules if n.partition(".")[0] in fresh]:
            modules[name] = sys.modules.pop(name)


def _lives_in(module: ModuleType, folder: Path) -> bool:
    """Whether a top-level module is a file of `folder` or a package right below it."""
    spec = getattr(module, "__spec__", None)
    origin = getattr(spec, "origin", None)
    if not isinstance(origin, str):
        return False
    path = Path(origin)
    return folder in (path.parent, path.parent.parent if path.name == "__init__.py" else None)
