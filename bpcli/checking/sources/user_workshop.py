"""Files of user code, loaded and run where this module is: in the process for them, or in that of a test.

It imports NumPy and the standard library alone. A message has a `do`, a `file` (its absolute path) and a `name` in it:

- `load`: run the file as a module, once;
- `find`: whether the module has the name, and a function under it;
- `open`: make the object of that name, and describe the params of a black box;
- `call`: call a function, the `part` of an object where one is named, with copies of arrays in `groups`, and take
  apart what it returns: a gradient for the `shapes` asked for, else a loss.

Whatever user code raises is an answer: `raised` in words, and the last `line` of the file on the way there.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from os import getpid
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

from numpy import array, dtype, float64, ndarray

from bpcli.checking.sources.user_protocol import Array, Message
from bpcli.checking.sources.validate_gradient import FLOATS, FlawError, same, scalar, take
from bpcli.errors import printable

CONSTANTS = "constants"
_SHOWN = 200
_Answer = tuple[Message, list[Array]]


@dataclass(frozen=True, eq=False)
class _File:
    """A loaded file; `modules` are those that it imported from its own folder, `made` its objects by name."""

    path: Path
    module: ModuleType
    modules: dict[str, ModuleType] = field(default_factory=dict)
    made: dict[str, Any] = field(default_factory=dict)


class Workshop:
    """Loads files and answers messages; exceptions of the type `passing` are not caught."""

    def __init__(self, passing: tuple[type[BaseException], ...] = ()) -> None:
        self._passing, self._here = passing, getpid()
        self._files: dict[str, _File] = {}
        self._current: _File | None = None
        self._inside = ExitStack()

    def put(self, file: str, name: str, thing: Any) -> None:
        """Have `thing` for what the file calls `name`, without running the file."""
        self._current = self._files[file] = _File(Path(file), ModuleType(name), made={name: thing})
        setattr(self._current.module, name, thing)

    def ask(self, message: Message, arrays: Sequence[Array] = ()) -> _Answer:
        """The answer to a message, and its arrays."""
        try:
            answer: _Answer = getattr(self, f"_{message['do']}")(message, arrays)
            return answer
        except self._passing:
            raise
        except BaseException as error:
            if getpid() != self._here:  # a forked copy ends as it would anywhere
                raise
            return failure(error, message["file"]), []

    def _load(self, message: Message, _: Sequence[Array]) -> _Answer:
        path = message["file"]
        if path not in self._files:
            name = f"_bp_{Path(path).stem}_{zlib.crc32(path.encode()):08x}"
            spec = importlib.util.spec_from_file_location(name, path)
            assert spec is not None, path
            file = _File(Path(path), importlib.util.module_from_spec(spec))
            sys.modules[name] = file.module
            self._enter(file)
            # Compiled here and not by the importer, whose cached bytecode is stale after a quick change.
            exec(compile(file.path.read_bytes(), path, "exec", dont_inherit=True), vars(file.module))
            self._files[path] = file
        return {}, []

    def _find(self, message: Message, _: Sequence[Array]) -> _Answer:
        own, name = vars(self._files[message["file"]].module), message["name"]
        names = [n for n, v in own.items() if not n.startswith("_") and not isinstance(v, ModuleType)]
        return {"found": name in own, "names": names, "callable": callable(own.get(name))}, []

    def _open(self, message: Message, _: Sequence[Array]) -> _Answer:
        file = self._entered(message)
        thing = self._made(file, message["name"])
        kind = type(thing)
        held = getattr(thing, "params", None)
        whole = kind.__module__ == file.module.__name__
        own = [part for part in ("loss", "grad") if whole and part in vars(kind)]
        has = [part for part in ("loss", "grad") if callable(getattr(thing, part, None))]
        described, arrays = _params(held) if isinstance(held, Mapping) else (None, [])
        has += ["params"] if held is not None else []
        answer = {"has": has, "held": kind_of(held), "params": described, "kind": kind.__name__, "own": own}
        return answer, arrays

    def _call(self, message: Message, arrays: Sequence[Array]) -> _Answer:
        file, part = self._entered(message), message["part"]
        function = getattr(self._made(file, message["name"]), part) if part else vars(file.module)[message["name"]]
        rest = iter(arrays)
        groups = [{name: next(rest) for name in names} for names in message["groups"]]
        given: list[dict[str, Any]] = [{name: a.copy() for name, a in group.items()} for group in groups]
        numbers = message.get("numbers")
        if numbers is not None and _takes_four(function):
            given.append(dict(numbers))
        answer, found = _taken(function(*given), message)
        changed = [name for now, was in zip(given, groups, strict=False) for name in altered(now, was)]
        changed += [CONSTANTS] if given[len(groups) :] not in ([], [numbers]) else []
        return {**answer, "changed": changed}, found

    def _made(self, file: _File, name: str) -> Any:
        """The object of that name; a class is called for one, once."""
        if name not in file.made:
            thing = vars(file.module)[name]
            file.made[name] = thing() if isinstance(thing, type) else thing
        return file.made[name]

    def _entered(self, message: Message) -> _File:
        file = self._files[message["file"]]
        self._enter(file)
        return file

    def _enter(self, file: _File) -> None:
        """Have the file's folder importable, and the neighbours of the last one hidden."""
        if self._current is not file:
            self._inside.close()
            self._current = None
            self._inside.enter_context(_importable(file.path.parent, file.modules))
            self._current = file


