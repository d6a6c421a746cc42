"""A process that measures cells for `bp bench` and `bp ab`.

It first describes itself, then answers requests until its input ends, one JSON object a line; `do` names the request:

| `do` | fields | answer |
|---|---|---|
| `describe` | `cell`, `backend`, `ours` | `row`: the check of the gradient and every figure but the steady time |
| `load` | `cell` | nothing: the cell, or a control kernel, is opened and warmed up |
| `calibrate` | | `calls` that make a block |
| `run` | `calls`, `blocks`, `warm` | `samples`: seconds a call of each block; `seconds` of all blocks |
| `floor` | | `bytes` of resident growth of a call that does nothing |
| `control` | | seconds of the control kernels |
| `rates` | `dtype`, `threads` | `gemm`, `copy`: rates of the machine |

A failure is answered by `error` and `help`, with every diagnostic in `refused`. `describe` leaves its cell loaded.
Versions of bp measure each other, so requests and answers may gain fields but not lose any without a new `PROTOCOL`.
Thread counts stand in the environment, since libraries read them when they are imported.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np

import bpcli
from bpcli import backends
from bpcli.bench import precheck, profiling
from bpcli.bench.measurement import OURS, PROTOCOL, SLOW_SECONDS, Cell
from bpcli.bench.user_kernel import UserKernel, is_user_kernel
from bpcli.checking.check_as_method import parse_measurable
from bpcli.errors import BpError, fail
from bpcli.methods import MethodCall
from bpcli.methods.base import KINDS, Gradient
from bpcli.problem.definition import Problem, Setup
from bpcli.problem.draw import draw
from bpcli.problem.setup import digest
from bpcli.runtime import kernel_loader, machine
from bpcli.runtime.evaluation import check_finite

Answer = dict[str, Any]


class Session:
    """The state of a worker: the function that is loaded."""

    def __init__(self) -> None:
        self._work: Callable[[], object] = lambda: None

    def answer(self, request: Mapping[str, Any]) -> Answer:
        """Answer a request, or say why it failed."""
        known: dict[str, Callable[..., Answer]] = {
            "describe": self.describe,
            "load": self.load,
            "calibrate": lambda: {"calls": profiling.calibrate(self._work)},
            "run": self.run,
            "floor": lambda: {"bytes": profiling.peak_growth(lambda: None)},
            "control": profiling.sample_controls,
            "rates": lambda **of: dataclasses.asdict(profiling.measure_rates(**of)),
        }
        try:
            fields = dict(request)
            return known[fields.pop("do")](**fields)
        except BpError as error:
            refused = [{"code": d.code, "what": d.what, "help": d.help} for d in error.diagnostics]
        except MemoryError:
            advice = "use smaller sizes, a smaller batch or a method that needs less memory"
            refused = [{"code": "memory", "what": "out of memory", "help": advice}]
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            refused = [{"code": "internal", "what": what, "help": "a bug in bp: please report it"}]
        return {"error": refused[0]["what"], "help": refused[0]["help"], "refused": refused}

    def describe(self, cell: Mapping[str, Any], backend: str = OURS, ours: str = "") -> Answer:
        """Check and measure a cell's gradient by a backend; one that is wrong gets no further figures.

        `ours` is the verdict on bp's own gradient of the cell, where the backend is a peer.
        """
        asked = Cell.from_json(cell)
        problem, call = _open(asked)
        setup = problem.setup
        run, threads = _gradient_function(problem, call, backend, asked.threads)
        gradient, first, compiling = _first_calls(run, backend)
        peak = profiling.peak_growth(run)  # while the heap is fresh: memory freed by the check would be reused
        true = precheck.true_gradient(problem, asked.spec.limits)
        judged = (problem, call, gradient, true)
        verdict = precheck.vouch(*judged) if backend == OURS else precheck.judge_peer(*judged, ours)
        judgement = dataclasses.asdict(verdict)
        # Further draws are those of bp: the first one has just been shown to be bp's.
        draws = asked.draws
        mean, variance = precheck.drawn(problem, call, gradient, draws if verdict.verdict != "wrong" else 1)
        bias, cosine, variance = precheck.spread(mean, variance, precheck.flat(setup, true) if true else None)
        row: Answer = {
            "spec": asked.spec.name, "method": asked.method, "backend": backend,
            "grid": asked.grid, "settings": asked.settings,
            "threads": threads, "first_s": first, "compile_s": compiling, "check": judgement,
            **_predicted(setup, call, backend), "bias": bias, "cosine": cosine, "variance": variance,
            "draws": None if variance is None else draws, "kind": KINDS[type(call.definition(setup))],
            "kernel_error": judgement.pop("kernel_error"),
        }  # fmt: skip
        if verdict.verdict == "wrong":
            return {"row": row}
        self._work, calls, each = run, 1, first
        if first < SLOW_SECONDS:
            calls = profiling.calibrate(run)
            (each,) = profiling.take(run, calls, 1)
        # Measured late, as the check has replaced the plans that are kept from call to call.
        allocated = profiling.allocated_bytes(run) if backend == OURS else None
        row |= {"peak_growth": peak, "allocated_bytes": allocated}
        return {"row": row | {"calls_per_block": calls, "block_s": each * calls}}

    def load(self, cell: Mapping[str, Any]) -> Answer:
        """Open a cell, or the control kernel that `cell` names, and call it once."""
        if "control" in cell:
            self._work = _control_kernel(cell["control"])
        else:
            asked = Cell.from_json(cell)
            self._work, _ = _gradient_function(*_open(asked), OURS, asked.threads)
        self._work()
        gc.collect()
        return {}

    def run(self, calls: int, blocks: int = 1, warm: bool = True) -> Answer:
        """Time blocks of calls, after an untimed call; blocks of one call have one only where `warm`."""
        if warm and calls == 1:
            self._work()
        before, _ = kernel_loader.compiled()
        samples = profiling.take(self._work, calls, blocks)
        after, _ = kernel_loader.compiled()
        if after != before:
            fail("unsteady", f"{after - before} kernels were compiled during timing", help="please report it")
        return {"samples": samples, "seconds": calls * sum(samples)}


def _control_kernel(name: str) -> Callable[[], object]:
    """A matrix product or a copy, allocated in the same way by every version of bp, since two are compared."""
    if name == "gemm":
        a = np.random.default_rng(0).standard_normal((192, 192))
        out = np.empty_like(a)
        return lambda: np.dot(a, a, out)
    source = np.zeros(1 << 22, dtype=np.uint8)
    target = np.empty_like(source)
    return lambda: np.copyto(target, source)


def _open(cell: Cell) -> tuple[Problem, MethodCall]:
    """The cell's arrays and its method. Raises BpError where the spec has changed since the run was planned."""
    setup = cell.spec.open(cell.settings)
    if cell.sha256 and digest(setup, cell.spec.path) != cell.sha256:
        what = f"{cell.spec.path}, or a file that it names, changed while it was measured"
        fail("changed", what, help="run it again")
    problem = draw(setup)
    check_finite(problem)
    return problem, parse_measurable(cell.method)


