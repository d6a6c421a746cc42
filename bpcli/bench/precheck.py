"""The check of a gradient before it is timed.

Where it is affordable every entry is checked, as by `bp check`. Otherwise the same check runs on a sample of entries of
each parameter, by the complex step alone where differences would take minutes and the graph has no kink; an exact
method must then also agree with reverse mode in every entry, unless it is reverse mode itself.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpcli.bench.measurement import OURS
from bpcli.checking.check_as_method import Checking
from bpcli.checking.check_options import CheckOptions, check_cost
from bpcli.checking.checker import check
from bpcli.checking.findings import Finding, Verdict
from bpcli.checking.verdict import cosine, relative_error
from bpcli.graph.nodes import Graph
from bpcli.methods import MethodCall, exact_method, parse
from bpcli.methods.base import Cost, Definition, Exact, Expectation, Gradient
from bpcli.problem.definition import Problem, Setup, Tensor
from bpcli.problem.draw import redrawn
from bpcli.problem.limits import Limits, array_bytes
from bpcli.references.perturbation.kinks import analytic

AFFORDABLE_FLOPS, MAX_FLOPS = 1e9, 1e11
"""Cost of a check up to which every entry is judged, and up to which a sample is judged by differences too."""
_ONE_REFERENCE = "complex-step"
_MIN_ENTRIES, _MAX_ENTRIES = 2, 16


@dataclass(frozen=True)
class Precheck:
    """The verdict on a gradient; `how` names the comparison, `detail` the difference found, if any.

    `kernel_error` is the largest of any tensor, against the method's definition; None where none is known.
    """

    verdict: Verdict
    how: str
    detail: str
    kernel_error: float | None = None


_NO_COMPARISON = Precheck("inconclusive", "nothing", "no correct gradient to compare with")


def true_gradient(problem: Problem, limits: Limits) -> Gradient | None:
    """The total derivative by reverse mode; None where it would exceed the memory limit."""
    call = parse(exact_method(problem.setup.graph))
    needed = call.cost(problem.setup).bytes + sum(array_bytes(problem.setup).values())
    return call.gradient(problem) if needed <= limits.max_memory else None


def flat(setup: Setup, gradient: Gradient) -> NDArray[np.float64]:
    """The gradient as one vector, tensors in the setup's order."""
    return np.concatenate([np.asarray(gradient.arrays[t.name], dtype=np.float64).reshape(-1) for t in setup.wrt])


def distance(found: NDArray[np.float64], true: NDArray[np.float64]) -> tuple[float | None, float | None]:
    """Bias ‖g − g*‖ / ‖g*‖ and cosine of the angle between both; None where it is undefined."""
    # Scaled first, so that the difference of huge entries does not overflow.
    scale = float(np.max(np.abs([found, true]), initial=0.0))
    if not 0.0 < scale < math.inf:
        return None, None
    found, true = found / scale, true / scale
    angle = cosine(found, true)
    return relative_error(found, true), None if angle is None else max(-1.0, min(1.0, angle))


def spread(
    mean: NDArray[np.float64], variance: float | None, true: NDArray[np.float64] | None
) -> tuple[float | None, float | None, float | None]:
    """Bias and cosine of a mean, and the variance relative to ‖g*‖²; None where they are unknown."""
    if true is None:
        return None, None, None
    size = float((true * true).sum())
    return (*distance(mean, true), variance / size if variance is not None and size > 0 else None)


def drawn(problem: Problem, call: MethodCall, first: Gradient, draws: int) -> tuple[NDArray[np.float64], float | None]:
    """The mean of a method's gradient over draws, of which `first` is one, and their variance, E ‖g - E g‖².

    Other draws have the same arrays and seeds of their own. A method that is not random has no variance.
    """
    setup = problem.setup
    if draws < 2 or not isinstance(call.definition(setup), Expectation):
        return flat(setup, first), None
    found = [flat(setup, first)]
    for k in range(1, draws):
        found.append(flat(setup, call.gradient(redrawn(problem, k))))
    mean = np.mean(found, axis=0)
    return mean, float(sum(((g - mean) ** 2).sum() for g in found)) / (draws - 1)


def tolerance(setup: Setup) -> float:
    """The relative distance allowed between two exact gradients summed in different orders."""
    return float(np.sqrt(np.finfo(setup.dtype).eps))


def judge_peer(problem: Problem, call: MethodCall, gradient: Gradient, true: Gradient | None, ours: str) -> Precheck:
    """The verdict on a peer's gradient, given the verdict `ours` on bp's own.

    Where the method is exact, the total derivative can stand in for a gradient of bp's that fails, unless it was
    computed by the very same method. Of a random method a peer has the draw that bp has.
    """
    if isinstance(call.method, Checking):
        return _compared(problem.setup, gradient, true, "reverse mode") if true else _NO_COMPARISON
    if ours == "pass":
        return _compared(problem.setup, gradient, call.gradient(problem), OURS)
    exact = call.definition(problem.setup) == Exact()
    if true is not None and exact and call.method.name != exact_method(problem.setup.graph):
        return _compared(problem.setup, gradient, true, "reverse mode")
    return _NO_COMPARISON


