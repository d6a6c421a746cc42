"""The values of nodes at every step, as a pass forwards computes them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpcli.graph.nodes import Phase
from bpcli.kernels.jit import BASE, INNER_ROW, STEP
from bpcli.kernels.trace import Trace
from bpcli.problem.layouts import plan_of
from bpcli.problem.model import Problem


def node_values(problem: Problem, nodes: Collection[int]) -> dict[int, NDArray[Any]]:
    """`(T, batch, size)` by node, or `(size,)` where a node is static; read-only, in the problem's dtype."""
    setup, graph = problem.setup, problem.setup.graph
    plan = plan_of(setup, setup.T, tuple(nodes))
    trace = Trace(plan, setup.dtype, problem.arrays)
    trace.start()
    for first in range(0, setup.T, plan.extent.chunk):
        trace.forward(first, min(setup.T, first + plan.extent.chunk))
    values = {}
    for index in nodes:
        node, place = graph.nodes[index], plan.values.table[index]
        if node.op == "input":
            values[index] = problem.inputs[node.name].reshape(setup.T, setup.batch, node.size)
        elif node.phase is Phase.STATIC:
            values[index] = trace.value(index, node.size)
        else:
            strides = tuple(int(n) * trace.V.itemsize for n in (place[STEP], place[INNER_ROW], 1))
            shape = (setup.T, setup.batch, node.size)
            values[index] = np.lib.stride_tricks.as_strided(trace.V[place[BASE] :], shape, strides, writeable=False)
    return values
