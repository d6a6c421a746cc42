"""What a check of this spec could reveal: faults are planted one by one, and judged like any method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bpcli.checking.check_options import CheckOptions
from bpcli.checking.checker import check
from bpcli.checking.faults.catalogue import CATALOGUE
from bpcli.checking.faults.fault import Fault, as_method, separate
from bpcli.checking.findings import Finding
from bpcli.checking.interpreter import RIGHT, work
from bpcli.methods import MethodCall
from bpcli.methods.base import Exact
from bpcli.problem.definition import Array, Problem, Setup
from bpcli.problem.draw import draw
from bpcli.references.base import FloatArray
from bpcli.references.numerics.rounding import rounding

Outcome = Literal["caught", "void", "missed"]
# Forwards, and three passes backwards; twice each, and once more to see what changes.
_PASSES = 12
# Both gradients may be off by their rounding.
_BOTH = 2.0
_ZERO = "the gradient is zero or rounding alone: nothing is tested; take other parameters, data or another seed"


@dataclass(frozen=True)
class Planted:
    """What became of one fault: "void" where it changes no entry beyond rounding, and nothing else that shows.

    `wrong` and `changed` name the tensors that the check found wrong, and those that the fault changes. `z` is the
    largest of the check. `advice` says what to change in the spec that a void fault could show.
    """

    spec: str
    fault: Fault
    outcome: Outcome
    wrong: tuple[str, ...]
    changed: tuple[str, ...]
    z: float | None
    advice: str


def power(setup: Setup, options: CheckOptions, faults: Sequence[Fault] = CATALOGUE) -> list[Planted]:
    """Plant every fault in the reference interpreter, on this spec, and judge what comes out.

    Estimates are computed once. `BpError` as for `check`.
    """
    # A method that is asked for the gradient with other bits each time must not meet what an earlier one left behind.
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
    """Predicted operations of planting all faults, besides those of the check itself."""
    return _PASSES * len(CATALOGUE) * work(setup)


def _changed(
    problem: Problem, call: MethodCall, right: Mapping[str, Array], slack: Mapping[str, FloatArray]
) -> tuple[str, ...]:
    """The tensors that two calls of a method change beyond rounding, or whose arguments they write to."""
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
    """`advice` is for a void fault."""
    wrong = tuple(f.tensor for f in findings if f.verdict == "wrong")
    outcome: Outcome = "caught" if wrong else "missed" if changed else "void"
    z = max((f.worst.z for f in findings if f.worst is not None), default=None)
    return Planted(spec, fault, outcome, wrong, changed, z, advice if outcome == "void" else "")
