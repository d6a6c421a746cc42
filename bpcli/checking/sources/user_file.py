"""A user's Python file and its functions: loaded and called in the process for user code, located in the source."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bpcli.checking.sources.user_process import EndedError
from bpcli.checking.sources.user_protocol import Array, Message
from bpcli.checking.sources.validate_gradient import ReturnedGradient, all_faulty, on_pattern
from bpcli.errors import BpError, Diagnostic, Place, fail, nearest, printable
from bpcli.problem.definition import Tensor

IN_FILE = re.compile(r"(?P<file>.+\.pyw?):(?P<name>[^:/\\]*)", re.DOTALL | re.IGNORECASE)
"""`FILE.py:NAME`."""
_A_FILE = "name a Python file that can be read"


class Host(Protocol):
    """Where user code runs."""

    def ask(self, message: Message, arrays: Sequence[Array] = ()) -> tuple[Message, list[Array]]:
        """The answer to a message of `user_child`, and its arrays, valid until the next. Raises EndedError."""

    def restart(self, file: str, name: str = "") -> bool:
        """Start afresh if other code than `name` of `file` ran there and may have spoiled it; returns whether."""


@dataclass(frozen=True, eq=False)
class UserFile:
    """`shown` is the path as the user wrote it; its code runs at the `host`."""

    path: Path
    shown: str
    source: bytes
    host: Host

    def ask(self, do: str, name: str = "", arrays: Sequence[Array] = (), **more: Any) -> tuple[Message, list[Array]]:
        """The host's answer to the message `do` about `name` in the file. Raises EndedError."""
        return self.host.ask({"do": do, "file": str(self.path), "name": name, **more}, arrays)

    def learn(self, do: str, name: str, **more: Any) -> tuple[Message, list[Array]]:
        """As `ask`. Raises BpError where user code raises, or ends its process."""
        line = self.line_of(name)
        try:
            answer, arrays = self.ask(do, name, **more)
            fault = self.raised(answer, line) if "raised" in answer else ""
        except EndedError as error:
            fault = self.ended(error, line)
        if fault:
            shown = f"{printable(self.shown)}:{printable(name)}"
            fail("user-code", f"{shown} {fault}", help="run it with python first")
        return answer, arrays

    def seek(self, name: str, place: Place | None = None) -> Message:
        """Look up a name in the file. Raises BpError at `place`, with the nearest name, if it is undefined."""
        found, _ = self.learn("find", name)
        if not found["found"]:
            what = f'{printable(self.shown)} has no "{printable(name)}"'
            advice = nearest(name, found["names"], "define it at the top level of the file")
            fail("unknown-name", what, place, help=advice)
        return found

    def line_of(self, name: str) -> int:
        """The line of `name`, defined at the top level or in the class or function before the dot; 1 if unknown."""
        found = 1
        body: list[ast.stmt] = ast.parse(self.source).body
        for part in name.split("."):
            places = [node for node in body if part in _bound(node)]
            if not places:
                break
            found, body = places[-1].lineno, list(getattr(places[-1], "body", []))
        return found

    def at(self, line: int) -> str:
        """`file.py:3`."""
        return f"{self.shown}:{line}"

    def place(self, line: int, column: int = 1) -> Place:
        """A place in the file, with the text of its line."""
        lines = self.source.decode("utf-8", errors="replace").splitlines()
        return Place(self.shown, line, column, lines[line - 1] if line <= len(lines) else "")

    def raised(self, answer: Message, otherwise: int) -> str:
        """The exception, and the innermost line of this file in its traceback, or `otherwise`."""
        return f"raises {answer['raised']} ({self.at(answer['line'] or otherwise)})"

    def ended(self, error: EndedError, otherwise: int) -> str:
        """How the process ended, and the line of this file that ran then, or `otherwise`."""
        return f"{error.how} ({self.at(error.line(str(self.path)) or otherwise)})"


@dataclass(frozen=True)
class CallResult:
    """The result of a call, and the arguments that it `changed`; `ended` if it crashed or ran out of time."""

    returned: ReturnedGradient
    changed: tuple[str, ...] = ()
    ended: bool = False