def _compared(setup: Setup, gradient: Gradient, right: Gradient, whose: str) -> Precheck:
    found, true = flat(setup, gradient), flat(setup, right)
    apart, _ = distance(found, true)
    how = f"all entries against {whose}"
    if np.array_equal(found, true) or (apart is not None and apart <= tolerance(setup)):
        return Precheck("pass", how, "")
    if not true.any() and np.isfinite(found).all():
        return Precheck("inconclusive", how, f"the gradient of {whose} is zero, so rounding has no scale")
    amount = "an undefined amount" if apart is None else f"{apart:.2g}"
    return Precheck("wrong", how, f"differs from {whose} by {amount}")


def vouch(problem: Problem, call: MethodCall, gradient: Gradient, true: Gradient | None) -> Precheck:
    """The verdict on bp's own gradient: by a check of every entry where that is affordable, else of a sample.

    A reference, or a whole check, is judged by its own verdict on reverse mode. `true` is the total derivative.
    """
    setup = problem.setup
    if isinstance(call.method, Checking):
        reverse, findings = call.method.judge(problem)
        return _worst(findings, reverse, f"every entry of {reverse.text}, by this check")
    if check_cost(setup, [call], CheckOptions(mode="full")) <= AFFORDABLE_FLOPS:
        return _worst(check(setup, [call], CheckOptions()), call, "every entry")
    sample = _sampled(setup, call)
    options, how = CheckOptions(), f"{sum(t.entries for t in sample.wrt)} entries"
    if analytic(setup.graph) and check_cost(sample, [call], CheckOptions(mode="full")) > MAX_FLOPS:
        options, how = CheckOptions(_ONE_REFERENCE, "full"), f"{how} by {_ONE_REFERENCE}"
    judged = _worst(check(sample, [_on_whole_setup(call, setup)], options), call, how)
    exact = call.definition(setup) == Exact() and call.method.name != exact_method(setup.graph)
    if judged.verdict == "wrong" or not exact or true is None:
        return judged
    bias, _ = distance(flat(setup, gradient), flat(setup, true))
    how = f"{judged.how}, and all against reverse mode"
    if bias is not None and not bias <= tolerance(setup):
        return Precheck("wrong", how, f"differs from reverse mode by {bias:.2g}", judged.kernel_error)
    return Precheck(judged.verdict, how, judged.detail, judged.kernel_error)


def _worst(findings: Sequence[Finding], call: MethodCall, how: str) -> Precheck:
    """The worst verdict on a method's tensors."""
    own = [f for f in findings if f.method == call.text]
    error = max((f.kernel_error for f in own if f.kernel_error is not None), default=None)
    for verdict in ("wrong", "inconclusive"):
        bad = [f for f in own if f.verdict == verdict]
        if bad:
            worst = f", z = {bad[0].worst.z:.3g}" if bad[0].worst else ""
            return Precheck(bad[0].verdict, how, f"{bad[0].tensor}: {bad[0].cause or verdict}{worst}", error)
    return Precheck("pass", how, "", error)


def _sampled(setup: Setup, call: MethodCall) -> Setup:
    """`setup` with a fixed sample of entries of each parameter, as many as are affordable.

    The cost of a check is an offset plus a cost an entry, which follows from samples of one and of two entries.
    """
    shared = [t for t in setup.wrt if t.kind == "param" or t.name in setup.shared] or list(setup.wrt)

    def some(count: int) -> Setup:
        return dataclasses.replace(setup, wrt=tuple(_thinned(t, count) for t in shared))

    one, two = (check_cost(some(count), [call], CheckOptions(mode="full")) for count in (1, 2))
    count = int(AFFORDABLE_FLOPS / (two - one)) if two > one else _MAX_ENTRIES
    return some(min(max(count, _MIN_ENTRIES), _MAX_ENTRIES))


def _thinned(tensor: Tensor, count: int) -> Tensor:
    """`tensor` with `count` random entries."""
    there = tensor.pattern if tensor.pattern is not None else np.arange(tensor.entries, dtype=np.int64)
    if len(there) <= count:
        return tensor
    chosen = np.random.default_rng(0).choice(there, count, replace=False)
    return dataclasses.replace(tensor, pattern=np.sort(chosen))


@dataclass(frozen=True)
class _WholeSetup:
    """A method that runs on the whole setup while a sample is judged, so that the timed computation is checked."""

    call: MethodCall
    setup: Setup
    name: str
    summary: str
    tags: frozenset[str]
    Options: type[Any]

    def refusal(self, graph: Graph) -> str | None:
        return self.call.refusal(graph)

    def definition(self, setup: Setup, options: Any) -> Definition:
        return self.call.definition(self.setup)

    def cost(self, setup: Setup, options: Any) -> Cost:
        return self.call.cost(self.setup)

    def gradient(self, problem: Problem, options: Any) -> Gradient:
        found = self.call.gradient(dataclasses.replace(problem, setup=self.setup))
        return Gradient(found.loss, {t.name: found.arrays[t.name] for t in problem.setup.wrt})


def _on_whole_setup(call: MethodCall, setup: Setup) -> MethodCall:
    method = call.method
    wrapped = _WholeSetup(call, setup, method.name, method.summary, method.tags, method.Options)
    # The protocol has class variables where this has fields.
    return MethodCall(call.text, wrapped, call.options)  # type: ignore[arg-type]
