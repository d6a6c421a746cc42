"""The other end of `pair_child`: a Python environment, and processes of it that run cells."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

from bpcli.benching.interleave import Cell, Lanes
from bpcli.benching.pair_child import PROTOCOL
from bpcli.errors import UNADVISED, fail, printable

_CHILD = "bpcli.benching.pair_child"
_PATIENCE_S = 5.0
_NAMES = "name an interpreter (old/bin/python), a virtual environment, or a folder that holds bpcli/"
# BLAS below the kernels runs on one thread, as in any bp.
_ONE_THREAD = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")


@dataclass(frozen=True)
class Environment:
    """An interpreter, and the folder of a checkout to import bp from ("" for what is installed).

    `option` is what the command line calls it ("--base"), `given` what it was given.
    """

    option: str
    given: str
    python: str
    checkout: str = ""


def environment(option: str, given: str) -> Environment:
    """What `given` names: a folder with a checkout, a virtual environment, or an interpreter. Raises BpError."""
    path = Path(given)
    if (path / "bpcli" / "__init__.py").is_file():
        return Environment(option, given, sys.executable, os.path.abspath(path))
    candidates = [path / "bin" / "python", path / "Scripts" / "python.exe"] if path.is_dir() else [path]
    found = next((c for c in candidates if c.is_file() and os.access(c, os.X_OK)), None)
    python = os.path.abspath(found) if found else (None if path.is_dir() else shutil.which(given))
    if python is None:
        fail(
            "no-environment",
            f'{option} "{printable(given)}" is neither a Python interpreter nor a folder with a checkout of bp',
            help=_NAMES,
        )
    return Environment(option, given, python)


class Child:
    """One process of an environment, a Lane. `hello` is what it said of itself."""

    def __init__(self, where: Environment, threads: int) -> None:
        self.where = where
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 # closed by `close`
        try:
            self._process = subprocess.Popen(
                [where.python, "-P", "-m", _CHILD],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
                env=_variables(where, threads), text=True, encoding="utf-8",
            )  # fmt: skip
        except OSError as error:
            self._errors.close()
            fail("no-environment", f"{where.option} {printable(where.given)}: {error.strerror}", help=_NAMES)
        self.hello: Mapping[str, Any] = {}

    def greet(self) -> None:
        """Wait until the process is there. Raises BpError where it is another bp, or none."""
        self.hello = self._read()
        if self.hello.get("protocol") != PROTOCOL:
            self._refuse("it speaks another version of the protocol", "install a bp as recent as this one there")
        package, checkout = Path(str(self.hello["package"])), self.where.checkout
        if checkout and package.resolve().parent != Path(checkout).resolve():
            self._refuse(f"its interpreter imports bp from {package}", "name an interpreter of its own")

    def describe(self, cell: Cell) -> Mapping[str, Any]:
        """The row of a cell, without time."""
        row = self._ask({"do": "describe", "cell": cell})["row"]
        assert isinstance(row, dict)
        return row

    def load(self, cell: Cell) -> None:
        """Make a cell the one that runs."""
        self._ask({"do": "load", "cell": cell})

    def calibrate(self) -> int:
        """How many calls make a block."""
        return int(self._ask({"do": "calibrate"})["calls"])

    def run(self, calls: int) -> float:
        """Seconds that the calls take."""
        return float(self._ask({"do": "run", "calls": calls})["seconds"])

    def close(self) -> None:
        """End the process, by force where it does not go."""
        with contextlib.suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        try:
            self._process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._errors.close()

    def _ask(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except OSError:
            self._refuse_dead()
        answer = self._read()
        if "error" in answer:
            self._refuse(str(answer["error"]), str(answer.get("help") or UNADVISED))
        return answer

    def _read(self) -> Mapping[str, Any]:
        assert self._process.stdout is not None
        try:
            answer = json.loads(self._process.stdout.readline())
        except ValueError:
            self._refuse_dead()
        if not isinstance(answer, dict):
            self._refuse_dead()
        return answer

    def _refuse_dead(self) -> NoReturn:
        """The process is gone or talks nonsense: its last words say why."""
        self._process.kill()
        self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", errors="replace").strip().splitlines()
        last = lines[-1] if lines else f"exit code {self._process.returncode}"
        absent = _CHILD in last or "No module named" in last
        what = f"no bp there that can be timed ({last})" if absent else f"its process ended: {last}"
        self._refuse(what, "it needs a bp that has `bp ab` itself" if absent else "run `bp doctor` there")

    def _refuse(self, what: str, advice: str) -> NoReturn:
        fail("environment", f"{self.where.option} {printable(self.where.given)}: {what}", help=advice)


@contextlib.contextmanager
def processes(environments: Sequence[Environment], threads: int) -> Iterator[tuple[Child, ...]]:
    """A fresh process of each environment, started side by side; all are ended, whatever happens."""
    with contextlib.ExitStack() as stack:
        children = []
        for where in environments:
            child = Child(where, threads)
            stack.callback(child.close)
            children.append(child)
        for child in children:
            child.greet()
        yield tuple(children)


@contextlib.contextmanager
def lanes(base: Environment, head: Environment, threads: int) -> Iterator[Lanes]:
    """The three lanes of a round: base, head, and a twin of the base."""
    with processes((base, head, base), threads) as (first, second, twin):
        yield first, second, twin


def strangers(base: Mapping[str, Any], head: Mapping[str, Any]) -> list[str]:
    """How the environments differ beside bp, from what their processes say: that may be what is measured."""
    pairs = [("python", base.get("python"), head.get("python"))]
    old, new = base.get("versions", {}), head.get("versions", {})
    pairs += [(p, old.get(p), new.get(p)) for p in sorted({*old, *new} - {"bp"})]
    return [f"{name} {a or 'absent'} and {b or 'absent'}" for name, a, b in pairs if a != b]


def _variables(where: Environment, threads: int) -> dict[str, str]:
    """The child's environment: bp from where it is meant to come from, thread counts set before any import."""
    variables = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    variables |= dict.fromkeys(_ONE_THREAD, "1") | {"NUMBA_NUM_THREADS": str(threads)}
    # A hash of text that changes from process to process changes what a process does with its memory.
    variables |= {"PYTHONHASHSEED": "0", "PYTHONUTF8": "1"}
    return variables | ({"PYTHONPATH": where.checkout} if where.checkout else {})
