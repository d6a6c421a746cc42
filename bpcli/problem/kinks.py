"""Arguments of relu, leaky_relu and abs that are zero as far as rounding can tell: there no branch is the right one.

Everywhere else the program follows the branch that it took, and is analytic. How much an argument rounds is measured,
between passes in float32 and in float64 on the same arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpcli.graph.model import Graph, Phase
from bpcli.graph.operations import OPERATIONS
from bpcli.kernels.copies import Copies
from bpcli.kernels.plan import make_plan
from bpcli.kernels.rows import BASE, INNER_ROW, STEP
from bpcli.kernels.trace import Trace
from bpcli.problem.cast import cast
from bpcli.problem.model import Problem

Mask = NDArray[np.bool_]
# Root mean squares of the rounding of one node's entries that an argument may be off by.
_FACTOR = 8.0
_SINGLE, _DOUBLE = np.dtype(np.float32), np.dtype(np.float64)


@dataclass(frozen=True, eq=False)
class Kinks:
    """Where arguments are at a kink: `steps[node] (T, batch, size)`, `static[node] (size,)` where nothing varies."""

    steps: Mapping[int, Mask]
    static: Mapping[int, Mask]

    def moved(self, copies: Copies, nodes: Iterable[int], steps: NDArray[np.int64], j: int) -> Mask:
        """(copies, rows): which move an argument at a kink by an imaginary step, in the j-th of `steps`."""
        layout = copies.layout
        found = np.zeros((layout.copies, layout.rows), dtype=np.bool_)
        for node in nodes:
            rows, entries = np.nonzero(self.steps[node][steps[j]].reshape(layout.rows, -1))
            if not len(rows):
                continue
            shape = (layout.copies, layout.rows, -1) if node in layout.reached else (layout.steps, layout.rows, -1)
            held = copies.block(node).reshape(shape)
            held = held if node in layout.reached else held[j : j + 1]
            for row, column in zip(rows, (held[:, rows, entries].imag != 0).T, strict=True):
                found[:, row] |= column
        return found

    def moved_static(self, values: Callable[[int], NDArray[Any]]) -> bool:
        """Whether the static phase has an imaginary part in an argument at a kink; `values` takes a node to its own."""
        return any(bool((values(node)[mask].imag != 0).any()) for node, mask in self.static.items())


NONE = Kinks({}, {})


def find_kinks(problem: Problem) -> Kinks:
    """The arguments that rounding in the problem's dtype may take to the other side of zero, or that are zero."""
    arguments = _arguments(problem.setup.graph)
    if not arguments:
        return NONE
    with np.errstate(all="ignore"):
        single, double = (_values(cast(problem, dtype), arguments) for dtype in (_SINGLE, _DOUBLE))
        scale = np.finfo(problem.setup.dtype).eps / np.finfo(_SINGLE).eps
        steps: dict[int, Mask] = {}
        static: dict[int, Mask] = {}
        for node, exact in double.items():
            spread = float(np.sqrt(np.mean((single[node] - exact)[np.isfinite(exact)] ** 2)))
            reach = _FACTOR * scale * spread if np.isfinite(spread) else 0.0
            mask = np.abs(exact) <= reach
            if mask.any():
                (static if mask.ndim == 1 else steps)[node] = mask
    return Kinks(steps, static)


def _arguments(graph: Graph) -> dict[int, list[tuple[int, int]]]:
    """The nodes whose values go into operations with a kink, and the stretches of their entries that do."""
    found: dict[int, list[tuple[int, int]]] = {}
    for node in graph.nodes:
        if node.op in OPERATIONS and not OPERATIONS[node.op].analytic:
            argument, shift = graph.nodes[node.args[0]], 0
            while argument.op == "slice":
                shift += int(argument.numbers[0])
                argument = graph.nodes[argument.args[0]]
            found.setdefault(argument.index, []).append((shift, shift + graph.nodes[node.args[0]].size))
    return found


def _values(problem: Problem, arguments: Mapping[int, list[tuple[int, int]]]) -> dict[int, NDArray[Any]]:
    """Float64 values `(T, batch, size)`, or `(size,)` of static nodes, infinite where they meet no kink."""
    setup, graph = problem.setup, problem.setup.graph
    plan = make_plan(graph, [], setup.batch, setup.T, [], reads=list(arguments))
    trace = Trace(plan, setup.dtype, problem.arrays)
    trace.start()
    for first in range(0, setup.T, plan.extent.chunk):
        trace.forward(first, min(setup.T, first + plan.extent.chunk))
    values = {}
    for index, stretches in arguments.items():
        node, place = graph.nodes[index], plan.values.table[index]
        if node.op == "input":
            held = problem.inputs[node.name].reshape(setup.T, setup.batch, node.size)
        elif node.phase is Phase.STATIC:
            held = trace.value(index, node.size)
        else:
            strides = tuple(int(n) * trace.V.itemsize for n in (place[STEP], place[INNER_ROW], 1))
            shape = (setup.T, setup.batch, node.size)
            held = np.lib.stride_tricks.as_strided(trace.V[place[BASE] :], shape, strides, writeable=False)
        kept = np.full(held.shape, np.inf)
        for start, stop in stretches:
            kept[..., start:stop] = held[..., start:stop]
        values[index] = kept
    return values
