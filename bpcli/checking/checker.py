"""A check: each method's gradient judged against references that carry their own error bounds.

A tensor is judged entry by entry, or along random directions first where there are too many entries. Sharper and more
expensive references are used only where the first ones leave entries undecided.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from bpcli.checking.check_options import CheckOptions, choose, has_mean
from bpcli.checking.findings import Finding, Verdict, Worst, not_compared, overrule
from bpcli.checking.reference_cache import AUTO, ReferenceCache, mask_of
from bpcli.checking.sources.gradient_source import Answer, GradientSource, ask
from bpcli.checking.sources.validate_gradient import LOSS, on_pattern
from bpcli.checking.verdict import (
    JUMP,
    WRONG,
    Entries,
    accept_other_orders,
    accept_zeros,
    as_direction,
    at_kink,
    cosine,
    judge,
    kernel_error,
    relative_error,
    require_power,
    select,
    settle,
    small,
    summarise,
    tolerate,
    tolerate_along,
    undecided,
)
from bpcli.methods import MethodCall
from bpcli.methods.base import Definition, Exact, Expectation, Recursion, of_one_draw
from bpcli.problem.definition import Problem, Setup, Tensor
from bpcli.problem.draw import draw
from bpcli.references import complex_step
from bpcli.references.base import Estimate, FloatArray, forward_flops
from bpcli.references.numerics.expectation import DRAWS, mean_of
from bpcli.references.numerics.probe import directions, dot, norms
from bpcli.references.perturbation.perturbed import Executor
from bpcli.runtime.evaluation import check_finite

AFFORDABLE = 2e10
"""Predicted flops to spend on entries that the first references leave open, or on the search for a wrong entry."""
MOST_ERRORS = 10.0
"""Standard errors by which the mean of a right method may be off in any entry, over draws."""
_COMPLEX_FLOPS, _REAL_FLOPS = 4, 24
# Directions in each half of the entries during the search for wrong ones.
_PROBES = 2

Judge = Callable[[ReferenceCache, Definition, Tensor, FloatArray, Finding], Finding]
"""Takes the gradient of a tensor, in float64 and zero outside its pattern, and fills in a blank finding."""


def check(
    setup: Setup,
    calls: Sequence[MethodCall | GradientSource],
    options: CheckOptions,
    executor: Executor | None = None,
    told: Callable[[Sequence[Finding]], None] = lambda found: None,
) -> list[Finding]:
    """Judge the gradients of `calls`: a finding per method and tensor with entries, and one for a loss that is wrong.

    A gradient source other than a method has findings for unknown keys too, and one for its loss if it gives one.
    Methods must apply to the graph. The `executor` computes losses where that pays. `told` receives the findings on
    each method as they come. Raises BpError when the loss is not
    finite, or the reference does not apply.
    """
    return check_problem(draw(setup), calls, options, executor, told)


def check_problem(
    problem: Problem,
    calls: Sequence[MethodCall | GradientSource],
    options: CheckOptions,
    executor: Executor | None = None,
    told: Callable[[Sequence[Finding]], None] = lambda found: None,
) -> list[Finding]:
    """`check` on arrays that exist already."""
    setup = problem.setup
    check_finite(problem)
    chosen = choose(setup, calls, options)
    cache = ReferenceCache(problem, chosen.references, options.reference == AUTO, executor, options.tolerance)
    judge_tensor = judge_along if chosen.mode == "directional" else judge_entries
    findings: list[Finding] = []
    # A density may leave a tensor without entries to compare; it is judged only if all are like that.
    tensors = [t for t in setup.wrt if t.entries] or setup.wrt
    for call in calls:
        found = _check_call(cache, call, tensors, judge_tensor)
        wrong = any(f.verdict == "wrong" for f in found)
        if wrong and isinstance(call, GradientSource) and call.restart():
            found = _check_call(cache, call, tensors, judge_tensor)
        told(found)
        findings += found
    return findings


def _check_call(
    cache: ReferenceCache, call: MethodCall | GradientSource, tensors: Sequence[Tensor], judge_tensor: Judge
) -> list[Finding]:
    """All findings on one method or source."""
    setup = cache.problem.setup
    answer = ask(call, cache.problem)
    found = [_check_tensor(cache, call, answer, tensor, judge_tensor) for tensor in tensors]
    if has_mean(setup, call) and all(f.verdict == "pass" for f in found):
        found = _check_mean(cache.problem, call.definition(setup), found)
    found += _check_loss(cache, call, answer)
    unknown = [name for name in answer.faults if name not in {LOSS, *(t.name for t in setup.wrt)}]
    return found + [not_compared(setup.spec.name, call.text, n, answer.faults[n]) for n in unknown]


def _check_mean(problem: Problem, definition: Definition, found: list[Finding]) -> list[Finding]:
    """Findings on right draws of a random method, overruled where the mean is another: for certain over all outcomes.

    Over draws a rare outcome may be missed, so that they accuse nothing.
    """
    assert isinstance(definition, Expectation)
    mean = mean_of(problem, definition)
    judged = list[Finding]()
    for finding in found:
        off = mean.off[finding.tensor]
        if mean.bits is not None and off > 1:
            finding = overrule(finding, f"wrong in the mean over all {2**mean.bits} outcomes of its random bits")
        elif mean.bits is None and off > MOST_ERRORS:
            cause = f"the mean over {DRAWS} draws is off by {off:.2g} standard errors"
            finding = replace(finding, verdict="inconclusive", cause=cause)
        judged.append(finding)
    return judged


def _check_tensor(
    cache: ReferenceCache, call: MethodCall | GradientSource, answer: Answer, tensor: Tensor, judge_tensor: Judge
) -> Finding:
    setup, given = cache.problem.setup, answer.arrays.get(tensor.name)
    blank = not_compared(setup.spec.name, call.text, tensor.name, "", tensor.shape)
    if tensor.name in answer.faults:
        return replace(blank, cause=answer.faults[tensor.name])
    if given is None:
        return replace(blank, cause="missing")
    if given.shape != tensor.shape:
        return replace(blank, cause="wrong shape")
    if given.dtype != setup.dtype:
        return replace(blank, cause="wrong type")
    value = on_pattern(given, tensor).astype(np.float64)
    found = _judge_sides(cache, of_one_draw(call.definition(setup)), tensor, value, blank, judge_tensor)
    if answer.changed:
        named = f": {', '.join(answer.changed)}" if answer.where else ""
        return overrule(found, f"changes its arguments{named}{answer.where}")
    if tensor.name in answer.unsteady:
        return overrule(found, f"not deterministic{answer.where}")
    if tensor.name in answer.threaded:
        return overrule(found, "depends on the order of parallel jobs")
    if found.verdict == "wrong" and found.cause:
        return replace(found, cause=found.cause + answer.where)
    return found


def _judge_sides(
    cache: ReferenceCache, definition: Definition, tensor: Tensor, value: FloatArray, blank: Finding, judge: Judge
) -> Finding:
    """Judge a gradient; at a jump it passes if it is right on one side, and is wrong if it is so on all."""
    if not cache.jumps:
        return judge(cache, definition, tensor, value, blank)
    # A recursion is measured by steps of the network as it is.
    caches, complete = ((cache,), False) if isinstance(definition, Recursion) else cache.sides
    found: list[Finding] = []
    for side in caches:
        found.append(judge(side, definition, tensor, value, blank))
        if found[-1].verdict == "pass":
            return found[-1]
    if complete and all(f.verdict == "wrong" for f in found):
        return found[0]
    return replace(found[0], verdict="inconclusive", cause=JUMP, kernel_error=None, bias=None, cosine=None)


def _check_loss(cache: ReferenceCache, call: MethodCall | GradientSource, answer: Answer) -> list[Finding]:
    """A finding if the loss that came with the gradient is wrong, or is not that of one of bp's methods."""
    spec = cache.problem.setup.spec.name
    if LOSS in answer.faults:
        return [not_compared(spec, call.text, LOSS, answer.faults[LOSS])]
    given = answer.loss
    if given is None:
        return []
    definition = of_one_draw(call.definition(cache.problem.setup))
    caches, complete = cache.sides
    if isinstance(definition, Recursion) and cache.jumps:
        definition = Exact()  # which has the same loss
    each = [(side.loss, side.rounding(definition).loss) for side in caches]
    reference, bound = min(each, key=lambda pair: abs(given - pair[0]) - pair[1])
    error = abs(given - reference)
    steady = LOSS not in answer.unsteady | answer.threaded
    good = bool(error <= bound) and steady
    # Rounding alone may take a root out of its domain, or the network to a side of a jump that was not tried.
    blind = steady and (not np.isfinite(bound) or not (good or complete))
    if (good or blind) and not isinstance(call, GradientSource):
        return []
    cause = (JUMP if cache.jumps else "no power") if blind else "" if steady else f"not deterministic{answer.where}"
    if not blind and not np.isfinite(given):
        cause = f"not finite{answer.where}"
    z = float(error / bound) if bound > 0 else (0.0 if error == 0 else float("inf"))
    worst = Worst((), given, reference, bound, z)
    relative = error / abs(reference) if reference else None
    verdict: Verdict = "pass" if good else "inconclusive" if blind else "wrong"
    return [Finding(spec, call.text, LOSS, (), 1, verdict, cause, worst, relative, None, None)]


