"""A measuring process: JSON requests in on stdin, a line each, and answers out on what was stdout.

Started with thread counts in its environment, before anything is imported that reads them. When stdin ends, whoever
asked is gone, and so is this process, whatever it is doing.

Processes that measure, seen from the one that asks them: started, asked, ended.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from bpcli.errors import BpError, Diagnostic, fail


def main() -> None:
    """Answer requests until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever asked gets it too, and decides
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    requests: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(requests,), daemon=True).start()

    from bpcli.bench.cells import Session

    session = Session()
    print(json.dumps({"ready": True}), file=out, flush=True)
    while True:
        print(json.dumps(_answer(session, json.loads(requests.get())), default=float), file=out, flush=True)


def _listen(requests: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        requests.put(line)
    os._exit(0)


def _answer(session: Any, request: dict[str, Any]) -> dict[str, Any]:
    """The answer, or what stood in its way."""
    try:
        answer: dict[str, Any] = session.answer(request)
    except BpError as error:
        return {"refused": [{"code": d.code, "what": d.what, "help": d.help} for d in error.diagnostics]}
    except MemoryError:
        advice = "smaller sizes, a batch of fewer samples or a method that holds less"
        return {"refused": [{"code": "memory", "what": "out of memory", "help": advice}]}
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        return {"refused": [{"code": "internal", "what": what, "help": "a bug in bp: please report it"}]}
    return answer


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
    """A process of its own, `python -m bpcli.bench.worker`. It ends when this one does, however that ends."""

    def __init__(self, threads: int) -> None:
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "bpcli.bench.worker"],  # -P: run nothing from the current folder
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


if __name__ == "__main__":
    main()
