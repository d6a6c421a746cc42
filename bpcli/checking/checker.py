"""The finding on one tensor of one answer: entry by entry, or along directions first.

A check: every method's gradient against references that carry their own error bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from bpcli.checking.check_options import CheckOptions, choose
from bpcli.checking.escalation import affordable, decide, decide_along, narrow
from bpcli.checking.findings import Finding, Verdict, Worst, spoiled
from bpcli.checking.reference_cache import AUTO, Truth
from bpcli.checking.sources.gradient_source import Answer, Foreign, ask
from bpcli.checking.sources.validate_gradient import LOSS, on_pattern
from bpcli.checking.verdict import Entries, as_direction, at_kink, cosine, kernel_error, relative_error, summarise
from bpcli.methods import MethodCall
from bpcli.methods.base import Definition, Exact
from bpcli.problem.definition import Problem, Setup, Tensor
from bpcli.problem.draw import draw
from bpcli.references.base import Estimate, FloatArray
from bpcli.references.numerics.probe import directions, dot
from bpcli.references.perturbation.executor import Executor
from bpcli.runtime.evaluation import check_finite

Judged = Callable[[Truth, Definition, Tensor, FloatArray, Finding], Finding]
"""Takes the gradient of a tensor, in float64 and zero outside its pattern, and fills in a blank finding."""


def judge_entries(truth: Truth, definition: Definition, tensor: Tensor, value: FloatArray, blank: Finding) -> Finding:
    """Every entry."""
    entries = decide(truth, definition, tensor, value)
    verdict, cause, worst = summarise(entries, tensor.pattern)
    true = truth.best(Exact(), tensor)
    one_truth = not (true.kink > 0).any() and bool(np.isfinite(true.bound).all())
    if verdict == "pass" and one_truth and _vanishes(true, entries):
        return replace(blank, checked=tensor.entries, verdict=verdict, cause=cause, worst=worst)
    return replace(
        blank,
        checked=tensor.entries,
        verdict=verdict,
        cause=cause,
        worst=worst,
        kernel_error=kernel_error(value, truth.best(definition, tensor)),
        bias=relative_error(value, true.value) if one_truth else None,
        cosine=cosine(value, true.value) if one_truth else None,
        kink=at_kink(entries, worst, tensor.pattern),
    )


def judge_along(truth: Truth, definition: Definition, tensor: Tensor, value: FloatArray, blank: Finding) -> Finding:
    """Directions; where these do not pass, every entry, or as many as are affordable of those that look wrong.

    Where directions are at a kink every entry is judged too, if that is affordable. Errors are estimated: the norm
    of a tensor is that of its components along Gaussian directions, on average.
    """
    rows = directions(tensor)
    entries = decide_along(truth, definition, tensor, value, rows)
    verdict, cause, worst = summarise(entries)
    true = truth.along(Exact(), tensor, rows).judge
    one_truth = not (true.kink > 0).any() and bool(np.isfinite(true.bound).all())
    if verdict == "pass" and one_truth and _vanishes(true, entries):
        return replace(blank, checked=len(rows), verdict=verdict, cause=cause, worst=as_direction(worst))
    found = replace(
        blank,
        checked=len(rows),
        verdict=verdict,
        cause=cause,
        worst=as_direction(worst),
        kernel_error=kernel_error(entries.value, truth.along(definition, tensor, rows).judge),
        bias=relative_error(dot(rows, value), true.value) if one_truth else None,
    )
    # What lies between the slopes at a kink along a direction may do so by an error in any of its entries.
    if verdict == "pass" and not (cause == "kink" and affordable(truth, definition, tensor.entries)):
        return found
    part = narrow(truth, definition, tensor, value)
    looked = judge_entries(truth.part(part), definition, part, value, blank)
    if part is tensor:
        return looked
    if looked.verdict != "wrong":  # that a part of it passes says nothing about the tensor
        return found
    return replace(looked, kernel_error=found.kernel_error, bias=found.bias, cosine=None)


def _vanishes(true: Estimate, entries: Entries) -> bool:
    """Whether a gradient is rounding alone, over which a distance would be anything."""
    largest = np.maximum(np.abs(true.value), np.abs(entries.reference))
    return bool((largest <= entries.bound).all())


def check(
    setup: Setup, calls: Sequence[MethodCall | Foreign], options: CheckOptions, executor: Executor | None = None
) -> list[Finding]:
    """Judge the gradients of `calls`: a finding per method and tensor with entries, and one for a loss that is wrong.

    A gradient from outside has findings for unknown keys too, and one for its loss if it gives one. Methods must apply
    to the graph. Losses are computed by the `executor` where that pays. Raises BpError when the loss is not finite, or
    the reference does not apply.
    """
    return check_problem(draw(setup), calls, options, executor)


def check_problem(
    problem: Problem, calls: Sequence[MethodCall | Foreign], options: CheckOptions, executor: Executor | None = None
) -> list[Finding]:
    """`check` on arrays that are there already."""
    setup = problem.setup
    check_finite(problem)
    chosen = choose(setup, calls, options)
    truth = Truth(problem, chosen.references, options.reference == AUTO, executor)
    judged = judge_along if chosen.mode == "directional" else judge_entries
    findings: list[Finding] = []
    # A density may leave a tensor without entries: nothing exists to compare, and the others decide if there are any.
    tensors = [t for t in setup.wrt if t.entries] or setup.wrt
    for call in calls:
        found = _findings(truth, call, tensors, judged)
        wrong = any(f.verdict == "wrong" for f in found)
        if wrong and isinstance(call, Foreign) and call.afresh():
            found = _findings(truth, call, tensors, judged)
        findings += found
    return findings


def _findings(truth: Truth, call: MethodCall | Foreign, tensors: Sequence[Tensor], judged: Judged) -> list[Finding]:
    """What one call comes to."""
    setup = truth.problem.setup
    answer = ask(call, truth.problem)
    found = [_finding(truth, call, answer, tensor, judged) for tensor in tensors]
    found += _loss_findings(truth, call, call.definition(setup), answer)
    unknown = [name for name in answer.faults if name not in {LOSS, *(t.name for t in setup.wrt)}]
    return found + [_faulty(truth, call, answer, name) for name in unknown]


def _finding(truth: Truth, call: MethodCall | Foreign, answer: Answer, tensor: Tensor, judged: Judged) -> Finding:
    if tensor.name in answer.faults:
        return _faulty(truth, call, answer, tensor.name, tensor.shape)
    given = answer.arrays.get(tensor.name)
    blank = Finding(
        truth.problem.setup.spec.name, call.text, tensor.name, tensor.shape, 0, "wrong", "", None, None, None, None
    )
    if given is None:
        return replace(blank, cause="missing")
    if given.shape != tensor.shape:
        return replace(blank, cause="wrong shape")
    if given.dtype != truth.problem.setup.dtype:
        return replace(blank, cause="wrong type")
    definition = call.definition(truth.problem.setup)
    found = judged(truth, definition, tensor, on_pattern(given, tensor).astype(np.float64), blank)
    if answer.changed:
        named = f": {', '.join(answer.changed)}" if answer.where else ""
        return spoiled(found, f"changes its arguments{named}{answer.where}")
    if tensor.name in answer.unsteady:
        return spoiled(found, f"not deterministic{answer.where}")
    if tensor.name in answer.threaded:
        return spoiled(found, "depends on the order of parallel jobs")
    if found.verdict == "wrong" and found.cause:
        return replace(found, cause=found.cause + answer.where)
    return found


def _faulty(
    truth: Truth, call: MethodCall | Foreign, answer: Answer, name: str, shape: tuple[int, ...] = ()
) -> Finding:
    """The finding on what can't be compared."""
    cause, spec = answer.faults[name], truth.problem.setup.spec.name
    return Finding(spec, call.text, name, shape, 0, "wrong", cause, None, None, None, None)