def judge_entries(
    cache: ReferenceCache, definition: Definition, tensor: Tensor, value: FloatArray, blank: Finding
) -> Finding:
    """Judge every entry."""
    entries = decide(cache, definition, tensor, value)
    verdict, cause, worst = summarise(entries, tensor.pattern)
    found = replace(blank, checked=tensor.entries, verdict=verdict, cause=cause, worst=worst)
    true = cache.estimates(Exact(), tensor).judge
    if verdict == "pass" and _unique(true) and _vanishes(true, entries):
        return found
    return replace(
        found,
        kernel_error=kernel_error(value, cache.estimates(definition, tensor).judge),
        bias=relative_error(value, true.value) if _unique(true) else None,
        cosine=cosine(value, true.value) if _unique(true) else None,
        kink=at_kink(entries, worst, tensor.pattern),
    )


def judge_along(
    cache: ReferenceCache, definition: Definition, tensor: Tensor, value: FloatArray, blank: Finding
) -> Finding:
    """Judge directions; if they do not pass, every entry, or as many of those that look wrong as are affordable.

    Every entry is judged too where directions are at a kink, if that is affordable. Errors are estimates: the mean
    square of a tensor's components along Gaussian directions is that of its norm.
    """
    rows = directions(tensor)
    entries = decide_along(cache, definition, tensor, value, rows)
    verdict, cause, worst = summarise(entries)
    found = replace(blank, checked=len(rows), verdict=verdict, cause=cause, worst=as_direction(worst))
    true = cache.along(Exact(), tensor, rows).judge
    if verdict == "pass" and _unique(true) and _vanishes(true, entries):
        return found
    found = replace(
        found,
        kernel_error=kernel_error(entries.value, cache.along(definition, tensor, rows).judge),
        bias=relative_error(dot(rows, value), true.value) if _unique(true) else None,
    )
    # A value between the one-sided derivatives along a direction may be due to an error in any of its entries.
    if verdict == "pass" and not (cause == "kink" and affordable(cache, definition, tensor.entries)):
        return found
    part = _search(cache, definition, tensor, value)
    looked = judge_entries(cache.restricted(part), definition, part, value, blank)
    if part is tensor:
        return looked
    if looked.verdict != "wrong":  # that a part passes says nothing about the whole tensor
        return found
    return replace(looked, kernel_error=found.kernel_error, bias=found.bias, cosine=None)


