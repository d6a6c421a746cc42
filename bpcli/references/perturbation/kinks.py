"""Kinks: arguments of relu, leaky_relu and abs that are zero within rounding, and the slopes to choose from there.

Of max and min it is the difference of the arguments, their last argument in the graph.

Everywhere else the network is analytic on the branch that the program took: imaginary steps stay on it, and real steps
must not leave it. The rounding error of arguments is measured between forward passes in float32 and float64 on the same
arrays, and between float64 passes with and without simulated rounding, as not all of it is linear in unit roundoff (the
sine of 10¹⁶ may be anything). It is pooled over the entries of a node, and is not larger than an entry's own, with
disturbed arrays too: huge entries beside it make no kink of an argument that rounding hardly moves.

At a kink any slope between the two one-sided ones may be chosen. With slopes fixed, `relu(z)` becomes `m * z`, and
`max(u, v)` becomes `m * u + r * v` with r = 1 - m. The network is then analytic; its gradient is affine in each slope,
so that extreme gradients are at extreme slopes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpcli.graph.nodes import Graph, Node, Phase, ancestors
from bpcli.graph.operations import OPERATIONS, STOPPING, SWITCHED
from bpcli.problem.definition import Problem, Setup, cast
from bpcli.references.perturbation import ALONG, STEP
from bpcli.runtime.copies import Copies
from bpcli.runtime.evaluation import node_values
from bpcli.runtime.trace import Disturbance

Mask = NDArray[np.bool_]
FloatArray = NDArray[np.float64]

FREE = -1.0
"""Distance that stands for no kink."""
# Rounding bound of an argument, in root mean squares over the entries of its node at a step.
_FACTOR = 8.0
# Simulated rounding: largest relative disturbance in units of eps, and number of passes.
_EPS, _SAMPLES = 4.0, 4
# Rounding bound of an argument, in the largest difference that disturbed arrays and results make in its own entry.
_OWN = 32.0
_SINGLE, _DOUBLE = np.dtype(np.float32), np.dtype(np.float64)


@dataclass(frozen=True, eq=False)
class Branches:
    """Branches of the arguments in one node, `(T, batch, size)`, or `(size,)` for static nodes.

    `at` marks arguments at a kink; those `off` a kink are `above` zero or below it.
    """

    at: Mask
    off: Mask
    above: Mask

    def met(self, held: NDArray[Any], where: Any = ...) -> FloatArray:
        """Distance in steps `(copies, rows)` of the furthest kink that each copy meets, `FREE` where it meets none.

        `held (copies, rows, size)` are the arguments at `where` after a step. An imaginary step meets a kink if it
        moves an argument that is at one; a real step if it changes a branch, at infinite distance.
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
    """Branches of the arguments of operations with a kink, by node: per step and sample, and static ones."""

    steps: Mapping[int, Branches]
    static: Mapping[int, Branches]

    @property
    def any(self) -> bool:
        """Whether an argument is at a kink."""
        return any(bool(b.at.any()) for b in (*self.steps.values(), *self.static.values()))

    def met(self, copies: Copies, nodes: Iterable[int], steps: NDArray[np.int64], j: int) -> FloatArray:
        """Distances (copies, rows) as of `Branches.met`, for the values of `nodes` at the j-th of `steps`."""
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
        """The distance for the static phase; `values` maps a node to its values."""
        return max((float(b.met(values(n).reshape(1, 1, -1))[0, 0]) for n, b in self.static.items()), default=FREE)


NO_KINKS: Kinks = Kinks({}, {})


@functools.lru_cache(maxsize=2)
def find_kinks(problem: Problem) -> Kinks:
    """Find the branches taken, and the arguments whose sign is uncertain under rounding in the problem's dtype."""
    operations = kinked(problem.setup.graph)
    steps: dict[int, Branches] = {}
    static: dict[int, Branches] = {}
    for node, (exact, _, at) in near_zero(problem, operations).items():
        (static if at.ndim == 1 else steps)[node] = Branches(at, np.isfinite(exact) & ~at, exact > 0)
    return Kinks(steps, static) if operations else NO_KINKS


