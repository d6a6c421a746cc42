"""The true gradient at a point of a sweep, and how far another one is from it.

No figure without a right gradient: every method is judged at every point of a sweep before the clock starts.

Where it is affordable every entry is checked, as `bp check` does; where not, the same check runs on a sample of
entries of each parameter, by the complex step alone where differences of these would take minutes and nothing has a
kink, and a method that is meant to be exact must also agree with reverse mode in all of them (reverse mode itself is
judged by the sample alone).

What checking costs, as methods that a bench can measure: a reference's sweep over every entry, and a whole check.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from typing import cast as typed

import numpy as np
from numpy.typing import NDArray

from bpcli import methods, references
from bpcli.checking.check_options import CheckOptions, check_bytes, check_cost
from bpcli.checking.checker import check, check_problem
from bpcli.checking.findings import Finding, Verdict
from bpcli.checking.reference_cache import AUTO
from bpcli.checking.verdict import cosine, relative_error
from bpcli.errors import Place
from bpcli.graph.nodes import Graph
from bpcli.methods import MethodCall, parse
from bpcli.methods.base import Cost, Definition, Exact, Gradient, Method
from bpcli.problem.definition import Problem, Setup, Tensor
from bpcli.problem.limits import Limits, array_bytes
from bpcli.references.perturbation.kinks import analytic
from bpcli.runtime.evaluation import whole_loss


def exact_method(setup: Setup) -> str:
    """The method that gives the true gradient of a graph at the least cost."""
    return next(name for name in methods.by_reverse_mode() if methods.load(name).refusal(setup.graph) is None)


def true_gradient(problem: Problem, limits: Limits) -> Gradient | None:
    """The exact gradient by reverse mode; None where it would need more memory than is allowed."""
    call = parse(exact_method(problem.setup))
    needed = call.cost(problem.setup).bytes + sum(array_bytes(problem.setup).values())
    return call.gradient(problem) if needed <= limits.max_memory else None


def flat(setup: Setup, gradient: Gradient) -> NDArray[np.float64]:
    """Everything differentiated in one vector, in the setup's order."""
    return np.concatenate([np.asarray(gradient.arrays[t.name], dtype=np.float64).reshape(-1) for t in setup.wrt])


def distance(found: NDArray[np.float64], true: NDArray[np.float64]) -> tuple[float | None, float | None]:
    """Bias ‖g − g*‖ / ‖g*‖ and cosine of the angle between them; None where a norm is zero or nothing is finite."""
    # Scaled first, so that the difference of huge entries does not overflow.
    scale = float(np.max(np.abs([found, true]), initial=0.0))
    if not 0.0 < scale < math.inf:
        return None, None
    found, true = found / scale, true / scale
    angle = cosine(found, true)
    return relative_error(found, true), None if angle is None else max(-1.0, min(1.0, angle))


AFFORDABLE_FLOPS, MOST_FLOPS = 1e9, 1e11
"""What is spent on a check of a cell: up to the first all entries are judged, up to the second, and where there are
kinks, by differences too."""
_ALONE = "complex-step"
_LEAST_ENTRIES, _MOST_ENTRIES = 2, 16


@dataclass(frozen=True)
class Vouch:
    """The verdict on a method at a point; `how` says what was compared, `detail` what was wrong, if anything."""

    verdict: Verdict
    how: str
    detail: str


def vouch(
    problem: Problem, calls: Sequence[MethodCall], gradients: Mapping[str, Gradient], true: Gradient | None
) -> dict[str, Vouch]:
    """The verdict on each of `calls`, by text; `gradients` are what they gave, `true` the true one if known."""
    setup = problem.setup
    costs = {c.text: check_cost(setup, [c], CheckOptions(mode="full")) for c in calls}
    whole = [c for c in calls if costs[c.text] <= AFFORDABLE_FLOPS]
    findings = check(setup, whole, CheckOptions()) if whole else []
    verdicts = {c.text: sum_up(findings, c, "every entry") for c in whole}
    for call in [c for c in calls if c not in whole]:
        sample = _sampled(setup, call)
        dear = analytic(setup.graph) and check_cost(sample, [call], CheckOptions(mode="full")) > MOST_FLOPS
        options, how = CheckOptions(), _count(sample)
        if dear:
            options, how = CheckOptions(_ALONE, "full"), f"{how} by {_ALONE}"
        judged = sum_up(check(sample, [_seen_through(call, setup)], options), call, how)
        verdicts[call.text] = _against_truth(judged, call, problem, gradients[call.text], true)
    return verdicts


def tolerance(setup: Setup) -> float:
    """How far apart, relative to their norm, two exact gradients may be that were computed in a different order."""
    return float(np.sqrt(np.finfo(setup.dtype).eps))


def _sampled(setup: Setup, call: MethodCall) -> Setup:
    """`setup` with a few entries of each parameter, always the same: as many as are affordable beside what any take.

    A few take as much each as the second does: it is all of them together that are cheaper.
    """
    shared = [t for t in setup.wrt if t.kind == "param" or t.name in setup.shared] or list(setup.wrt)

    def some(count: int) -> Setup:
        return dataclasses.replace(setup, wrt=tuple(_thinned(t, count) for t in shared))

    one, two = (check_cost(some(count), [call], CheckOptions(mode="full")) for count in (1, 2))
    count = int(AFFORDABLE_FLOPS / (two - one)) if two > one else _MOST_ENTRIES
    return some(min(max(count, _LEAST_ENTRIES), _MOST_ENTRIES))


