"""The whole loss of a problem, by a pass forwards."""

from __future__ import annotations

import numpy as np

from bpcli.kernels.trace import Trace
from bpcli.problem.cast import cast
from bpcli.problem.layouts import plan_of
from bpcli.problem.model import Problem
from bpcli.problem.sums import total_of
from bpcli.problem.unrolled import loss_weights


@np.errstate(all="ignore")  # what is not finite is for the check to tell
def whole_loss(problem: Problem) -> float:
    """The loss of all steps and samples, in float64."""
    double, steps = cast(problem, np.dtype(np.float64)), problem.setup.T
    plan = plan_of(double.setup, steps)
    trace, chunk = Trace(plan, double.setup.dtype, double.arrays), plan.extent.chunk
    trace.start()
    losses = np.zeros((steps, problem.setup.batch))
    for first in range(0, steps, chunk):
        last = min(steps, first + chunk)
        trace.forward(first, last)
        losses[first:last] = trace.losses(first, last)
    return float(total_of(losses[:, None], loss_weights(problem.setup)).sum())