def near_zero(problem: Problem, operations: Iterable[Node]) -> dict[int, tuple[FloatArray, list[FloatArray], Mask]]:
    """By node that operations compare with zero, its values in float64, those of float32 and of disturbed passes, and
    where they are zero within rounding."""
    arguments = _arguments(problem.setup.graph, operations)
    found: dict[int, tuple[FloatArray, list[FloatArray], Mask]] = {}
    if not arguments:
        return found
    with np.errstate(all="ignore"):
        single, double = (_values(cast(problem, dtype), arguments) for dtype in (_SINGLE, _DOUBLE))
        eps = float(np.finfo(problem.setup.dtype).eps)
        scale = eps / np.finfo(_SINGLE).eps
        rounded = [Disturbance(_EPS * eps, seed) for seed in range(_SAMPLES)]
        samples = [_values(cast(problem, _DOUBLE), arguments, each) for each in rounded]
        moved = [_values(_with_leaves_moved(problem, each), arguments, each) for each in rounded]
        for node, exact in double.items():
            others = [single[node], *(held[node] for held in samples)]
            spread = scale * _spread(exact, others[:1]) + _spread(exact, others[1:]) / _EPS
            own = np.max([np.abs(held[node] - exact) for held in moved], axis=0)
            bound = np.fmin(_FACTOR * spread, np.where(np.isfinite(own), _OWN * own, np.inf))
            at = np.abs(exact) <= np.where(np.isfinite(spread), bound, 0.0)
            if problem.setup.dtype == _SINGLE:
                at |= np.isfinite(exact) & ((single[node] > 0) != (exact > 0))
            found[node] = exact, others, at
    return found


def _with_leaves_moved(problem: Problem, disturbance: Disturbance) -> Problem:
    """The problem in float64, each entry of its arrays off by a random relative error up to the disturbance's size.

    With it, simulated rounding shows what an entry may lose by cancellation inside a product.
    """
    generator, size = np.random.default_rng(disturbance.seed), disturbance.size
    double = cast(problem, _DOUBLE)
    groups = [{n: x * (1 + generator.uniform(-size, size, x.shape)) for n, x in g.items()} for g in double.arrays]
    return Problem(double.setup, *groups)


def _spread(exact: FloatArray, others: Sequence[FloatArray]) -> FloatArray:
    """Root mean square difference of `others` from `exact`, per step, since values may grow."""
    each = (1, 2) if exact.ndim == 3 else (0,)
    off = np.stack([other - exact for other in others])
    count = np.maximum(np.isfinite(off).sum(axis=0).sum(axis=each, keepdims=True), 1)
    squares = np.where(np.isfinite(off), off, 0.0) ** 2
    return np.asarray(np.sqrt(squares.sum(axis=0).sum(axis=each, keepdims=True) / count))


def analytic(graph: Graph) -> bool:
    """Whether no operation that has a derivative has a kink."""
    return not kinked(graph)


@lru_cache(maxsize=16)
def kinked(graph: Graph) -> tuple[Node, ...]:
    """The operations with a kink on some way from the loss back to leaves, over steps: not those behind stop_gradient
    alone."""
    args = [() if node.op in STOPPING else node.args for node in graph.nodes]
    roots, more = set[int](), {graph.loss}
    while more:
        roots |= more
        live = ancestors(roots, args)
        more = {graph.new[name] for name, n in graph.previous.items() if n in live} - roots
    nodes = (node for node in graph.nodes if node.index in live and node.op in OPERATIONS)
    return tuple(node for node in nodes if not OPERATIONS[node.op].analytic)


def _arguments(graph: Graph, operations: Iterable[Node]) -> dict[int, list[tuple[int, int]]]:
    """The nodes that operations compare with zero, and the ranges of entries that they read."""
    found: dict[int, list[tuple[int, int]]] = {}
    for node in operations:
        index, shift = base_of(graph, node.args[-1])
        found.setdefault(index, []).append((shift, shift + graph.nodes[node.args[-1]].size))
    return found


def base_of(graph: Graph, index: int) -> tuple[int, int]:
    """The node that a slice is taken from, or the node itself, and the offset of the slice."""
    node, shift = graph.nodes[index], 0
    while node.op == "slice":
        shift += int(node.numbers[0])
        node = graph.nodes[node.args[0]]
    return node.index, shift


def _values(
    problem: Problem, arguments: Mapping[int, list[tuple[int, int]]], disturbance: Disturbance | None = None
) -> dict[int, NDArray[Any]]:
    """Float64 values `(T, batch, size)`, or `(size,)` of static nodes; infinite where they enter no kink."""
    values = {}
    for index, held in node_values(problem, arguments, disturbance).items():
        values[index] = kept = np.full(held.shape, np.inf)
        for start, stop in arguments[index]:
            kept[..., start:stop] = held[..., start:stop]
    return values


Shares = float | Mapping[int, NDArray[np.floating]]
"""Slopes at kinks as a share from the lower one-sided slope, 0, to the higher one, 1: for all, or by operation."""

