"""The power of a check on a spec: faults planted one by one in the reference interpreter, and judged like methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bpcli.checking.check_options import CheckOptions
from bpcli.checking.checker import check
from bpcli.checking.faults import CATALOGUE
from bpcli.checking.faults.fault import Fault, as_method, separate
from bpcli.checking.findings import Finding
from bpcli.checking.interpreter import RIGHT, interpreter_cost
from bpcli.methods import MethodCall
from bpcli.methods.base import Exact
from bpcli.problem.definition import Array, Problem, Setup
from bpcli.problem.draw import draw
from bpcli.references.base import FloatArray
from bpcli.references.numerics.rounding import rounding

Outcome = Literal["caught", "void", "missed"]
# A forward and three reverse passes for each of the two gradients that the check asks for, and again for one by itself.
_PASSES = 12
# Two gradients are compared, each with its rounding.
_BOTH = 2.0
_ZERO = "the gradient is zero or mere rounding, so nothing is tested; use other parameters, data or another seed"


@dataclass(frozen=True)
class Planted:
    """The outcome for one fault: "void" if it changes no entry beyond rounding and writes to no argument.

    `wrong` and `changed` name the tensors that the check found wrong, and those that the fault changes. `z` is the
    largest of the check. `advice` says how to change the spec so that a void fault has an effect.
    """

    spec: str
    fault: Fault
    outcome: Outcome
    wrong: tuple[str, ...]
    changed: tuple[str, ...]
    z: float | None
    advice: str


def power(setup: Setup, options: CheckOptions, faults: Sequence[Fault] = CATALOGUE) -> list[Planted]:
    """Plant every fault in the reference interpreter, on this spec, and judge its gradient.

    Estimates are computed once. Raises BpError as `check` does.
    """
    # New methods here and below, because some faults depend on the number of earlier calls.
    calls = [as_method(fault.name, fault.wrong) for fault in faults]
    findings = check(setup, calls, options)
    problem = draw(setup)
    right = as_method("right", RIGHT).gradient(problem).arrays
    slack = rounding(problem, Exact().over(setup), setup.dtype).gradient
    known = [(np.abs(right[x.name]), slack[x.name]) for x in setup.wrt]
    nothing = all(bool(((size <= room) & np.isfinite(room)).all()) for size, room in known)
    found = []
    for fault in faults:
        own = [f for f in findings if f.method == fault.name]
        changed = _changed(problem, as_method(fault.name, fault.wrong), right, slack)
        found.append(_outcome(setup.spec.name, fault, own, changed, _ZERO if nothing else fault.advice(setup)))
    return found


def power_cost(setup: Setup) -> float:
    """Predicted operations of planting all faults, without those of the check itself."""
    return _PASSES * len(CATALOGUE) * interpreter_cost(setup)


def _changed(
    problem: Problem, call: MethodCall, right: Mapping[str, Array], slack: Mapping[str, FloatArray]
) -> tuple[str, ...]:
    """The tensors whose gradient differs beyond rounding in two calls of a method; all if it writes to arguments."""
    own = separate(problem)
    answers = [call.gradient(own).arrays for _ in range(2)]
    kept = all(np.array_equal(own.array(x), problem.array(x)) for x in problem.setup.wrt)
    names = []
    for x in problem.setup.wrt:
        off = [np.abs(a[x.name].astype(float) - right[x.name]) <= _BOTH * slack[x.name] for a in answers]
        if x.entries and not (kept and all(o.all() for o in off)):
            names.append(x.name)
    return tuple(names)


def _outcome(spec: str, fault: Fault, findings: Sequence[Finding], changed: tuple[str, ...], advice: str) -> Planted:
    """The outcome from findings and changes; `advice` is kept for a void fault."""
    wrong = tuple(f.tensor for f in findings if f.verdict == "wrong")
    outcome: Outcome = "caught" if wrong else "missed" if changed else "void"
    z = max((f.worst.z for f in findings if f.worst is not None), default=None)
    return Planted(spec, fault, outcome, wrong, changed, z, advice if outcome == "void" else "")
