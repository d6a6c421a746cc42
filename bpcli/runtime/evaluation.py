"""Forward passes: the loss of a problem, the values of nodes at every step, the first value that is not finite."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpcli.errors import fail
from bpcli.graph.nodes import Node, Phase
from bpcli.problem.definition import Array, FloatArray, Problem, Setup, Values, cast
from bpcli.runtime.copies import plan_of
from bpcli.runtime.reverse_mode import loss_weights
from bpcli.runtime.trace import Disturbance, Trace
from bpcli.tape.instructions import BASE, INNER_ROW, STEP
from bpcli.tape.lowering import LEAVES

# Steps from which on they are summed in lanes.
_MANY = 512


@np.errstate(all="ignore")  # callers look for losses that are not finite
def total_of(losses: Values, weights: FloatArray) -> Values:
    """The weighted sum (copies, rows) over steps, compensated (Kahan), so that it adds no noise of its own.

    Many steps are summed in lanes side by side, and then the lanes, with what these have lost to rounding.
    """
    steps = len(losses)
    if steps <= _MANY:
        return _compensated(loss * weight for loss, weight in zip(losses, weights, strict=True))[0]
    lanes = math.isqrt(steps)
    even = steps // lanes * lanes
    blocks = (losses[t : t + lanes] * weights[t : t + lanes, None] for t in range(0, even, lanes))
    total, lost = _compensated(blocks)
    rest = losses[even:] * weights[even:, None]
    return _compensated(np.concatenate([total, -lost, rest]))[0]


def _compensated(terms: Iterable[Values]) -> tuple[Values, Values]:
    """The sum of terms of one shape, and by how much it is too large."""
    total = lost = np.zeros(())
    for each in terms:
        term = each - lost
        new = total + term
        lost = (new - total) - term
        total = new
    return total, lost


def node_values(
    problem: Problem, nodes: Collection[int], disturbance: Disturbance | None = None
) -> dict[int, NDArray[Any]]:
    """`(T, batch, size)` by node, or `(size,)` where a node is static; read-only, in the problem's dtype."""
    setup, graph = problem.setup, problem.setup.graph
    plan = plan_of(setup, setup.T, tuple(nodes))
    trace = Trace(plan, setup.dtype, problem.arrays, disturbance=disturbance)
    for _ in trace.chunks(setup.T):
        pass
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


@np.errstate(all="ignore")  # the check reports values that are not finite
def whole_loss(problem: Problem) -> float:
    """The loss of all steps and samples, in float64."""
    double, steps = cast(problem, np.dtype(np.float64)), problem.setup.T
    trace = Trace(plan_of(double.setup, steps), double.setup.dtype, double.arrays)
    losses = np.zeros((steps, problem.setup.batch))
    for first, last in trace.chunks(steps):
        losses[first:last] = trace.losses(first, last)
    return float(total_of(losses[:, None], loss_weights(problem.setup)).sum())


_COMPLEX = np.dtype(np.complex128)
_STEP = 1e-30
"""Imaginary step: products of two are negligible beside the values, and none underflows."""


@np.errstate(all="ignore")
def loss_along(problem: Problem, direction: Mapping[str, Array]) -> tuple[float, float]:
    """The total loss, and its derivative along `direction`, by the names of tensors of the setup and in their shapes.

    One forward pass in complex arithmetic, whose imaginary parts are tangents.
    """
    setup, loss = problem.setup, problem.setup.graph.loss
    moved = cast(problem, _COMPLEX)
    for x in setup.wrt:
        if x.name in direction:
            moved = moved.with_array(x, moved.array(x) + 1j * _STEP * direction[x.name].reshape(x.shape))
    weights = loss_weights(setup)
    losses = np.broadcast_to(node_values(moved, {loss})[loss], (setup.T, setup.batch, 1))
    total = total_of(losses[:, None, :, 0], weights).sum()
    return float(total.real), float(total.imag / _STEP)


def loss_along_bytes(setup: Setup) -> int:
    """Bytes held by `loss_along`: the forward pass, and the arrays before and after the step."""
    declared = (*setup.spec.params.values(), *setup.spec.inputs.values(), *setup.spec.states.values())
    numbers = sum(math.prod(setup.array_shape(x)) for x in declared)
    return _COMPLEX.itemsize * (plan_of(setup, setup.T, (setup.graph.loss,)).entries + 2 * numbers)


_SMALLER = "scale the parameters or the inputs, or keep arguments in range"


def check_finite(problem: Problem) -> None:
    """Raise `BpError` that names the first value that is not finite, if there is one, in a pass forwards."""
    setup = problem.setup
    trace = Trace(plan_of(setup, setup.T), setup.dtype, problem.arrays)
    for first, last in trace.chunks(setup.T):
        if not np.isfinite(trace.losses(first, last)).all():
            _find(problem)


def _find(problem: Problem) -> None:
    """Refuse the first value that is not finite, one step at a time: also those that only their step holds."""
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
            what = f"the loss is not finite where the check starts: the first non-finite value is {_called(node)}{when}"
            fail("not-finite", what, node.place, help=_SMALLER)
    fail("not-finite", "the loss is not finite where the check starts", graph.nodes[graph.loss].place, help=_SMALLER)


def _called(node: Node) -> str:
    return f'"{node.name}"' if node.name else f"that of {node.op}"
