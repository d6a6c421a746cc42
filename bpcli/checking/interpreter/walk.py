"""Forwards: the values of every node of the unrolled graph, one step after the other, in float64."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bpcli.checking.interpreter.rules import apply
from bpcli.graph.nodes import Graph, Node, Phase
from bpcli.problem.definition import Problem, Setup, cast
from bpcli.references.base import FloatArray
from bpcli.runtime.reverse_mode import loss_weights

LEAVES = frozenset({"param", "constant", "input", "previous"})
States = dict[str, FloatArray]


@dataclass(frozen=True, eq=False)
class Walk:
    """`values[t][n]` is node n's value at step t, (B, *shape), or (1, *shape) where it is static.

    `problem` is in float64, whatever the spec's dtype; `weights (T, B)` are ∂L/∂l(t, b).
    """

    problem: Problem
    values: tuple[tuple[FloatArray, ...], ...]
    weights: FloatArray

    @property
    def setup(self) -> Setup:
        """Sizes and what is differentiated."""
        return self.problem.setup

    @property
    def graph(self) -> Graph:
        """The graph of one step."""
        return self.problem.setup.graph

    @property
    def loss(self) -> float:
        """The whole loss."""
        losses = [np.broadcast_to(v[self.graph.loss], self.setup.batch) for v in self.values]
        return float((np.array(losses) * self.weights).sum())


def walk(problem: Problem) -> Walk:
    """Run the graph forwards over all steps and keep everything."""
    double = cast(problem, np.dtype(np.float64))
    setup, graph = double.setup, double.setup.graph
    state = {name: _spread(np.asarray(double.state[name], float), setup, name) for name in graph.previous}
    static: dict[int, FloatArray] = {}
    steps = []
    with np.errstate(all="ignore"):
        for t in range(setup.T):
            values: list[FloatArray] = []
            for node in graph.nodes:
                known = static.get(node.index)
                values.append(_value(node, values, double, state, t) if known is None else known)
                if node.phase is Phase.STATIC:
                    static[node.index] = values[-1]
            state = {name: _spread(values[n], setup) for name, n in graph.new.items()}
            steps.append(tuple(values))
    return Walk(double, tuple(steps), loss_weights(setup))


def work(setup: Setup) -> float:
    """Numbers that the interpreter handles in one gradient, about: what its time and its memory grow with."""
    entries = sum(n.size for n in setup.graph.nodes if n.phase is not Phase.STATIC) * setup.batch
    products = sum(setup.graph.nodes[n.args[0]].size for n in setup.graph.nodes if n.op == "matmul") * setup.batch
    return float(setup.T * (entries + products + 2000 * len(setup.graph.nodes)))


def _spread(value: FloatArray, setup: Setup, name: str = "") -> FloatArray:
    """A state of one value for every sample."""
    if name in setup.shared:
        value = value[None]
    return np.broadcast_to(value, (setup.batch, *value.shape[1:]))


def _value(
    node: Node, values: list[FloatArray], problem: Problem, state: Mapping[str, FloatArray], t: int
) -> FloatArray:
    if node.op == "constant":
        return np.full((1, *node.shape), node.numbers[0])
    if node.op == "param":
        return np.asarray(problem.params[node.name], float)[None]
    if node.op == "input":
        array = np.asarray(problem.inputs[node.name], float)
        return array[t] if problem.setup.graph.recurrent else array
    if node.op == "previous":
        return state[node.name]
    return apply(node.op, [values[a] for a in node.args], node.numbers, node.shape)
