"""A check starts from finite values: the first node that is not is named."""

from __future__ import annotations

import numpy as np

from bpcli.errors import fail
from bpcli.graph.nodes import Node, Phase
from bpcli.kernels.jit import BASE
from bpcli.kernels.trace import Trace
from bpcli.problem.layouts import plan_of
from bpcli.problem.model import Problem
from bpcli.tape.lowering import LEAVES

_SMALLER = "scale the parameters or the inputs, or keep arguments in range"


def check_finite(problem: Problem) -> None:
    """Raise `BpError` that names the first value that is not finite, if there is one, in a pass forwards."""
    setup = problem.setup
    plan = plan_of(setup, setup.T)
    trace, chunk = Trace(plan, setup.dtype, problem.arrays), plan.extent.chunk
    trace.start()
    for first in range(0, setup.T, chunk):
        last = min(setup.T, first + chunk)
        trace.forward(first, last)
        if not np.isfinite(trace.losses(first, last)).all():
            _find(problem)


def _find(problem: Problem) -> None:
    """The same, one step at a time: what a step does not keep for others is looked at too."""
    setup = problem.setup
    trace = Trace(plan_of(setup, 1), setup.dtype, problem.arrays)
    trace.start()
    for t in range(setup.T):
        trace.forward(t, t + 1)
        if not np.isfinite(trace.losses(t, t + 1)).all():
            _refuse(problem, trace, t)
        trace.slide(1)


def _refuse(problem: Problem, trace: Trace, t: int) -> None:
    setup, graph = problem.setup, problem.setup.graph
    for node in graph.nodes:
        if node.op in LEAVES or trace.plan.values.table[node.index, BASE] < 0 or node.index in trace.plan.forward.alias:
            continue
        values = trace.value(node.index, node.size * (1 if node.phase is Phase.STATIC else setup.batch))
        if not np.isfinite(values).all():
            when = f" at step {t + 1}" if graph.recurrent else ""
            what = (
                f"the loss is not finite where the check starts: the first value that is not is {_called(node)}{when}"
            )
            fail("not-finite", what, node.place, help=_SMALLER)
    fail("not-finite", "the loss is not finite where the check starts", graph.nodes[graph.loss].place, help=_SMALLER)


def _called(node: Node) -> str:
    return f'"{node.name}"' if node.name else f"that of {node.op}"
