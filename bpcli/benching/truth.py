"""The true gradient at a point of a sweep, and how far another one is from it."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from bpcli.checking.verdict import cosine, relative_error
from bpcli.methods import parse
from bpcli.methods.base import Gradient
from bpcli.problem.definition import Problem, Setup
from bpcli.problem.limits import Limits, array_bytes


def exact_method(setup: Setup) -> str:
    """The method that gives the true gradient of a graph at the least cost."""
    return "bptt" if setup.graph.recurrent else "backprop"


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