def _unique(true: Estimate) -> bool:
    """Whether the true gradient is known and has no kink."""
    return not (true.kink > 0).any() and bool(np.isfinite(true.bound).all())


def _vanishes(true: Estimate, entries: Entries) -> bool:
    """Whether a gradient is rounding alone, so that relative errors mean nothing."""
    largest = np.maximum(np.abs(true.value), np.abs(entries.reference))
    return bool((largest <= entries.bound).all())


def decide(cache: ReferenceCache, definition: Definition, tensor: Tensor, value: FloatArray) -> Entries:
    """The verdict on each entry of a gradient `value`, in float64, by as sharp references as are needed."""
    known = cache.rounding(definition)
    rounding = cache.allow_overflow(definition, value, known.gradient[tensor.name])
    dtype = cache.problem.setup.dtype
    entries = judge(value, cache.estimates(definition, tensor), rounding, dtype)
    if entries.suspect.any():
        entries = judge(value, cache.estimates(definition, tensor, second=True), rounding, dtype)
    places = _open(entries, tensor)
    if len(places) and cache.can_sharpen(definition) and affordable(cache, definition, len(places)):
        sharper = judge(value, cache.sharper(definition, tensor, places), rounding, dtype)
        entries = select(mask_of(places, value.shape), sharper, entries)
        if len(places := _open(entries, tensor)):
            entries = settle(entries, *cache.taylor_verdicts(definition, tensor, places, value, entries.reference))
    entries = accept_other_orders(entries, known.terms[tensor.name])
    entries = require_power(entries, known.scale, known.lost[tensor.name])
    real, each = (
        cache.estimates(definition, tensor).central,
        (rounding, known.lost[tensor.name], known.terms[tensor.name]),
    )
    entries = accept_zeros(entries, real, each, known.scale, small(dtype))
    if cache.tolerance > 0:
        entries = tolerate(entries, cache.tolerance * float(np.abs(entries.reference).max(initial=0.0)))
    return entries


