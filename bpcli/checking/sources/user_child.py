"""User code, loaded and run: the runner that answers messages about files, and the process around it.

It imports NumPy and the standard library alone. A message has a `do`, a `file` (its absolute path) and a `name` in it:

- `load`: run the file as a module, once;
- `find`: report whether the module defines the name, and whether it is callable;
- `open`: make the object of that name, and describe the params of a black box;
- `kind`: report whether the object of that name is judged as a function;
- `function`: make black boxes of a function, found under its name and their labels, and describe it;
- `close`: leave the framework of a function as it was;
- `rule`, `rule_define`, `rule_start`, `rule_advance`: describe an online rule, ask for its definition, begin a run of
  it, and take a step (see `rule_child`);
- `call`: call a function, or the `part` of an object, with copies of the arrays in `groups`, and validate what it
  returns: a gradient for the `shapes` asked for, else a loss. A `seed` is that of the global random numbers, whose
  state is restored after the call.

An exception of user code is an answer too: `raised` in words, and the innermost `line` of the file in its traceback.

`main` runs in a process that is started in a session of its own, so that Ctrl-C is left to bp, with bp's stderr as its
stdout. It answers until it is told to end or bp is gone. `bpcli.check_gradient` uses a runner in its caller's process.
"""

from __future__ import annotations

import atexit
import ctypes
import faulthandler
import importlib.util
import inspect
import os
import random
import select
import signal
import sys
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, NoReturn

from numpy import array, dtype, float64, ndarray
from numpy import random as numpy_random

from bpcli.checking.sources.contractions import MIXED, ONES, SECOND, contractions, require
from bpcli.checking.sources.differentiable import Given, UnusableError
from bpcli.checking.sources.frameworks import function_in, is_function, open_function
from bpcli.checking.sources.user_protocol import UNHEARD, Array, Line, Message
from bpcli.checking.sources.validate_gradient import FLOATS, InvalidValueError, parse_gradient, same, scalar
from bpcli.errors import printable

# Bound here: user code may rebind what modules hold in its process.
_exit, _getpid = os._exit, os.getpid
_READY = {"ready": True}
CONSTANTS = "constants"
_SHOWN = 200
_Answer = tuple[Message, list[Array]]


@dataclass(frozen=True, eq=False)
class _File:
    """A loaded file, the `modules` it imported from its own folder, and its objects by name, `made` by calls."""

    path: Path
    module: ModuleType
    modules: dict[str, ModuleType] = field(default_factory=dict)
    made: dict[str, Any] = field(default_factory=dict)