ALIKE = (0.0, 0.5, 1.0)
"""Shares of programs that treat all kinks alike: the left slope, the mean, the right slope."""
MOST_PATTERNS = 16
"""Limit on the number of slope patterns that are tried one by one."""


Pattern = tuple[int, int]
"""The one-sided slopes at kinks, as bits: of static kinks, and of the kinks of each sample."""


@dataclass(frozen=True, eq=False)
class Slopes:
    """The slopes that a program may choose at the kinks of a problem, by operation."""

    problem: Problem
    kinks: Kinks

    def chosen(self, shares: Shares) -> Problem:
        """The network with the slopes of given shares at the kinks, in float64."""
        return self._with({n: self._slope(n, shares if isinstance(shares, float) else shares[n]) for n in self._ops})

    @property
    def steepest(self) -> Problem:
        """The network with the steepest slope at every kink."""
        slopes = {n: np.where(self._at(n), max(abs(self._low[n]), 1.0), self._taken[n]) for n in self._ops}
        return self._with(slopes, {n: np.where(self._at(n), 1.0, 1.0 - self._taken[n]) for n in self._ops})

    @cached_property
    def patterns(self) -> Sequence[Pattern]:
        """All patterns, of all samples in parallel; empty if there are more than `MOST_PATTERNS`."""
        counts = [1 + max((int(k.max(initial=-1)) for k in group.values()), default=-1) for group in self._numbers]
        if 2 ** sum(counts) > MOST_PATTERNS:
            return ()
        return [(static, each) for static in range(2 ** counts[0]) for each in range(2 ** counts[1])]

    def shares(self, pattern: Pattern) -> Shares:
        """The shares of a pattern."""
        pairs = zip(pattern, self._numbers, strict=True)
        return {n: (bits >> np.maximum(k, 0) & 1).astype(float) for bits, group in pairs for n, k in group.items()}

    @cached_property
    def _numbers(self) -> tuple[Mapping[int, NDArray[np.int64]], Mapping[int, NDArray[np.int64]]]:
        """By operation, static ones and others, the index of each relevant kink in its sample; -1 elsewhere."""
        static, each = ({n: m for n, m in self._moved.items() if (m.ndim == 1) == kind} for kind in (True, False))
        # The samples lead, so that each numbers its own kinks.
        counted = _numbered({n: m[None] for n, m in static.items()})
        swapped = _numbered({n: m.transpose(1, 0, 2) for n, m in each.items()})
        return {n: k[0] for n, k in counted.items()}, {n: k.transpose(1, 0, 2) for n, k in swapped.items()}

    @cached_property
    def _ops(self) -> list[int]:
        return sorted(self._linear.leaves)

    @cached_property
    def _double(self) -> Problem:
        return cast(self.problem, np.dtype(np.float64))

    @property
    def _linear(self) -> _Linear:
        return _linear(self._double.setup)

    @cached_property
    def _low(self) -> dict[int, float]:
        """The slopes below zero; above zero the slope is 1."""
        nodes = self.problem.setup.graph.nodes
        return {n: {"abs": -1.0, "leaky_relu": (*nodes[n].numbers, 0.0)[0]}.get(nodes[n].op, 0.0) for n in self._ops}

    def _at(self, op: int) -> Mask:
        """Mask of arguments of an operation at the kink, `(T, batch, size)`, or `(size,)`."""
        graph = self.problem.setup.graph
        base, shift = base_of(graph, graph.nodes[op].args[-1])
        at = (self.kinks.static if base in self.kinks.static else self.kinks.steps)[base].at
        return at[..., shift : shift + graph.nodes[op].size]

    @cached_property
    def _taken(self) -> dict[int, FloatArray]:
        """The slopes of the branches that the program takes."""
        graph, found = self.problem.setup.graph, {}
        for n in self._ops:
            base, shift = base_of(graph, graph.nodes[n].args[-1])
            branches = (self.kinks.static if base in self.kinks.static else self.kinks.steps)[base]
            above = branches.above[..., shift : shift + graph.nodes[n].size]
            found[n] = np.where(above, 1.0, self._low[n])
        return found

    def _slope(self, op: int, share: float | NDArray[np.floating]) -> FloatArray:
        low = self._low[op]
        return np.where(self._at(op), low + (1 - low) * np.asarray(share, np.float64), self._taken[op])

    @cached_property
    def _moved(self) -> dict[int, Mask]:
        """Mask of arguments at the kink that depend on a differentiated tensor."""
        generator, problem = np.random.default_rng(0), self.problem
        shares = {n: generator.uniform(0.3, 0.9, self._at(n).shape) for n in self._ops}
        args = {n: self._linear.places[problem.setup.graph.nodes[n].args[-1]] for n in self._ops}
        found = {n: np.zeros(self._at(n).shape, np.bool_) for n in self._ops}
        for step in (ALONG, STEP):  # of tiny values a tiny step moves nothing
            moved = cast(self.chosen(shares), np.dtype(np.complex128))
            for tensor in problem.setup.wrt:
                array = moved.array(tensor)
                moved = moved.with_array(tensor, array + step * 1j * generator.uniform(0.5, 1.5, array.shape))
            with np.errstate(all="ignore"):
                values = node_values(moved, sorted(set(args.values())))
            found = {n: found[n] | (self._at(n) & (values[args[n]].imag != 0)) for n in self._ops}
        return found

    def _with(self, slopes: Mapping[int, FloatArray], rests: Mapping[int, FloatArray] | None = None) -> Problem:
        """The network with these slopes, and with `rests` for the second arguments of max and min, by default 1 - m."""
        setup, params, inputs = self._double.setup, dict(self._double.params), dict(self._double.inputs)
        rests = rests or {n: 1.0 - slope for n, slope in slopes.items()}
        for n, names in self._linear.leaves.items():
            node = setup.graph.nodes[n]
            lead = (setup.T, setup.batch) if setup.graph.recurrent else (setup.batch,)
            static = node.phase is Phase.STATIC
            group, shape = (params, node.shape) if static else (inputs, (*lead, *node.shape))
            for name, values in zip(names, (slopes[n], rests[n]), strict=False):
                group[name] = np.ascontiguousarray(values.reshape(shape))
        return Problem(self._linear.setup, params, inputs, self._double.state)


