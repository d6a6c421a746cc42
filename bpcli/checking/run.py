"""A check: every method's gradient against references that carry their own error bounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from bpcli.checking.answers import Answer, Foreign, ask
from bpcli.checking.findings import Finding, Verdict, Worst
from bpcli.checking.forecast import check_bytes as check_bytes
from bpcli.checking.forecast import on_a_sample as on_a_sample
from bpcli.checking.returned import LOSS, on_pattern
from bpcli.checking.truth import Truth, references_for, truth_cost, whole
from bpcli.checking.verdict import judge, nearest, summarise
from bpcli.methods import MethodCall
from bpcli.methods.base import Window
from bpcli.problem.draw import draw
from bpcli.problem.finite import check_finite
from bpcli.problem.model import Setup, Tensor
from bpcli.references.base import Estimate, FloatArray

_ASKED = 2


@dataclass(frozen=True)
class CheckOptions:
    """`reference` judges: "auto" takes the sharpest that applies, and differences beside it.

    Every entry is judged. The mode "full" puts differences beside every one, "auto" where that is affordable.
    """

    reference: Literal["auto", "central", "complex-step"] = "auto"
    mode: Literal["auto", "full"] = "auto"


def check(setup: Setup, calls: Sequence[MethodCall | Foreign], options: CheckOptions) -> list[Finding]:
    """Judge the gradients of `calls`: a finding per method and tensor with entries, and one for a loss that is wrong.

    What comes from elsewhere has findings for unknown keys too, and one for its loss if it gives one. Methods must
    apply to the graph. `BpError` when the loss is not finite, or the reference does not apply.
    """
    references = references_for(setup, options.reference, options.mode)
    problem = draw(setup)
    check_finite(problem)
    truth = Truth(problem, references)
    findings: list[Finding] = []
    # A density may leave a tensor without entries: nothing exists to compare, and the others decide if there are any.
    tensors = [t for t in setup.wrt if t.entries] or setup.wrt
    for call in calls:
        windows = tuple(call.windows(setup))
        answer = ask(call, problem)
        findings += [_finding(truth, call, windows, answer, tensor) for tensor in tensors]
        findings += _loss_findings(truth, call, windows, answer)
        unknown = [name for name in answer.faults if name not in {LOSS, *(t.name for t in setup.wrt)}]
        findings += [_faulty(truth, call, answer, name) for name in unknown]
    return findings


def check_cost(setup: Setup, calls: Sequence[MethodCall | Foreign], options: CheckOptions) -> float:
    """Predicted floating-point operations of `check`."""
    windows = {tuple(call.windows(setup)) for call in calls}
    used = references_for(setup, options.reference, options.mode)
    return truth_cost(setup, windows, used) + sum(_ASKED * call.cost(setup).flops for call in calls)


def _finding(
    truth: Truth, call: MethodCall | Foreign, windows: tuple[Window, ...], answer: Answer, tensor: Tensor
) -> Finding:
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
    found = _judged(truth, windows, tensor, given.astype(np.float64), blank)
    if answer.changed:
        named = f": {', '.join(answer.changed)}" if answer.where else ""
        return replace(found, verdict="wrong", cause=f"changes its arguments{named}{answer.where}")
    if tensor.name in answer.unsteady:
        return replace(found, verdict="wrong", cause=f"not deterministic{answer.where}")
    if found.verdict == "wrong" and found.cause:
        return replace(found, cause=found.cause + answer.where)
    return found


def _faulty(
    truth: Truth, call: MethodCall | Foreign, answer: Answer, name: str, shape: tuple[int, ...] = ()
) -> Finding:
    """The finding on what can't be compared."""
    cause, spec = answer.faults[name], truth.problem.setup.spec.name
    return Finding(spec, call.text, name, shape, 0, "wrong", cause, None, None, None, None)


def _judged(truth: Truth, windows: tuple[Window, ...], tensor: Tensor, value: FloatArray, blank: Finding) -> Finding:
    """The verdict, with a second ladder of differences where the first is not enough to condemn."""
    rounding = truth.rounding(windows).gradient[tensor.name]
    dtype = truth.problem.setup.dtype
    value = np.asarray(on_pattern(value, tensor), dtype=np.float64)
    entries = judge(value, truth.estimates(windows, tensor), rounding, dtype)
    if entries.suspect.any():
        entries = judge(value, truth.estimates(windows, tensor, second=True), rounding, dtype)
    verdict, cause, worst = summarise(entries, tensor.pattern)
    true = truth.best(whole(truth.problem.setup), tensor).value
    return replace(
        blank,
        checked=tensor.entries,
        verdict=verdict,
        cause=cause,
        worst=worst,
        kernel_error=_kernel_error(value, truth.best(windows, tensor)),
        bias=relative_error(value, true),
        cosine=cosine(value, true),
    )


def _kernel_error(value: FloatArray, intended: Estimate) -> float:
    """Distance from the nearest derivative, relative to the largest: away from kinks there is only one."""
    off, size = _norm(value - nearest(value, intended)), _norm(np.abs(intended.value) + intended.kink)
    if size > 0:
        return off / size
    return 0.0 if off == 0 else float("inf")


def _loss_findings(
    truth: Truth, call: MethodCall | Foreign, windows: tuple[Window, ...], answer: Answer
) -> list[Finding]:
    """A finding when the loss that came with the gradient is wrong, or came from elsewhere."""
    if LOSS in answer.faults:
        return [_faulty(truth, call, answer, LOSS)]
    if answer.loss is None:
        return []
    reference, bound = truth.loss, truth.rounding(windows).loss
    error = abs(answer.loss - reference)
    steady = LOSS not in answer.unsteady
    good = bool(error <= bound) and steady
    if good and not isinstance(call, Foreign):
        return []
    cause = "" if steady else f"not deterministic{answer.where}"
    if not np.isfinite(answer.loss):
        cause = f"not finite{answer.where}"
    z = float(error / bound) if bound > 0 else (0.0 if error == 0 else float("inf"))
    worst = Worst((), answer.loss, reference, bound, z)
    relative = error / abs(reference) if reference else None
    spec = truth.problem.setup.spec.name
    verdict: Verdict = "pass" if good else "wrong"
    return [Finding(spec, call.text, LOSS, (), 1, verdict, cause, worst, relative, None, None)]


def relative_error(value: FloatArray, reference: FloatArray) -> float | None:
    """‖value − reference‖ / ‖reference‖ in the Euclidean norm; None where the reference is zero."""
    size = _norm(reference)
    return _norm(value - reference) / size if size > 0 else None


def cosine(value: FloatArray, reference: FloatArray) -> float | None:
    """Cosine of the angle between two gradients; None where one of them is zero or not finite."""
    sizes = _norm(value), _norm(reference)
    if not all(0 < size < np.inf for size in sizes):
        return None
    return float(np.dot(value.reshape(-1) / sizes[0], reference.reshape(-1) / sizes[1]))


def _norm(array: FloatArray) -> float:
    """Euclidean norm, scaled so that it neither overflows nor underflows."""
    largest = float(np.abs(array).max())
    if not 0 < largest < np.inf:
        return largest
    return largest * float(np.linalg.norm(array.reshape(-1) / largest))
