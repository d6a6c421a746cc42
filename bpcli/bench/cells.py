"""One backend of a cell, measured in a process of its own: first call, memory, check, and blocks on demand.

A `Session` answers requests, one at a time, each a mapping that JSON can hold. The gradient is judged before anything
is timed, and memory is measured in passes of their own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bpcli import backends
from bpcli.bench import clock
from bpcli.bench import machine as control
from bpcli.bench import precheck as checks
from bpcli.bench.machine import copy_rate, gemm_rate
from bpcli.bench.memory_probe import allocated_bytes, peak_growth
from bpcli.bench.precheck import Vouch, distance, exact_method, flat, tolerance, true_gradient, vouch
from bpcli.bench.sweep import OURS
from bpcli.bench.target import Target, digest, target_from
from bpcli.errors import fail
from bpcli.methods import MethodCall
from bpcli.methods.base import Gradient
from bpcli.problem.definition import Problem, Setup
from bpcli.problem.draw import draw
from bpcli.runtime import kernel_loader as library
from bpcli.runtime.evaluation import check_finite

Answer = dict[str, Any]
SLOW_SECONDS = 1.0
"""A call that takes as long is a block by itself, and is not made again to find that out."""
_UNKNOWN = Vouch("inconclusive", "nothing", "no right gradient to compare with")


@dataclass(frozen=True)
class Order:
    """What to measure: a method at a point of a spec, by a backend.

    `sha256` is the spec's digest when the run was planned; `ours` is the verdict on bp's own gradient of the same cell,
    "" when the backend is bp.
    """

    target: Target
    sha256: str
    settings: Mapping[str, Any]
    method: str
    backend: str
    threads: int
    ours: str = ""

    def plain(self) -> dict[str, Any]:
        """What JSON can hold."""
        return {**self.__dict__, "target": self.target.plain(), "settings": dict(self.settings)}


def order_from(plain: Mapping[str, Any]) -> Order:
    """The Order that `plain` was made of."""
    return Order(**{**plain, "target": target_from(plain["target"])})


@dataclass(frozen=True)
class Case:
    """A cell opened: its arrays, its method, the function that is measured, and how many threads that is held to."""

    problem: Problem
    call: MethodCall
    run: Callable[[], Gradient]
    threads: int | None


class Session:
    """One process's state: the function that is being timed, once an order has been prepared."""

    def __init__(self) -> None:
        self._run: Callable[[], Gradient] | None = None
        self._calls = 1

    def answer(self, request: Mapping[str, Any]) -> Answer:
        """The answer to a request, whose `do` says which. Raises BpError where a spec or its arrays are refused."""
        do = request["do"]
        if do == "prepare":
            return self._prepare(order_from(request["order"]))
        if do == "time":
            return self._time(request["blocks"])
        if do == "control":
            return control.sample()
        if do == "floor":
            return {"bytes": peak_growth(lambda: None)}
        assert do == "rates"
        threads = request["threads"]
        return {"gemm": gemm_rate(request["dtype"], threads), "copy": copy_rate(threads)}

    def _prepare(self, order: Order) -> Answer:
        case, (gradient, first, compiling) = _first_calls(order)
        setup = case.problem.setup
        peak = peak_growth(case.run)  # while the heap is fresh: what the check leaves free would be used again
        true = true_gradient(case.problem, order.target.limits)
        verdict = _judge(case, order, gradient, true)
        report: Answer = {
            "threads": case.threads,
            "first_s": first,
            "compile_s": compiling,
            "check": verdict.__dict__,
            **_sizes(setup),
            **_cost(setup, case.call, order.backend),
            **_nearness(setup, gradient, true),
        }
        if verdict.verdict == "wrong":
            return report
        report["peak_growth"] = peak
        self._run, self._calls, each = case.run, 1, first
        if first < SLOW_SECONDS:
            self._calls = clock.calibrate(case.run)
            (each,) = clock.take(case.run, self._calls, 1)
        # Now that what is kept from call to call is there again: the check has had other plans made.
        report["allocated_bytes"] = allocated_bytes(case.run) if order.backend == OURS else None
        return report | {"calls_per_block": self._calls, "block_s": each * self._calls}

    def _time(self, blocks: int) -> Answer:
        assert self._run is not None
        before, _ = library.compiled()
        samples = clock.take(self._run, self._calls, blocks)
        after, _ = library.compiled()
        if after != before:
            fail("unsteady", f"{after - before} kernels were compiled while the clock ran", help="please report it")
        return {"samples": samples}


