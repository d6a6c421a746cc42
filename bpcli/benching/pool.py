"""Processes that measure, seen from the one that asks them: started, asked, ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from bpcli.errors import BpError, Diagnostic, fail

_PATIENCE = 2.0
_EXCERPT = 300


class Process(Protocol):
    """One that answers requests."""

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The answer. Raises BpError where it is refused, or the process is gone."""

    def close(self) -> None:
        """End it."""


def start(threads: int) -> Process:
    """A fresh process whose kernels use that many threads; it imports what it needs while others do theirs."""
    return Child(threads)


class Child:
    """A process of its own, `python -m bpcli.benching.child`. It ends when this one does, however that ends."""

    def __init__(self, threads: int) -> None:
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "bpcli.benching.child"],  # -P: run nothing from the current folder
            env=environment(threads),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C is for this process to answer
        )
        self._ready = False

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a request."""
        assert self._process.stdin is not None
        if not self._ready:
            self._read()
            self._ready = True
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self._gone()
        answer = self._read()
        if "refused" in answer:
            raise BpError([Diagnostic(d["code"], d["what"], help=d["help"]) for d in answer["refused"]])
        return answer

    def close(self) -> None:
        """End the process, at once where it does not end by itself."""
        for pipe in (self._process.stdin, self._process.stdout):
            try:
                if pipe is not None:
                    pipe.close()
            except OSError:
                continue
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._complaints.close()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.endswith("\n"):
            self._gone()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _gone(self) -> None:
        code = self._process.wait()
        how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        self._complaints.seek(0)
        said = self._complaints.read().decode("utf-8", errors="replace").strip()[-_EXCERPT:]
        fail(
            "process-lost",
            f"the process that measured ended {how}{f', after: {said}' if said else ''}",
            help="SIGKILL is often the system, out of memory: try smaller sizes"
            if code == -9
            else "run `bp doctor`; if it finds nothing, please report it",
        )


def environment(threads: int) -> dict[str, str]:
    """The environment of a process whose kernels use `threads` threads, each with a BLAS of one."""
    package_home = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (package_home, os.environ.get("PYTHONPATH"))))
    single = dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1")
    return {**os.environ, **single, "NUMBA_NUM_THREADS": str(threads), "PYTHONPATH": path}
