"""Worker processes, seen from the process that asks them: this bp's own, or those of another environment."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from bpcli.bench.measurement import PROTOCOL
from bpcli.errors import UNADVISED, BpError, Diagnostic, fail, printable

_PATIENCE_S = 5.0
_EXCERPT = 300
_NAMES = "name an interpreter (old/bin/python), a virtual environment, or a folder that holds bpcli/"
# The name of the worker in all versions of bp that have a room for benches, and in those before.
_START_OTHER = """
import runpy
try:
    import bpcli.bench
except ImportError:
    runpy.run_module("bpcli.benching.pair_child", run_name="__main__")
else:
    runpy.run_module("bpcli.bench.pair_worker", run_name="__main__")
"""


@dataclass(frozen=True)
class Environment:
    """An interpreter, and the checkout to import bp from, "" for the installed one.

    `option` is the command line option that names it ("--base"), `given` the value of that option.
    """

    option: str
    given: str
    python: str
    checkout: str = ""


def environment(option: str, given: str) -> Environment:
    """The environment that `given` names: a checkout, a virtual environment or an interpreter. Raises BpError."""
    path = Path(given)
    if (path / "bpcli" / "__init__.py").is_file():
        return Environment(option, given, sys.executable, os.path.abspath(path))
    candidates = [path / "bin" / "python", path / "Scripts" / "python.exe"] if path.is_dir() else [path]
    found = next((c for c in candidates if c.is_file() and os.access(c, os.X_OK)), None)
    python = os.path.abspath(found) if found else (None if path.is_dir() else shutil.which(given))
    if python is None:
        what = f'{option} "{printable(given)}" is neither a Python interpreter nor a folder with a checkout of bp'
        fail("no-environment", what, help=_NAMES)
    return Environment(option, given, python)


class Worker:
    """A worker process with kernels on `threads` threads, of this bp or of another environment.

    It starts without waiting, so that several import their libraries at the same time, and ends with this process.
    """

    def __init__(self, threads: int, where: Environment | None = None) -> None:
        """Start the process. Raises BpError where its interpreter cannot be run."""
        self._where = where
        self._hello: Mapping[str, Any] | None = None
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `close`)
        # -P: import nothing from the current folder.
        if where is None:
            command, variables = [sys.executable, "-P", "-m", "bpcli.bench.worker"], own_variables(threads)
        else:
            command, variables = [where.python, "-P", "-c", _START_OTHER], variables_of(where, threads)
        try:
            self._process = subprocess.Popen(
                command, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
                text=True, encoding="utf-8", start_new_session=True,  # Ctrl-C is for this process to handle
            )  # fmt: skip
        except OSError as error:
            self._errors.close()
            assert where is not None
            fail("no-environment", f"{where.option} {printable(where.given)}: {error.strerror}", help=_NAMES)

    @property
    def hello(self) -> Mapping[str, Any]:
        """The worker's description of itself. Raises BpError where it runs another bp than it should, or none."""
        if self._hello is None:
            self._hello = self._read()
            if self._hello.get("protocol") != PROTOCOL:
                self._refuse("it speaks another version of the protocol", "install an equally recent bp there")
            package, checkout = Path(str(self._hello["package"])), self._where.checkout if self._where else ""
            if checkout and package.resolve().parent != Path(checkout).resolve():
                self._refuse(f"its interpreter imports bp from {package}", "name an interpreter of its own")
        return self._hello

    def ask(self, do: str, **fields: Any) -> dict[str, Any]:
        """The answer to a request of `worker`. Raises BpError where it is refused or the process has ended."""
        assert self.hello and self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **fields}) + "\n")
            self._process.stdin.flush()
        except OSError:
            self._lost()
        answer = self._read()
        if "refused" in answer and self._where is None:
            raise BpError([Diagnostic(d["code"], d["what"], help=d["help"]) for d in answer["refused"]])
        if "error" in answer:
            self._refuse(str(answer["error"]), str(answer.get("help") or UNADVISED))
        return answer

    def close(self) -> None:
        """End the process, by force where it does not end by itself."""
        self._end()
        self._errors.close()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        try:
            answer = json.loads(self._process.stdout.readline())
        except ValueError:
            self._lost()
        if not isinstance(answer, dict):
            self._lost()
        return answer

    def _end(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()
        try:
            self._process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _lost(self) -> NoReturn:
        """Raise BpError with the last output of a process that has ended or does not speak the protocol."""
        self._end()
        self._errors.seek(0)
        said = self._errors.read().decode("utf-8", errors="replace").strip()
        code = self._process.returncode
        if self._where is None:
            how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
            advice = "run `bp doctor`; if it finds nothing, please report it"
            if code == -signal.SIGKILL:
                advice = "SIGKILL is often the system, out of memory: try smaller sizes"
            after = f", after: {said[-_EXCERPT:]}" if said else ""
            fail("process-lost", f"the measuring process ended {how}{after}", help=advice)
        last = said.splitlines()[-1] if said else f"exit code {code}"
        if "No module named" in last:
            self._refuse(f"no bp there that can be timed ({last})", "it needs a bp that has `bp ab` itself")
        self._refuse(f"its process ended: {last}", "run `bp doctor` there")

    def _refuse(self, what: str, advice: str) -> NoReturn:
        name = f"{self._where.option} {printable(self._where.given)}: " if self._where else ""
        fail("environment", f"{name}{what}", help=advice)


@contextlib.contextmanager
def workers(environments: Sequence[Environment], threads: int) -> Iterator[tuple[Worker, ...]]:
    """A fresh worker of each environment, started side by side; all are ended in any case."""
    with contextlib.ExitStack() as stack:
        started = []
        for where in environments:
            started.append(Worker(threads, where))
            stack.callback(started[-1].close)
        for worker in started:
            assert worker.hello
        yield tuple(started)


def own_variables(threads: int) -> dict[str, str]:
    """The environment variables of this bp's workers: kernels on `threads` threads, each with a BLAS of one."""
    package_home = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (package_home, os.environ.get("PYTHONPATH"))))
    single = dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1")
    return {**os.environ, **single, "NUMBA_NUM_THREADS": str(threads), "PYTHONPATH": path}


def variables_of(where: Environment, threads: int) -> dict[str, str]:
    """The environment variables of another environment's workers, which must not import this bp."""
    variables = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    single = dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"), "1")
    # Hashes of text that differ between processes change how these use their memory.
    steady = {"PYTHONHASHSEED": "0", "PYTHONUTF8": "1"}
    variables |= single | steady | {"NUMBA_NUM_THREADS": str(threads)}
    return variables | ({"PYTHONPATH": where.checkout} if where.checkout else {})
