"""A process that runs cells for another: it answers requests, a JSON object a line, until its input ends.

`python -P -m bpcli.bench.pair_worker` first says who it is. Then `describe` judges a cell's gradient and gives its
row, `load` makes it the one that runs, `calibrate` tells how many calls make a block, and `run` how long calls take.
What goes wrong is answered as `{"error": …}`.

The other end of `pair_child`: a Python environment, and processes of it that run cells.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn, TextIO

from bpcli.bench.pairing import Cell, Lanes
from bpcli.errors import UNADVISED, fail, printable

PROTOCOL = 1


def _idle() -> None:
    """What runs before anything is loaded."""


@dataclass
class Server:
    """The cell that is loaded, as a function without arguments."""

    work: Any = _idle

    def describe(self, cell: Mapping[str, Any]) -> dict[str, Any]:
        """The cell's row: the check of its gradient, and what is deterministic."""
        from bpcli.bench.cells import Order, Session
        from bpcli.bench.sweep import OURS
        from bpcli.bench.target import digest

        target = _target(cell)
        sha256 = digest(target.open(cell["settings"]), target.path)
        order = Order(target, sha256, cell["settings"], cell["method"], OURS, int(cell["threads"]))
        report = Session().answer({"do": "prepare", "order": order.plain()})
        names = {"spec": cell["name"], "method": cell["method"], "backend": OURS}
        return {"row": {**names, "grid": cell["grid"], "settings": cell["settings"], **report}}

    def load(self, cell: Mapping[str, Any]) -> dict[str, Any]:
        """Make the cell, or a kernel with none of bp's code, the one that runs; one call warms it up."""
        if "control" in cell:
            self.work = _control(str(cell["control"]))
        else:
            problem, call = _open(cell)
            self.work = lambda: call.gradient(problem)
        self.work()
        gc.collect()
        return {}

    def calibrate(self) -> dict[str, Any]:
        """How many calls make a block."""
        from bpcli.bench import clock

        return {"calls": clock.calibrate(self.work)}

    def run(self, calls: int) -> dict[str, Any]:
        """Seconds that the calls take, after one that is not timed."""
        from bpcli.bench import clock

        self.work()
        return {"seconds": clock.block(self.work, calls)}


def _open(cell: Mapping[str, Any]) -> Any:
    """The problem of a cell and the method's call."""
    from bpcli.bench import precheck as checks
    from bpcli.problem.draw import draw

    return draw(_target(cell).open(cell["settings"])), checks.parse_measurable(cell["method"])


def _target(cell: Mapping[str, Any]) -> Any:
    from bpcli.bench.target import Target
    from bpcli.problem.limits import Limits

    limits = Limits(**cell["limits"])
    return Target(cell["path"], cell["name"], cell["overrides"], tuple(cell["wrt"]), limits)


def _control(name: str) -> Any:
    """A product of matrices or a copy, by NumPy alone."""
    import numpy as np

    if name == "gemm":
        a = np.random.default_rng(0).standard_normal((192, 192))
        out = np.empty_like(a)
        return lambda: np.dot(a, a, out)
    source = np.zeros(1 << 22, dtype=np.uint8)
    target = np.empty_like(source)
    return lambda: np.copyto(target, source)


def _hello() -> dict[str, Any]:
    import bpcli
    from bpcli.bench.machine import describe

    return {"protocol": PROTOCOL, "package": str(Path(bpcli.__file__).parent), **dataclasses.asdict(describe())}


def _answer(server: Server, line: str) -> dict[str, Any]:
    """The answer to one request; whatever goes wrong is part of it."""
    from bpcli.errors import BpError

    known: dict[str, Callable[..., dict[str, Any]]] = {
        "describe": server.describe,
        "load": server.load,
        "calibrate": server.calibrate,
        "run": server.run,
    }
    try:
        request = json.loads(line)
        return known[request.pop("do")](**request)
    except BpError as error:
        return {"error": error.diagnostics[0].what, "help": error.diagnostics[0].help}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def serve(requests: TextIO, answers: TextIO) -> None:
    """Answer until the requests end."""
    gc.disable()  # `load` collects; the clock runs in between
    server = Server()
    answers.write(json.dumps(_hello()) + "\n")
    answers.flush()
    for line in requests:
        answers.write(json.dumps(_answer(server, line)) + "\n")
        answers.flush()


def main() -> None:
    """Serve on stdin and stdout; what anything else prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    serve(sys.stdin, answers)


_CHILD = """
import runpy
try:
    import bpcli.bench
except ImportError:  # a bp from before there was that room
    runpy.run_module("bpcli.benching.pair_child", run_name="__main__")
else:
    runpy.run_module("bpcli.bench.pair_worker", run_name="__main__")
"""
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
                [where.python, "-P", "-c", _CHILD],
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


if __name__ == "__main__":
    main()