def _loss_findings(truth: Truth, call: MethodCall | Foreign, definition: Definition, answer: Answer) -> list[Finding]:
    """A finding when the loss that came with the gradient is wrong, or came from elsewhere."""
    if LOSS in answer.faults:
        return [_faulty(truth, call, answer, LOSS)]
    if answer.loss is None:
        return []
    reference, bound = truth.loss, truth.rounding(definition).loss
    error = abs(answer.loss - reference)
    steady = LOSS not in answer.unsteady | answer.threaded
    good = bool(error <= bound) and steady
    blind = steady and not np.isfinite(bound)  # as where rounding alone takes a root out of its domain
    if (good or blind) and not isinstance(call, Foreign):
        return []
    cause = "no power" if blind else "" if steady else f"not deterministic{answer.where}"
    if not blind and not np.isfinite(answer.loss):
        cause = f"not finite{answer.where}"
    z = float(error / bound) if bound > 0 else (0.0 if error == 0 else float("inf"))
    worst = Worst((), answer.loss, reference, bound, z)
    relative = error / abs(reference) if reference else None
    spec = truth.problem.setup.spec.name
    verdict: Verdict = "pass" if good else "inconclusive" if blind else "wrong"
    return [Finding(spec, call.text, LOSS, (), 1, verdict, cause, worst, relative, None, None)]