@dataclass(frozen=True, eq=False)
class Function:
    """A function `name` of a file, or the `part` of an object of that name, written at `line`."""

    file: UserFile
    name: str
    line: int
    part: str = ""

    @property
    def where(self) -> str:
        """The file and the line in parentheses, to end a sentence with."""
        return f" ({self.file.at(self.line)})"

    def gradient(
        self,
        groups: Sequence[Mapping[str, Array]],
        tensors: Sequence[Tensor],
        dtypes: Sequence[np.dtype[Any]],
        numbers: Mapping[str, float] | None = None,
    ) -> CallResult:
        """Call it for a gradient, with copies of dicts of arrays, and with `numbers` if it takes a fourth argument."""
        wanted = {"shapes": {t.name: t.shape for t in tensors}, "dtypes": [dtype.str for dtype in dtypes]}
        wanted["known"] = [name for group in groups for name in group]
        try:
            answer, found = self._call(groups, numbers=numbers, **wanted)
        except EndedError as error:
            return CallResult(all_faulty(wanted["shapes"], self.file.ended(error, self.line)), ended=True)
        if "raised" in answer:
            return CallResult(all_faulty(wanted["shapes"], self.file.raised(answer, self.line)))
        by_name = {tensor.name: tensor for tensor in tensors}
        arrays = {n: on_pattern(np.array(a), by_name[n]) for n, a in zip(answer["names"], found, strict=True)}
        returned = ReturnedGradient(answer["loss"], arrays, answer["faults"]).located(self.where)
        return CallResult(returned, tuple(answer["changed"]))

    def loss(self, params: Mapping[str, Array], seed: int | None = None) -> tuple[float | None, str]:
        """Call it for a loss, with copies of the params: the number, or None and the reason. Raises EndedError.

        A `seed` is that of global random numbers during the call.
        """
        answer, _ = self._call([params], seed=seed)
        if "raised" in answer:
            return None, self.file.raised(answer, self.line)
        if answer["flaw"]:
            return None, f"{answer['flaw']}{self.where}"
        if answer["changed"]:
            return None, f"changes its arguments: {', '.join(answer['changed'])}{self.where}"
        return float(answer["loss"]), ""

    def _call(self, groups: Sequence[Mapping[str, Array]], **more: Any) -> tuple[Message, list[Array]]:
        arrays = [array for group in groups for array in group.values()]
        names = [list(group) for group in groups]
        return self.file.ask("call", self.name, arrays, part=self.part, groups=names, **more)


def load(path: Path, shown: str, host: Host, place: Place | None = None) -> UserFile:
    """Run the file at `path` as a module. Raises BpError at `place` if it is missing, or at its line if it fails."""
    source = read_source(path, shown, place)
    if importlib.util.spec_from_file_location("user", path) is None:
        fail("bad-file", f'"{printable(shown)}" is not a Python file', place, help="name a file that ends in .py")
    file = UserFile(path, shown, source, host)
    if (refusal := _refusal(file)) is not None and host.restart(str(path)):
        refusal = _refusal(file)
    if refusal is not None:
        raise BpError([refusal])
    return file


def function_of(file: UserFile, name: str, place: Place | None = None) -> Function:
    """The function `name` of a file. Raises BpError at `place` where there is none."""
    if not file.seek(name, place)["callable"]:
        what = f'"{printable(name)}" of {printable(file.shown)} is not a function'
        fail("usage", what, place, help="name a function")
    return Function(file, name, file.line_of(name))


def file_of(function: Callable[..., Any], host: Host) -> UserFile:
    """The source file of a function object, empty if there is none."""
    try:
        path = Path(inspect.getsourcefile(inspect.unwrap(function)) or "")
        source = path.read_bytes()
    except (TypeError, ValueError, OSError):
        path, source = Path.cwd() / "function", b""
    shown = path.relative_to(here) if path.is_relative_to(here := Path(os.getcwd())) else path
    return UserFile(path, str(shown), source, host)


def read_source(path: Path, shown: str, place: Place | None = None) -> bytes:
    """The bytes of a Python file. Raises BpError at `place` if it cannot be read."""
    try:
        if path.is_dir():
            fail("unreadable-file", f'"{printable(shown)}" is a folder, not a Python file', place, help=_A_FILE)
        if not path.exists():
            near = [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
            advice = nearest(path.name, near, "there is no Python file in that folder")
            fail("no-such-file", f'no file "{printable(shown)}"', place, help=advice)
        if not path.is_file():
            fail("unreadable-file", f'"{printable(shown)}" is not a regular file', place, help=_A_FILE)
        return path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "this can't be the name of a file"
        fail("unreadable-file", f'cannot read "{printable(shown)}": {reason}', place, help=_A_FILE)


def _refusal(file: UserFile) -> Diagnostic | None:
    """Load the file; returns why it cannot be loaded, or None."""
    try:
        answer, _ = file.ask("load")
    except EndedError as error:
        answer = {"raised": f"it {error.how}", "line": error.line(str(file.path))}
    if "raised" not in answer:
        return None
    place = file.place(answer["line"] or 1, max(1, answer.get("column") or 1))
    what = f"{printable(file.shown)} cannot be loaded: {answer['raised']}"
    return Diagnostic("user-code", what, place, help="run it with python first")


def _bound(node: ast.stmt) -> set[str]:
    """The names that a statement binds."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {alias.asname or alias.name for alias in node.names}
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
