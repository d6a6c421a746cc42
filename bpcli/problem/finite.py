"""A check starts from finite values: the first node that is not is named."""

from __future__ import annotations

import numpy as np

from bpcli.errors import fail
from bpcli.graph.model import Phase
from bpcli.kernels.plan import make_plan
from bpcli.kernels.rows import BASE, INNER_ROW
from bpcli.kernels.trace import Trace
from bpcli.problem.model import Problem


def check_finite(problem: Problem) -> None:
    """Raise `BpError` at the first node whose value is not finite, if the loss is not finite."""
    setup, graph = problem.setup, problem.setup.graph
    everything = [n.index for n in graph.nodes if n.phase is not Phase.STATIC]
    plan = make_plan(graph, [], setup.batch, 1, [])
    trace = Trace(plan, setup.dtype, (problem.params, problem.inputs, problem.state))
    trace.start()
    for t in range(setup.T):
        trace.forward(t, t + 1)
        if not np.isfinite(trace.losses(t, t + 1)).all():
            break
        if t + 1 < setup.T:
            trace.slide(1)
    else:
        return
    del everything