class UserCodeRunner:
    """Load files and answer messages; exceptions of the types `passing` are not caught."""

    def __init__(self, passing: tuple[type[BaseException], ...] = ()) -> None:
        self._passing, self._here = passing, _getpid()
        self._files: dict[str, _File] = {}
        self._current: _File | None = None
        self._inside = ExitStack()

    def put(self, file: str, name: str, target: Any) -> None:
        """Use `target`, an object or a `Given` function, as `name` of the file, without running the file."""
        self._current = self._files[file] = _File(Path(file), ModuleType(name), made={name: target})
        setattr(self._current.module, name, target)

    def ask(self, message: Message, arrays: Sequence[Array] = ()) -> _Answer:
        """The answer to a message, and its arrays."""
        try:
            answer: _Answer = getattr(self, f"_{message['do']}")(message, arrays)
            return answer
        except self._passing:
            raise
        except BaseException as error:
            if _getpid() != self._here:  # a forked copy ends in its own way
                raise
            return failure(error, message["file"]), []

    def restart(self, file: str, name: str = "") -> bool:
        """Whether it started afresh: never, as it shares its process."""
        return False

    def _load(self, message: Message, _: Sequence[Array]) -> _Answer:
        path = message["file"]
        if path not in self._files:
            name = f"_bp_{Path(path).stem}_{zlib.crc32(path.encode()):08x}"
            spec = importlib.util.spec_from_file_location(name, path)
            assert spec is not None, path
            file = _File(Path(path), importlib.util.module_from_spec(spec))
            sys.modules[name] = file.module
            self._enter(file)
            # Not by the importer, whose cached bytecode may be stale after two changes within a second.
            exec(compile(file.path.read_bytes(), path, "exec", dont_inherit=True), vars(file.module))
            self._files[path] = file
        return {}, []

    def _find(self, message: Message, _: Sequence[Array]) -> _Answer:
        own, name = vars(self._files[message["file"]].module), message["name"]
        names = [n for n, v in own.items() if not n.startswith("_") and not isinstance(v, ModuleType)]
        return {"found": name in own, "names": names, "callable": callable(own.get(name))}, []

    def _open(self, message: Message, _: Sequence[Array]) -> _Answer:
        file = self._entered(message)
        target = self._made(file, message["name"])
        kind = type(target)
        held = getattr(target, "params", None)
        whole = kind.__module__ == file.module.__name__
        own = [part for part in ("loss", "grad") if whole and part in vars(kind)]
        has = [part for part in ("loss", "grad") if callable(getattr(target, part, None))]
        described, arrays = _params(held) if isinstance(held, Mapping) else (None, [])
        has += ["params"] if held is not None else []
        answer = {"has": has, "held": kind_of(held), "params": described, "kind": kind.__name__, "own": own}
        return answer, arrays

    def _kind(self, message: Message, _: Sequence[Array]) -> _Answer:
        file, name = self._entered(message), message["name"]
        target = vars(file.module)[name]
        return {"function": is_function(target) or is_function(self._made(file, name))}, []

    def _function(self, message: Message, _: Sequence[Array]) -> _Answer:
        file, name = self._entered(message), message["name"]
        held = file.made.get(name, vars(file.module)[name])
        try:
            given = held if isinstance(held, Given) else function_in(vars(file.module), name, held)
            function = open_function(given)
            made, weights = contractions(function)
            for order in message["also"]:
                require(function, order)
        except UnusableError as error:
            return {"refused": [error.what, error.remedy]}, []
        file.made[f"{name}:"] = function
        file.made.update({f"{name}:{label}": view for label, view in made.items()})
        params, second = made[ONES].params, made[SECOND].params
        answer: Message = {"params": list(params), "second": list(second), "fixed": function.fixed}
        answer |= {"labels": list(weights), "weights": list(weights.values()) if MIXED in made else []}
        answer |= {"kind": str(function.kind), "reverse": function.reverse, "sharp": function.sharp}
        return answer, [*params.values(), *second.values()]

    def _close(self, message: Message, _: Sequence[Array]) -> _Answer:
        self._files[message["file"]].made[f"{message['name']}:"].close()
        return {}, []

    def _call(self, message: Message, arrays: Sequence[Array]) -> _Answer:
        file, part = self._entered(message), message["part"]
        function = getattr(self._made(file, message["name"]), part) if part else vars(file.module)[message["name"]]
        rest = iter(arrays)
        groups = [{name: next(rest) for name in names} for names in message["groups"]]
        given: list[dict[str, Any]] = [{name: a.copy() for name, a in group.items()} for group in groups]
        numbers = message.get("numbers")
        if numbers is not None and _takes_four(function):
            given.append(dict(numbers))
        with _seeded(message.get("seed")):
            returned = function(*given)
        answer, found = _validated(returned, message)
        changed = [name for now, was in zip(given, groups, strict=False) for name in altered(now, was)]
        changed += [CONSTANTS] if given[len(groups) :] not in ([], [numbers]) else []
        return {**answer, "changed": changed}, found

    def _rule(self, message: Message, _: Sequence[Array]) -> _Answer:
        return self._run_of(message).describe(), []

    def _rule_define(self, message: Message, arrays: Sequence[Array]) -> _Answer:
        return self._run_of(message).define(arrays), []

    def _rule_start(self, message: Message, arrays: Sequence[Array]) -> _Answer:
        return self._run_of(message).start(arrays), []

    def _rule_advance(self, message: Message, arrays: Sequence[Array]) -> _Answer:
        answer: _Answer = self._run_of(message).advance(message, arrays)
        return answer

    def _run_of(self, message: Message) -> Any:
        """The run of a rule."""
        from bpcli.checking.sources.rule_child import RuleRun

        file, name = self._entered(message), message["name"]
        if f"{name}:rule" not in file.made:
            file.made[f"{name}:rule"] = RuleRun(self._made(file, name))
        return file.made[f"{name}:rule"]

    def _made(self, file: _File, name: str) -> Any:
        """The object of that name; a class is called once to make it, and a function for its contractions."""
        function, colon, _ = name.rpartition(":")
        if name not in file.made and colon:
            self._function({"file": str(file.path), "name": function, "also": []}, [])
        if name not in file.made:
            target = vars(file.module)[name]
            file.made[name] = target() if isinstance(target, type) else target
        return file.made[name]

    def _entered(self, message: Message) -> _File:
        file = self._files[message["file"]]
        self._enter(file)
        return file

    def _enter(self, file: _File) -> None:
        """Make the file's folder importable instead of that of the previous file."""
        if self._current is not file:
            self._inside.close()
            self._current = None
            self._inside.enter_context(_importable(file.path.parent, file.modules))
            self._current = file


@contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    """Seed the global generators of Python, NumPy and, where it is loaded, PyTorch; then restore their states."""
    if seed is None:
        yield
        return
    torch = sys.modules.get("torch")
    states = random.getstate(), numpy_random.get_state(), torch.get_rng_state() if torch else None
    try:
        random.seed(seed)
        numpy_random.seed(seed)
        if torch:
            torch.manual_seed(seed)
        yield
    finally:
        random.setstate(states[0])
        numpy_random.set_state(states[1])
        if torch:
            torch.set_rng_state(states[2])


def failure(error: BaseException, file: str) -> Message:
    """The answer for an exception."""
    answer: Message = {"raised": described(error), "line": _last_line(error.__traceback__, file)}
    if isinstance(error, SyntaxError) and error.filename == file:
        answer |= {"raised": printable(f"{type(error).__name__}: {error.msg}", _SHOWN)}
        answer |= {"line": error.lineno, "column": error.offset}
    return answer