def _numbered(masks: Mapping[int, Mask]) -> dict[int, NDArray[np.int64]]:
    """By operation, indices of the marked entries of `(samples, …)`, counted per sample across operations; -1 else."""
    found, seen = {}, np.zeros((1, 1), np.int64)
    for n, mask in masks.items():
        flat = mask.reshape(len(mask), -1)
        count = seen + np.cumsum(flat, axis=1)
        found[n], seen = np.where(flat, count - 1, -1).reshape(mask.shape), count[:, -1:]
    return found


@lru_cache(maxsize=2)
def slopes_of(problem: Problem) -> Slopes | None:
    """The slopes of a problem at its kinks; None where no argument is at one."""
    kinks = find_kinks(problem)
    return Slopes(problem, kinks) if kinks.any else None


@dataclass(frozen=True, eq=False)
class _Linear:
    """A setup without kinks; `leaves` maps operations that had one to the names of their slopes (max and min have two),
    `places` old nodes to new ones."""

    setup: Setup
    leaves: Mapping[int, tuple[str, ...]]
    places: Mapping[int, int]


@lru_cache(maxsize=4)
def _linear(setup: Setup) -> _Linear:
    """Replace operations with a kink by products with slopes; cached, since plans are cached by setup."""
    old = setup.graph
    nodes, places, leaf, leaves = list[Node](), dict[int, int](), dict[str, int](), dict[int, tuple[str, ...]]()

    def add(node: Node, op: str, args: tuple[int, ...], **changes: Any) -> int:
        nodes.append(replace(node, index=len(nodes), op=op, args=args, **changes))
        return len(nodes) - 1

    def slope(node: Node, name: str) -> int:
        op, phase = ("param", Phase.STATIC) if node.phase is Phase.STATIC else ("input", Phase.INPUT)
        leaf[name] = add(node, op, (), phase=phase, numbers=(), name=name)
        return leaf[name]

    operations = {node.index for node in kinked(old)}
    for node in old.nodes:
        args = tuple(places[a] for a in node.args)
        if node.index not in operations:
            places[node.index] = add(node, node.op, args)
        elif node.op in SWITCHED:
            leaves[node.index] = names = f"slope {node.index}", f"rest {node.index}"
            parts = (
                add(node, "multiply", (arg, slope(node, name)), name="") for arg, name in zip(args, names, strict=False)
            )
            places[node.index] = add(node, "add", tuple(parts))
        else:
            leaves[node.index] = (f"slope {node.index}",)
            places[node.index] = add(node, "multiply", (*args, slope(node, *leaves[node.index])), numbers=())
    leaf |= {name: places[n] for name, n in old.leaf.items()}
    equation, before, after = (
        {name: places[n] for name, n in group.items()} for group in (old.equation, old.previous, old.new)
    )
    graph = Graph(tuple(nodes), leaf, equation, before, after, places[old.loss], old.unused)
    return _Linear(replace(setup, graph=graph), leaves, places)