def failure(error: BaseException, file: str) -> Message:
    """What was raised as an answer."""
    answer: Message = {"raised": described(error), "line": _last_line(error.__traceback__, file)}
    if isinstance(error, SyntaxError) and error.filename == file:
        answer |= {"raised": printable(f"{type(error).__name__}: {error.msg}", _SHOWN)}
        answer |= {"line": error.lineno, "column": error.offset}
    return answer


def described(error: BaseException) -> str:
    """An exception in one line, whatever its own text does."""
    try:
        text = " ".join(str(error).split())
    except BaseException:
        text = ""
    name = "MemoryError" if isinstance(error, MemoryError) else type(error).__name__  # NumPy's own has a private name
    return printable(f"{name}: {text}" if text else name, _SHOWN)


def altered(now: Mapping[str, Any], was: Mapping[str, Any]) -> list[str]:
    """The names under which a dict of arrays holds something else than it did."""
    changed = [name for name in was if not isinstance(now.get(name), ndarray) or not same(now[name], was[name])]
    return changed + [printable(str(name), 60) for name in now if name not in was]


def kind_of(value: object) -> str:
    """The name of a value's type."""
    return printable(type(value).__name__, 60)


def _taken(given: Any, message: Message) -> _Answer:
    """What a function returned, as an answer."""
    if "shapes" not in message:
        try:
            return {"loss": scalar(given), "flaw": ""}, []
        except FlawError as flaw:
            return {"loss": None, "flaw": str(flaw)}, []
    shapes = {name: tuple(shape) for name, shape in message["shapes"].items()}
    returned = take(given, shapes, message["known"], [dtype(kind) for kind in message["dtypes"]])
    names = list(returned.arrays)
    answer = {"loss": returned.loss, "faults": dict(returned.faults), "names": names}
    return answer, [returned.arrays[name] for name in names]


def _params(held: Mapping[Any, Any]) -> tuple[list[Message], list[Array]]:
    """Each of the params described, and the arrays of those that are floats."""
    described, arrays = [], []
    for key, value in dict(held).items():
        read = array(value)
        if isinstance(value, int) and not isinstance(value, bool):
            read = read.astype(float64)
        foreign = type(value).__module__.partition(".")[0] == "torch"
        floats = read.dtype in FLOATS and not foreign
        row = {"key": key if isinstance(key, str) else printable(repr(key), 60), "name": isinstance(key, str)}
        described.append(row | {"floats": floats, "kind": kind_of(value) if read.dtype in FLOATS else str(read.dtype)})
        arrays += [read] if floats else []
    return described, arrays


def _takes_four(function: Any) -> bool:
    """Whether a function has a fourth parameter by position; False where it doesn't say what it takes."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    return sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters) >= 4


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
        with suppress(ValueError):
            sys.path.remove(str(folder))
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