def described(error: BaseException) -> str:
    """An exception in one line, even if its own `__str__` raises."""
    try:
        text = " ".join(str(error).split())
    except BaseException:
        text = ""
    name = "MemoryError" if isinstance(error, MemoryError) else type(error).__name__  # NumPy's own has a private name
    return printable(f"{name}: {text}" if text else name, _SHOWN)


def altered(now: Mapping[str, Any], was: Mapping[str, Any]) -> list[str]:
    """The keys of a dict of arrays whose values have changed, and the keys that were added."""
    changed = [name for name in was if not isinstance(now.get(name), ndarray) or not same(now[name], was[name])]
    return changed + [printable(str(name), 60) for name in now if name not in was]


def kind_of(value: object) -> str:
    """The name of a value's type."""
    return printable(type(value).__name__, 60)


def _validated(given: Any, message: Message) -> _Answer:
    """The answer for what a function returned."""
    if "shapes" not in message:
        try:
            return {"loss": scalar(given), "flaw": ""}, []
        except InvalidValueError as error:
            return {"loss": None, "flaw": str(error)}, []
    shapes = {name: tuple(shape) for name, shape in message["shapes"].items()}
    returned = parse_gradient(given, shapes, message["known"], [dtype(kind) for kind in message["dtypes"]])
    names = list(returned.arrays)
    answer = {"loss": returned.loss, "faults": dict(returned.faults), "names": names}
    return answer, [returned.arrays[name] for name in names]


def _params(held: Mapping[Any, Any]) -> tuple[list[Message], list[Array]]:
    """A description of each of the params, and the arrays of those that are floats."""
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
    """Whether a function has a fourth positional parameter; False where its signature is unknown."""
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
    """Put `folder` first on the path. Modules imported from it move to `modules`: another folder may have namesakes."""
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


def main(source: int, sink: int, shared: int, trace: int) -> None:
    """Answer messages from `source` on `sink`, with arrays in `shared`; the traceback of a crash goes to `trace`."""
    here = _getpid()
    for number in (source, sink, shared, trace):
        os.set_inheritable(number, False)
    faulthandler.enable(trace, all_threads=False)
    os.register_at_fork(after_in_child=lambda: _leave_to_parent((source, sink)))
    os._exit = _raising(here)
    threading.Thread(target=_watch, args=(source,), daemon=True).start()
    line, runner, fflush = Line(source, sink, shared), UserCodeRunner(), _c_flush()
    line.send(_READY)
    while True:
        try:
            message, arrays = line.receive()
        except (EOFError, OSError):
            _exit(UNHEARD)
        if "memory" in message:
            _limit(message["memory"])
        if message["do"] == "end":
            break
        answer, found = runner.ask(message, arrays)
        if _getpid() != here:  # a fork of user code that returned
            _exit(0)
        _flush(fflush)
        _send(line, answer, found, message["file"])
    with suppress(BaseException):
        atexit._run_exitfuncs()
    _flush(fflush)
    _exit(0)


def _send(line: Line, answer: Message, found: list[Array], file: str) -> None:
    """Send an answer, or that there is no memory for it."""
    try:
        line.send(answer, found)
    except MemoryError as error:
        line.send(failure(error, file))
    except OSError:
        _exit(UNHEARD)


def _watch(source: int) -> None:
    """End this process, and all that it started, when bp is gone: user code may never return to the main loop."""
    poll = select.poll()
    poll.register(source, 0)
    while not any(event & select.POLLHUP for _, event in poll.poll()):
        pass
    os.killpg(0, signal.SIGKILL)


def _leave_to_parent(numbers: tuple[int, ...]) -> None:
    """In a forked copy, turn off the crash handler and close the pipe to bp."""
    faulthandler.disable()
    for number in numbers:
        with suppress(OSError):
            os.close(number)


def _raising(here: int) -> Any:
    """An `os._exit` that raises as `sys.exit` does, so that the line is known; the real one in a forked copy."""

    def leave(status: int) -> NoReturn:
        if _getpid() != here:
            _exit(status)
        raise SystemExit(status)

    return leave


def _limit(memory: int) -> None:
    """Let allocations beyond `memory` bytes fail, where the system supports that, and disable core files.

    The limit is on data, not on address space, of which frameworks reserve much that they never touch.
    """
    try:
        import resource
    except ImportError:
        return
    for which, value in ((resource.RLIMIT_DATA, memory), (resource.RLIMIT_CORE, 0)):
        with suppress(ValueError, OSError):
            hard = resource.getrlimit(which)[1]
            resource.setrlimit(which, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _c_flush() -> Any:
    """The C library's `fflush`, or a function that does nothing."""
    try:
        return ctypes.CDLL(None).fflush
    except (OSError, TypeError, AttributeError):
        return lambda _: None


def _flush(fflush: Any) -> None:
    """Flush what user code printed, by Python and by the C library."""
    for stream in (sys.stdout, sys.__stdout__, sys.stderr):
        with suppress(Exception):
            stream.flush()  # type: ignore[union-attr] # user code may have put None there
    with suppress(Exception):
        fflush(None)