def _thinned(tensor: Tensor, count: int) -> Tensor:
    """`tensor` with `count` of its entries, spread at random."""
    there = tensor.pattern if tensor.pattern is not None else np.arange(tensor.entries, dtype=np.int64)
    if len(there) <= count:
        return tensor
    chosen = np.random.default_rng(0).choice(there, count, replace=False)
    return dataclasses.replace(tensor, pattern=np.sort(chosen))


def _count(sample: Setup) -> str:
    return f"{sum(t.entries for t in sample.wrt)} entries"


@dataclass(frozen=True)
class _Whole:
    """A method that runs on the whole setup whatever part of it is looked at: what is checked is what is timed."""

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


def _seen_through(call: MethodCall, setup: Setup) -> MethodCall:
    method = call.method
    whole = _Whole(call, setup, method.name, method.summary, method.tags, method.Options)
    # The protocol has class variables where this has fields.
    return MethodCall(call.text, whole, call.options)  # type: ignore[arg-type]


def sum_up(findings: Sequence[Finding], call: MethodCall, how: str) -> Vouch:
    """The worst verdict on a method's tensors."""
    own = [f for f in findings if f.method == call.text]
    for verdict in ("wrong", "inconclusive"):
        bad = [f for f in own if f.verdict == verdict]
        if bad:
            worst = f", z = {bad[0].worst.z:.3g}" if bad[0].worst else ""
            return Vouch(bad[0].verdict, how, f"{bad[0].tensor}: {bad[0].cause or verdict}{worst}")
    return Vouch("pass", how, "")


def _against_truth(
    judged: Vouch, call: MethodCall, problem: Problem, gradient: Gradient, true: Gradient | None
) -> Vouch:
    """`judged`, or wrong where a method that is meant to be exact differs from the true gradient somewhere else."""
    setup = problem.setup
    exact = call.definition(setup) == Exact()
    itself = call.method.name == exact_method(setup)  # the true gradient is its own: no witness
    if judged.verdict == "wrong" or not exact or itself or true is None:
        return judged
    bias, _ = distance(flat(setup, gradient), flat(setup, true))
    how = f"{judged.how}, and all against reverse mode"
    if bias is not None and not bias <= tolerance(setup):
        return Vouch("wrong", how, f"differs from reverse mode by {bias:.2g}")
    return Vouch(judged.verdict, how, judged.detail)


CHECK = "check"
# Sweeps over time for each tensor: the references take copies side by side, but go through the steps this often.
_SWEEPS = 16


@dataclass(frozen=True)
class NoOptions:
    """None."""


@dataclass(frozen=True)
class Checking:
    """The work of `bp check --mode full` on reverse mode: of one reference alone, or, of "check", with all judging."""

    name: str
    summary: str = "what checking costs"
    tags: frozenset[str] = frozenset({"exact", "offline"})
    Options: type[Any] = NoOptions

    @property
    def options(self) -> CheckOptions:
        """The check that this is, or is part of."""
        return CheckOptions(AUTO if self.name == CHECK else self.name, "full")

    def refusal(self, graph: Graph) -> str | None:
        """It applies to every graph."""
        return None

    def definition(self, setup: Setup, options: Any) -> Definition:
        """The total derivative."""
        return Exact()

    def cost(self, setup: Setup, options: Any) -> Cost:
        """Predicted for every entry, with as many evaluations as the references may take."""
        call = methods.parse(exact_method(setup))
        flops = check_cost(setup, [call], self.options)
        if self.name != CHECK:
            flops = references.get(self.name).cost(setup, Exact().over(setup))
        return Cost(flops, check_bytes(setup, [call], self.options), _SWEEPS * len(setup.wrt) * setup.T)

    def gradient(self, problem: Problem, options: Any) -> Gradient:
        """What the reference finds, in the spec's dtype; of a whole check, the gradient that it has judged."""
        fresh = replace(problem)  # what is remembered of a problem would be measured once and then no more
        setup = problem.setup
        if self.name == CHECK:
            call = methods.parse(exact_method(setup))
            check_problem(fresh, [call], self.options)
            return call.gradient(fresh)
        found = references.get(self.name).estimate(fresh, Exact().over(setup), setup.wrt)
        return Gradient(whole_loss(fresh), {name: e.value.astype(setup.dtype) for name, e in found.items()})


def parse_measurable(text: str, place: Place | None = None) -> MethodCall:
    """What a bench can measure: a method, a reference, or "check". Raises BpError as `methods.parse`."""
    name = text.strip()
    if name == CHECK or name in references.known():
        # The protocol has class variables where this has fields.
        return MethodCall(name, typed("Method", Checking(name)), NoOptions())
    return methods.parse(text, place)


def vouch_for(call: MethodCall, problem: Problem) -> Vouch | None:
    """The verdict where `call` is a check, by what it says of reverse mode; None for a method."""
    if not isinstance(call.method, Checking):
        return None
    exact = methods.parse(exact_method(problem.setup))
    findings = check_problem(replace(problem), [exact], call.method.options)
    return sum_up(findings, exact, f"{exact.text}, every entry, by it")