def _gradient_function(
    problem: Problem, call: MethodCall, backend: str, threads: int
) -> tuple[Callable[[], Gradient], int | None]:
    """The function to measure, and the threads that its backend is held to, None where it cannot be."""
    if backend == OURS:
        kernel_loader.set_threads(threads)  # loads the parallel loop now rather than while the clock runs
        return lambda: call.gradient(problem), threads
    peer = UserKernel(backend) if is_user_kernel(backend) else backends.get(backend)
    held = peer.prepare(threads)
    return peer.gradient_function(problem, call.text), held


def _first_calls(run: Callable[[], Gradient], backend: str) -> tuple[Gradient, float, float]:
    """A gradient, the seconds of the first call, and the seconds of compiling and loading kernels.

    bp reports its own compile time. A peer's second call counts as its first, and the excess of the very first one as
    compile time.
    """
    _, before = kernel_loader.compiled()
    start = time.perf_counter()
    gradient = run()
    first = time.perf_counter() - start
    if backend == OURS:
        _, compiled = kernel_loader.compiled()
        return gradient, first - (compiled - before), compiled
    second = profiling.block(run, 1)
    return gradient, second, max(0.0, first - second)


def _predicted(setup: Setup, call: MethodCall, backend: str) -> Answer:
    """The sizes of the problem, and the predicted cost, which is unknown for a peer."""
    cost = call.cost(setup) if backend == OURS else None
    return {
        "T": setup.T if setup.graph.recurrent else None, "batch": setup.batch, "dtype": setup.dtype.name,
        "parameters": sum(t.entries for t in setup.wrt),
        "predicted_bytes": cost and int(cost.bytes), "forward_steps": cost and cost.forward_steps,
        "flops": cost and float(cost.flops), "moved_bytes": cost and float(cost.moved),
    }  # fmt: skip


def serve(requests: Iterable[str], answers: TextIO) -> None:
    """Introduce this process, then answer requests line by line."""
    hello = {"protocol": PROTOCOL, "package": str(Path(bpcli.__file__).parent)}
    print(json.dumps(hello | dataclasses.asdict(machine.describe())), file=answers, flush=True)
    session = Session()
    for line in requests:
        request: Mapping[str, Any] = {}
        with contextlib.suppress(ValueError):  # a line that is not JSON has no `do`, and is answered as such
            request = json.loads(line)
        print(json.dumps(session.answer(request), default=float), file=answers, flush=True)


def main() -> None:
    """Serve on stdin and stdout; the process ends with its input, whatever it is doing."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # output of libraries is no answer
    sys.stdout = sys.stderr
    requests: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(requests,), daemon=True).start()
    serve(iter(requests.get, None), answers)


def _listen(requests: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        requests.put(line)
    os._exit(0)


if __name__ == "__main__":
    main()