def _first_calls(order: Order) -> tuple[Case, tuple[Gradient, float, float]]:
    """The case of an order; its gradient, the seconds of its first call, and those of compiling and loading kernels.

    bp's kernels tell what they took; of a peer the second call counts as the first, and what the very first took more
    as compiling.
    """
    case = _open(order)
    library.set_threads(order.threads)  # loads the parallel loop now, not when it has begun to pay
    _, seconds = library.compiled()
    gradient, first = _called(case.run)
    if order.backend == OURS:
        compiled = library.compiled()[1]
        return case, (gradient, first - (compiled - seconds), compiled)
    gradient, second = _called(case.run)
    return case, (gradient, second, max(0.0, first - second))


def _called(run: Callable[[], Gradient]) -> tuple[Gradient, float]:
    start = time.perf_counter()
    gradient = run()
    return gradient, time.perf_counter() - start


def _open(order: Order) -> Case:
    setup = order.target.open(order.settings)
    if digest(setup, order.target.path) != order.sha256:
        fail(
            "changed",
            f"{order.target.path}, or a file that it names, changed while it was measured",
            help="run it again",
        )
    problem = draw(setup)
    check_finite(problem)
    call = checks.parse_measurable(order.method)
    if order.backend == OURS:
        return Case(problem, call, lambda: call.gradient(problem), order.threads)
    peer = backends.get(order.backend)
    held = peer.prepare(order.threads)
    return Case(problem, call, peer.gradient_function(problem, order.method), held)


def _judge(case: Case, order: Order, gradient: Gradient, true: Gradient | None) -> Vouch:
    """The verdict on a gradient; all methods that peers run are exact, so that the true one can stand in for ours."""
    problem, call = case.problem, case.call
    if order.backend == OURS and (checked := checks.vouch_for(call, problem)):
        return checked
    if order.backend == OURS:
        return vouch(problem, [call], {call.text: gradient}, true)[call.text]
    if isinstance(call.method, checks.Checking):
        return _against(problem.setup, gradient, true, "reverse mode") if true else _UNKNOWN
    if order.ours == "pass":
        return _against(problem.setup, gradient, call.gradient(problem), "bp")
    if true is not None and call.method.name != exact_method(problem.setup):
        return _against(problem.setup, gradient, true, "reverse mode")
    # The true gradient is bp's own by this very method.
    return _UNKNOWN


def _against(setup: Setup, gradient: Gradient, right: Gradient, whose: str) -> Vouch:
    found, true = flat(setup, gradient), flat(setup, right)
    apart, _ = distance(found, true)
    how = f"all entries against {whose}"
    if np.array_equal(found, true) or (apart is not None and apart <= tolerance(setup)):
        return Vouch("pass", how, "")
    if not true.any() and np.isfinite(found).all():
        return Vouch("inconclusive", how, f"the gradient of {whose} is zero, and how far rounding goes is not known")
    return Vouch("wrong", how, f"differs from {whose} by {'an undefined amount' if apart is None else f'{apart:.2g}'}")


def _sizes(setup: Setup) -> Answer:
    entries = sum(t.entries for t in setup.wrt)
    steps = setup.T if setup.graph.recurrent else None
    return {"T": steps, "batch": setup.batch, "dtype": setup.dtype.name, "parameters": entries}


def _cost(setup: Setup, call: MethodCall, backend: str) -> Answer:
    """The predicted cost; nothing is known of a peer's."""
    if backend != OURS:
        return dict.fromkeys(("predicted_bytes", "forward_steps", "flops", "moved_bytes"))
    cost = call.cost(setup)
    return {
        "predicted_bytes": int(cost.bytes),
        "forward_steps": cost.forward_steps,
        "flops": float(cost.flops),
        "moved_bytes": float(cost.moved),
    }


def _nearness(setup: Setup, gradient: Gradient, true: Gradient | None) -> Answer:
    bias, cosine = distance(flat(setup, gradient), flat(setup, true)) if true else (None, None)
    return {"bias": bias, "cosine": cosine}
