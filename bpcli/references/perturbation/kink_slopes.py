"""A network with the slopes of its kinked operations chosen: `relu(z)` becomes `m * z`, with `m` its slope at z.

The slopes of arguments that are on one side of zero are those of the branch that the program takes; of those at a kink
they may be any between the slopes on both sides. The network is then analytic, and its gradient is what a program
computes that takes these slopes: affine in each of them, so that the ends of its range are at ends of theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from bpcli.graph.nodes import Graph, Node, Phase
from bpcli.graph.operations import OPERATIONS
from bpcli.problem.definition import Problem, Setup, cast
from bpcli.references.perturbation.kinks import Kinks, Mask, base_of, find_kinks
from bpcli.references.perturbation.tangent import ALONG
from bpcli.runtime.evaluation import node_values

FloatArray = NDArray[np.float64]
Shares = float | Mapping[int, NDArray[np.floating]]
"""Where slopes at kinks are between the lower one, 0, and the higher one, 1: everywhere, or by operation."""

ALIKE = (0.0, 0.5, 1.0)
"""The shares that programs take which treat all kinks alike: the left slope, the mean of both, the right one."""
MOST_PATTERNS = 16
"""Patterns of lower and higher slopes that are tried one by one; where kinks have more, some of them stand for all."""


Pattern = tuple[int, int]
"""Which of the two slopes kinks take, a bit each: static ones, and those of every sample by itself."""


@dataclass(frozen=True, eq=False)
class Slopes:
    """The choices that a problem leaves a program at its kinks, by operation."""

    problem: Problem
    kinks: Kinks

    def chosen(self, shares: Shares) -> Problem:
        """The network with slopes of a given share at the kinks, in float64."""
        return self._with({n: self._slope(n, shares if isinstance(shares, float) else shares[n]) for n in self._ops})

    @property
    def steepest(self) -> Problem:
        """The network with the slope of the largest absolute value at the kinks."""
        return self._with({n: np.where(self._at(n), max(abs(self._low[n]), 1.0), self._taken[n]) for n in self._ops})

    @cached_property
    def patterns(self) -> Sequence[Pattern]:
        """All patterns; none where there are more than `MOST_PATTERNS`. Samples go side by side."""
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
        """By operation, static ones and others, the numbers of its kinks that matter among those of their sample; -1
        elsewhere."""
        static, each = ({n: m for n, m in self._moved.items() if (m.ndim == 1) == kind} for kind in (True, False))
        # The samples first, so that each counts its own.
        counted = _counted({n: m[None] for n, m in static.items()})
        swapped = _counted({n: m.transpose(1, 0, 2) for n, m in each.items()})
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
        """The slopes below zero; above it is 1."""
        nodes = self.problem.setup.graph.nodes
        return {n: {"relu": 0.0, "abs": -1.0}.get(nodes[n].op, *nodes[n].numbers) for n in self._ops}

    def _at(self, op: int) -> Mask:
        """Where the argument of an operation is at the kink, `(T, batch, size)`, or `(size,)`."""
        graph = self.problem.setup.graph
        base, shift = base_of(graph, graph.nodes[op].args[0])
        at = (self.kinks.static if base in self.kinks.static else self.kinks.steps)[base].at
        return at[..., shift : shift + graph.nodes[op].size]

    @cached_property
    def _taken(self) -> dict[int, FloatArray]:
        """The slopes of the branches that the program takes."""
        graph, found = self.problem.setup.graph, {}
        for n in self._ops:
            base, shift = base_of(graph, graph.nodes[n].args[0])
            branches = (self.kinks.static if base in self.kinks.static else self.kinks.steps)[base]
            above = branches.above[..., shift : shift + graph.nodes[n].size]
            found[n] = np.where(above, 1.0, self._low[n])
        return found

    def _slope(self, op: int, share: float | NDArray[np.floating]) -> FloatArray:
        low = self._low[op]
        return np.where(self._at(op), low + (1 - low) * np.asarray(share, np.float64), self._taken[op])

    @cached_property
    def _moved(self) -> dict[int, Mask]:
        """Where an argument is at the kink and anything that is differentiated by moves it."""
        generator, problem = np.random.default_rng(0), self.problem
        shares = {n: generator.uniform(0.3, 0.9, self._at(n).shape) for n in self._ops}
        moved = cast(self.chosen(shares), np.dtype(np.complex128))
        for tensor in problem.setup.wrt:
            array = moved.array(tensor)
            moved = moved.with_array(tensor, array + ALONG * 1j * generator.uniform(0.5, 1.5, array.shape))
        args = {n: self._linear.places[problem.setup.graph.nodes[n].args[0]] for n in self._ops}
        with np.errstate(all="ignore"):
            values = node_values(moved, sorted(set(args.values())))
        return {n: self._at(n) & (values[args[n]].imag != 0) for n in self._ops}

    def _with(self, slopes: Mapping[int, FloatArray]) -> Problem:
        setup, params, inputs = self._double.setup, dict(self._double.params), dict(self._double.inputs)
        for n, name in self._linear.leaves.items():
            node = setup.graph.nodes[n]
            if node.phase is Phase.STATIC:
                params[name] = np.ascontiguousarray(slopes[n].reshape(node.shape))
            else:
                lead = (setup.T, setup.batch) if setup.graph.recurrent else (setup.batch,)
                inputs[name] = np.ascontiguousarray(slopes[n].reshape(*lead, *node.shape))
        return Problem(self._linear.setup, params, inputs, self._double.state)


def _counted(masks: Mapping[int, Mask]) -> dict[int, NDArray[np.int64]]:
    """By operation, what is marked in `(samples, …)`, counted from 0 in each sample through all operations."""
    found, seen = {}, np.zeros((1, 1), np.int64)
    for n, mask in masks.items():
        flat = mask.reshape(len(mask), -1)
        count = seen + np.cumsum(flat, axis=1)
        found[n], seen = np.where(flat, count - 1, -1).reshape(mask.shape), count[:, -1:]
    return found


@lru_cache(maxsize=2)
def slopes_of(problem: Problem) -> Slopes | None:
    """The choices of a problem; None where no argument is at a kink."""
    kinks = find_kinks(problem)
    return Slopes(problem, kinks) if kinks.any else None


@dataclass(frozen=True, eq=False)
class _Linear:
    """A setup without kinks. `leaves` takes operations that had one to the names of their slopes, `places` old nodes to
    new ones."""

    setup: Setup
    leaves: Mapping[int, str]
    places: Mapping[int, int]


@lru_cache(maxsize=4)
def _linear(setup: Setup) -> _Linear:
    """Kept, as what is planned for a setup is."""
    old = setup.graph
    nodes, places, leaf, leaves = list[Node](), dict[int, int](), dict[str, int](), dict[int, str]()
    for node in old.nodes:
        args = tuple(places[a] for a in node.args)
        if node.op in OPERATIONS and not OPERATIONS[node.op].analytic:
            static = node.phase is Phase.STATIC
            name = leaves[node.index] = f"slope {node.index}"
            op, phase = ("param", Phase.STATIC) if static else ("input", Phase.INPUT)
            leaf[name] = len(nodes)
            nodes.append(Node(len(nodes), op, (), node.shape, phase, (), name, node.place))
            args, node = (*args, leaf[name]), replace(node, op="multiply", numbers=())
        places[node.index] = len(nodes)
        nodes.append(replace(node, index=len(nodes), args=args))
    leaf |= {name: places[n] for name, n in old.leaf.items()}
    equation, before, after = (
        {name: places[n] for name, n in group.items()} for group in (old.equation, old.previous, old.new)
    )
    graph = Graph(tuple(nodes), leaf, equation, before, after, places[old.loss], old.unused)
    return _Linear(replace(setup, graph=graph), leaves, places)
