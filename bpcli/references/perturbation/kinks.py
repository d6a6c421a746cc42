"""Kinks: arguments of relu, leaky_relu and abs that are zero as far as rounding can tell, so that no branch is right.

Everywhere else the program follows the branch that it took, and is analytic: imaginary steps keep to it, and real ones
must not leave it. The rounding error of an argument is measured: between forward passes in float32 and float64 on the
same arrays, and between float64 passes with and without simulated rounding, as not all of it is linear in unit
roundoff (the sine of a number of 10¹⁶ is anything).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpcli.graph.nodes import Graph
from bpcli.graph.operations import OPERATIONS
from bpcli.problem.definition import Problem, cast
from bpcli.runtime.copies import Copies
from bpcli.runtime.evaluation import node_values
from bpcli.runtime.trace import Disturbance

Mask = NDArray[np.bool_]
FloatArray = NDArray[np.float64]

FREE = -1.0
"""How far the kinks are that are not met."""
# Root mean squares of the rounding of one node's entries at a step that an argument may be off by.
_FACTOR = 8.0
# Simulated rounding: the largest relative disturbance in units of eps, and how many passes.
_EPS, _SAMPLES = 4.0, 4
_SINGLE, _DOUBLE = np.dtype(np.float32), np.dtype(np.float64)


@dataclass(frozen=True, eq=False)
class Branches:
    """The arguments of one node, `(T, batch, size)` or, where nothing varies, `(size,)`.

    `at` marks those at a kink; those that are `off` one are `above` zero or below it.
    """

    at: Mask
    off: Mask
    above: Mask

    def met(self, held: NDArray[Any], where: Any = ...) -> FloatArray:
        """`(copies, rows)`: how many steps away the furthest kink is that each copy meets, `FREE` where it meets none.

        `held (copies, rows, size)` are the arguments at `where` after a step. An imaginary step meets a kink when it
        moves an argument that is at one. A real step that changes a branch has met a kink, no matter how far it is.
        """
        at, off, above = (mask[where].reshape(held.shape[1:]) for mask in (self.at, self.off, self.above))
        if held.dtype.kind != "c":
            return np.where((((held > 0) != above) & off).any(axis=2), np.inf, FREE)
        found = np.full(held.shape[:2], FREE)
        rows, entries = np.nonzero(at)
        for row, values in zip(rows, held[:, rows, entries].T, strict=True):
            away = np.abs(values.real / np.where(values.imag == 0, 1.0, values.imag))
            found[:, row] = np.maximum(found[:, row], np.where(values.imag == 0, FREE, away))
        return found


@dataclass(frozen=True, eq=False)
class Kinks:
    """The arguments of operations with a kink, by node: what every step and sample has of its own, and the rest."""

    steps: Mapping[int, Branches]
    static: Mapping[int, Branches]

    @property
    def any(self) -> bool:
        """Whether an argument is at a kink."""
        return any(bool(b.at.any()) for b in (*self.steps.values(), *self.static.values()))

    def met(self, copies: Copies, nodes: Iterable[int], steps: NDArray[np.int64], j: int) -> FloatArray:
        """(copies, rows): as of `Branches`, by the values of `nodes` at the j-th of `steps`."""
        layout = copies.layout
        found = np.full((layout.copies, layout.rows), FREE)
        for node in nodes:
            shape = (
                (layout.copies, layout.rows, -1) if node in layout.reach.reached else (layout.steps, layout.rows, -1)
            )
            held = copies.block(node).reshape(shape)
            held = held if node in layout.reach.reached else held[j : j + 1]
            found = np.maximum(found, self.steps[node].met(held, steps[j]))
        return found

    def met_static(self, values: Callable[[int], NDArray[Any]]) -> float:
        """The same of the static phase; `values` takes a node to its own."""
        return max((float(b.met(values(n).reshape(1, 1, -1))[0, 0]) for n, b in self.static.items()), default=FREE)


NONE: Kinks = Kinks({}, {})


@functools.lru_cache(maxsize=2)
def find_kinks(problem: Problem) -> Kinks:
    """The branches taken, and the arguments that rounding in the problem's dtype may take to the other side of zero."""
    arguments = _arguments(problem.setup.graph)
    if not arguments:
        return NONE
    with np.errstate(all="ignore"):
        single, double = (_values(cast(problem, dtype), arguments) for dtype in (_SINGLE, _DOUBLE))
        eps = float(np.finfo(problem.setup.dtype).eps)
        scale = eps / np.finfo(_SINGLE).eps
        samples = [
            _values(cast(problem, _DOUBLE), arguments, Disturbance(_EPS * eps, seed)) for seed in range(_SAMPLES)
        ]
        steps: dict[int, Branches] = {}
        static: dict[int, Branches] = {}
        for node, exact in double.items():
            spread = scale * _spread(exact, [single[node]]) + _spread(exact, [held[node] for held in samples]) / _EPS
            at = np.abs(exact) <= np.where(np.isfinite(spread), _FACTOR * spread, 0.0)
            if problem.setup.dtype == _SINGLE:
                at |= np.isfinite(exact) & ((single[node] > 0) != (exact > 0))
            (static if at.ndim == 1 else steps)[node] = Branches(at, np.isfinite(exact) & ~at, exact > 0)
    return Kinks(steps, static)


def _spread(exact: FloatArray, others: Sequence[FloatArray]) -> FloatArray:
    """The root mean square difference of `others` from `exact`, of each step by itself: values may grow."""
    each = (1, 2) if exact.ndim == 3 else (0,)
    off = np.stack([other - exact for other in others])
    count = np.maximum(np.isfinite(off).sum(axis=0).sum(axis=each, keepdims=True), 1)
    squares = np.where(np.isfinite(off), off, 0.0) ** 2
    return np.asarray(np.sqrt(squares.sum(axis=0).sum(axis=each, keepdims=True) / count))


def analytic(graph: Graph) -> bool:
    """Whether no operation has a kink."""
    return all(OPERATIONS[node.op].analytic for node in graph.nodes if node.op in OPERATIONS)


def _arguments(graph: Graph) -> dict[int, list[tuple[int, int]]]:
    """The nodes whose values go into operations with a kink, and the stretches of their entries that do."""
    found: dict[int, list[tuple[int, int]]] = {}
    for node in graph.nodes:
        if node.op in OPERATIONS and not OPERATIONS[node.op].analytic:
            index, shift = base_of(graph, node.args[0])
            found.setdefault(index, []).append((shift, shift + graph.nodes[node.args[0]].size))
    return found


def base_of(graph: Graph, index: int) -> tuple[int, int]:
    """The node that a node is a slice of, or the node itself, and where in it the slice begins."""
    node, shift = graph.nodes[index], 0
    while node.op == "slice":
        shift += int(node.numbers[0])
        node = graph.nodes[node.args[0]]
    return node.index, shift


def _values(
    problem: Problem, arguments: Mapping[int, list[tuple[int, int]]], disturbance: Disturbance | None = None
) -> dict[int, NDArray[Any]]:
    """Float64 values `(T, batch, size)`, or `(size,)` of static nodes, infinite where they meet no kink."""
    values = {}
    for index, held in node_values(problem, arguments, disturbance).items():
        values[index] = kept = np.full(held.shape, np.inf)
        for start, stop in arguments[index]:
            kept[..., start:stop] = held[..., start:stop]
    return values
