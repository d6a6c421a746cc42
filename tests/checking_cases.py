"""Shared by the tests of checks: methods made of the loop-only gradients of `naive`, correct or broken."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import naive
import numpy as np
from numpy.typing import NDArray

from bpcli.checking.check_options import CheckOptions
from bpcli.checking.checker import check_problem
from bpcli.checking.findings import Finding
from bpcli.methods import MethodCall, parse
from bpcli.methods.base import Cost, Definition, Exact, Gradient, Windows
from bpcli.problem.definition import Problem, Setup
from bpcli.problem.draw import draw
from bpcli.problem.limits import Limits
from bpcli.problem.setup import open_setup
from bpcli.references import central, complex_step, ladder
from bpcli.runtime.reverse_mode import Window

SPECS = Path(__file__).parent.parent / "specs"
OURS = {name: Path(__file__).parent / f"checking_{name}.toml" for name in ("relu", "kink")}
LIMITS = Limits(max_memory=1 << 30)
REFERENCES = {r.name: r for r in (complex_step.REFERENCE, central.REFERENCE, ladder.REFERENCE)}
# Small enough for loops in Python.
SMALL: dict[str, dict[str, object]] = {
    "vanilla_rnn": {"n": 3, "n_in": 2, "n_out": 2, "T": 4, "batch": 2},
    "leaky_rnn": {"n": 3, "T": 4, "batch": 2},
    "indrnn": {"n": 3, "T": 4, "batch": 2},
    "masked_rnn": {"n": 6, "T": 3, "batch": 2},
    "exercise": {"n_hidden": 4, "batch": 2},
    "relu": {},
}
Arrays = dict[str, NDArray[Any]]


def small_setup(name: str, wrt: tuple[str, ...] = ("params", "inputs", "state"), **more: object) -> Setup:
    """The spec of that name, shrunk."""
    return open_setup(OURS.get(name, SPECS / f"{name}.toml"), {**SMALL.get(name, {}), **more}, wrt, LIMITS)


def naive_gradient(problem: Problem, k1: int = 0, k2: int = 0, in_double: bool = False) -> Arrays:
    """The exact gradient, or the truncated one of `tbptt:k1,k2`, rounded to the spec's dtype or left `in_double`."""
    setup = problem.setup
    masks = {
        t.name: np.isin(np.arange(np.prod(t.shape)), t.pattern).reshape(t.shape)
        for t in setup.wrt
        if t.pattern is not None
    }
    groups = {"params": problem.params, "inputs": problem.inputs, "state": problem.state}
    arrays: dict[str, Mapping[str, NDArray[Any]]] = {
        kind: {name: np.asarray(a, dtype=np.float64) for name, a in group.items()} for kind, group in groups.items()
    }
    arrays["mask"] = masks
    if k1:
        found = naive.tbptt(setup.spec, arrays, k1, k2)
    elif setup.graph.recurrent:
        found = naive.bptt(setup.spec, arrays)
    else:
        found = naive.backprop(setup.spec, arrays)
    dtype = np.float64 if in_double else setup.dtype
    return {t.name: np.asarray(found[t.name], dtype=dtype) for t in setup.wrt}


def naive_loss(problem: Problem) -> float:
    """The whole loss."""
    arrays = {"params": problem.params, "inputs": problem.inputs, "state": problem.state}
    return float(naive.loss(problem.setup.spec, arrays))


def truncation_windows(T: int, k1: int, k2: int) -> tuple[Window, ...]:
    """What `tbptt:k1,k2` computes."""
    ends = [*range(k1, T, k1), T]
    return tuple(Window(max(0, end - k2), end - (k1 if end % k1 == 0 else end % k1), end) for end in ends)


@dataclass
class FakeMethod:
    """A method that computes naively, and then lets `spoil` change its answer; `calls` counts."""

    spoil: Callable[[Arrays, FakeMethod, Problem], None] = lambda arrays, method, problem: None
    k1: int = 0
    k2: int = 0
    loss_factor: float = 1.0
    claims_exact: bool = False
    calls: int = 0

    def refusal(self, graph: object) -> str | None:
        """It always applies."""
        return None

    def definition(self, setup: Setup, options: object) -> Definition:
        """The windows of the truncation, or the whole."""
        if self.k1 and not self.claims_exact:
            return Windows(truncation_windows(setup.T, self.k1, self.k2))
        return Exact()

    def cost(self, setup: Setup, options: object) -> Cost:
        """A thousand operations."""
        return Cost(1e3, 0, setup.T)

    def gradient(self, problem: Problem, options: object) -> Gradient:
        """The naive gradient, spoiled."""
        self.calls += 1
        arrays = naive_gradient(problem, self.k1, self.k2)
        loss = naive_loss(problem) * self.loss_factor
        self.spoil(arrays, self, problem)
        return Gradient(loss, arrays)


def call(method: FakeMethod) -> MethodCall:
    """The method as a check takes it."""
    return MethodCall("fake", cast("Any", method), SimpleNamespace())


def opened(folder: Path, text: str, dtype: str = "float64") -> Problem:
    """The problem of a spec's text, to be differentiated by everything."""
    path = folder / "spec.toml"
    path.write_text(text, encoding="utf-8")
    kinds = ("params", "inputs", "state") if "[state]" in text else ("params", "inputs")
    return draw(open_setup(path, {"dtype": dtype}, kinds, LIMITS))


def judged(problem: Problem, answer: Arrays, mode: str = "full", reference: str = "auto") -> list[Finding]:
    """The findings on a gradient."""
    method = FakeMethod(lambda arrays, *_: arrays.update(answer))
    return check_problem(problem, [call(method)], CheckOptions(reference, mode=mode))  # type: ignore[arg-type]


def compare_reference(problem: Problem, reference: str, other: Arrays) -> None:
    """Assert that a reference is the twin's gradient within sharp bounds, and far from an `other` program's."""
    found = REFERENCES[reference].estimate(problem, Exact().over(problem.setup), problem.setup.wrt)
    right, apart = naive_gradient(problem), 0.0
    for tensor, estimate in found.items():
        assert (np.abs(estimate.value - right[tensor]) <= estimate.bound + 1e-12).all(), tensor
        assert np.max(estimate.bound) < 1e-4, tensor
        apart = max(apart, float(np.max(np.abs(estimate.value - other[tensor]) - estimate.bound)))
    assert apart > 1e-2


def not_passed(problem: Problem, mode: str) -> list[Finding]:
    """The findings on backprop, or BPTT, RTRL and a truncation, that do not pass in a check of this mode."""
    methods = ("bptt", "rtrl", "tbptt:k1=2,k2=3") if problem.setup.graph.recurrent else ("backprop",)
    found = check_problem(problem, [parse(m) for m in methods], CheckOptions(mode=mode))  # type: ignore[arg-type]
    assert found
    return [f for f in found if f.verdict != "pass"]