def decide_along(
    cache: ReferenceCache, definition: Definition, tensor: Tensor, value: FloatArray, rows: FloatArray
) -> Entries:
    """The verdict on `value` along each of the directions `rows (K, size)`."""
    known = cache.rounding(definition)
    rounding, lost, terms = (norms(rows, part[tensor.name]) for part in (known.gradient, known.lost, known.terms))
    along, dtype = dot(rows, value), cache.problem.setup.dtype
    rounding = cache.allow_overflow(definition, along, rounding)
    entries = judge(along, cache.along(definition, tensor, rows), rounding, dtype)
    if entries.suspect.any():
        entries = judge(along, cache.along(definition, tensor, rows, second=True), rounding, dtype)
    scale = known.scale * np.sqrt((rows**2).sum(axis=1))
    entries = require_power(entries, scale, lost)
    real = cache.along(definition, tensor, rows).central
    entries = accept_zeros(entries, real, (rounding, lost, terms), scale, small(dtype))
    if cache.tolerance > 0:
        largest = float(np.abs(value[np.isfinite(value)]).max(initial=0.0))
        entries = tolerate_along(entries, cache.tolerance, rows, largest)
    return entries


def _search(cache: ReferenceCache, definition: Definition, tensor: Tensor, value: FloatArray) -> Tensor:
    """The tensor, or a part of it that is affordable to judge entry by entry, where directions say that it is wrong.

    Bisection of the entries: of two halves the one with the larger error along directions is kept.
    """
    places = tensor.pattern if tensor.pattern is not None else np.arange(tensor.entries, dtype=np.int64)
    part = tensor
    while len(places) > 1 and not affordable(cache, definition, len(places)):
        halves = np.array_split(places, 2)
        parts = [replace(tensor, pattern=half) for half in halves]
        larger = int(np.argmax([_error_along(cache, definition, half, value) for half in parts]))
        part, places = parts[larger], halves[larger]
    return part


def _error_along(cache: ReferenceCache, definition: Definition, tensor: Tensor, value: FloatArray) -> float:
    """The largest z of wrong directions among the entries of the tensor's pattern, infinite for NaN."""
    entries = decide_along(cache, definition, tensor, value, directions(tensor, _PROBES))
    return float(np.where(entries.verdict == WRONG, np.nan_to_num(entries.z, nan=np.inf), 0.0).max())


def _open(entries: Entries, tensor: Tensor) -> NDArray[np.int64]:
    places = np.flatnonzero(undecided(entries))
    return places if tensor.pattern is None else np.intersect1d(places, tensor.pattern)


def affordable(cache: ReferenceCache, definition: Definition, count: int) -> bool:
    """Whether the judging reference can estimate so many entries."""
    exact = cache.references[0].name == complex_step.REFERENCE.name
    each = _COMPLEX_FLOPS if exact else _REAL_FLOPS
    return each * count * forward_flops(cache.problem.setup, cache.windows(definition)) <= AFFORDABLE
