"""Forwards: the values of every node of the unrolled graph, one step after the other, in float64.

Where the interpreter lets itself be changed: each hook replaces one rule, and None is the right rule.

Backwards through the unrolled graph, node by node: c(t) = q(t) + J(t+1)ᵀ c(t+1), g = Σ_t q_w(t) + M̄(t)ᵀ c(t).

Slow, short, and independent of the kernels: what the reverse pass means, with a place to plant a fault in every rule.
q, J and M̄ are passes of their own, so that each can be changed without the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from bpcli.checking.rules import apply, pull
from bpcli.graph.nodes import Graph, Node, Phase
from bpcli.problem.definition import Array, Problem, Setup, Tensor, cast
from bpcli.references.base import FloatArray
from bpcli.runtime.reverse_mode import Window, loss_weights

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


Factor = Literal["q", "J", "M", "static"]
"""What a pass through one step computes: ∂l/∂(a(t), a(t-1), w, x), cᵀ ∂a(t)/∂a(t-1), cᵀ ∂a(t)/∂(w, x).

"static" is the pass through what is computed once, from parameters and constants alone.
"""


@dataclass(frozen=True, eq=False)
class Edge:
    """One use of a value: argument `slot` of `node`, at step `t`, with the cotangent (B or 1, *shape) of the node.

    `at` is the step whose values are used, `t` itself unless a hook says otherwise; `call` counts the gradients that
    were asked for before this one.
    """

    walk: Walk
    node: Node
    slot: int
    factor: Factor
    t: int
    at: int
    cotangent: FloatArray
    call: int

    @property
    def source(self) -> Node:
        """The node that is used."""
        return self.walk.graph.nodes[self.node.args[self.slot]]

    @property
    def args(self) -> Sequence[FloatArray]:
        """The values of the node's arguments."""
        return [self.walk.values[self.at][a] for a in self.node.args]

    @property
    def value(self) -> FloatArray:
        """The node's own value."""
        return self.walk.values[self.at][self.node.index]

    def pull(self, args: Sequence[FloatArray] | None = None, cotangent: FloatArray | None = None) -> FloatArray:
        """The right contribution to the argument (B or 1, *shape), before it is summed over samples."""
        c = self.cotangent if cotangent is None else cotangent
        return pull(self.node.op, self.slot, c, self.args if args is None else args, self.value, self.node.numbers)


@dataclass(frozen=True)
class Hooks:
    """The rules that can be replaced.

    - `edge(edge)`: a contribution, as `Edge.pull` gives it.
    - `gather(edge, contribution)`: its sum over samples (1, *shape), for an argument that is the same for all of them.
    - `add(edge, before, contribution)`: the cotangent of an argument that has one already.
    - `weights(walk)`: ∂L/∂l(t, b), (T, B).
    - `at(factor, t)`: the step whose values the derivatives of `factor` at step t are taken at.
    - `carry(sweep, t, credit)`: J(t)ᵀ c(t), the cotangents of the states at t-1 that pass through those at t.
    - `end(sweep)`: cotangents of the states after the last step.
    - `answer(problem, arrays, call)`: the gradient by name, from the right one.
    """

    edge: Callable[[Edge], FloatArray] | None = None
    gather: Callable[[Edge, FloatArray], FloatArray] | None = None
    add: Callable[[Edge, FloatArray, FloatArray], FloatArray] | None = None
    weights: Callable[[Walk], FloatArray] | None = None
    at: Callable[[Factor, int], int] | None = None
    carry: Callable[[Sweep, int, States], States] | None = None
    end: Callable[[Sweep], States] | None = None
    answer: Callable[[Problem, Mapping[str, Array], int], dict[str, Array]] | None = None


RIGHT = Hooks()


Cotangents = dict[int, FloatArray]


@dataclass(eq=False)
class Sweep:
    """One gradient in the making.

    `static[t]` holds what step t gives to static nodes, `inputs[t]` the cotangents of the inputs, `start` those of the
    initial states. `window` limits the losses and the steps, as for truncated methods; None takes all.
    """

    walk: Walk
    hooks: Hooks = RIGHT
    call: int = 0
    window: Window | None = None
    static: list[Cotangents] = field(default_factory=list)
    inputs: list[Cotangents] = field(default_factory=list)
    start: States = field(default_factory=dict)

    def run(self) -> Sweep:
        """From the last step to the first."""
        graph, T = self.walk.graph, self.walk.setup.T
        self.static, self.inputs = [{} for _ in range(T)], [{} for _ in range(T)]
        window = self.window or Window(0, 0, T)
        weights = (self.walk.weights if self.hooks.weights is None else self.hooks.weights(self.walk)).copy()
        weights[: window.loss_from] = 0.0
        carried: States = {} if self.hooks.end is None else self.hooks.end(self)
        with np.errstate(all="ignore"):
            for t in reversed(range(window.start, window.stop)):
                q = self.back(t, "q", {graph.loss: weights[t]})
                credit = {name: _sum(q.get(n), carried.get(name)) for name, n in graph.new.items()}
                arriving = {name: c for name, c in credit.items() if c is not None}
                self.back(t, "M", {graph.new[name]: c for name, c in arriving.items()})
                through = (
                    self.jacobian(t, arriving) if self.hooks.carry is None else self.hooks.carry(self, t, arriving)
                )
                sums = {name: _sum(q.get(n), through.get(name)) for name, n in graph.previous.items()}
                carried = {name: c for name, c in sums.items() if c is not None}
        self.start = carried if window.start == 0 else {}
        return self

    def jacobian(self, t: int, credit: States) -> States:
        """J(t)ᵀ c(t) (B, *shape) by state."""
        graph = self.walk.graph
        found = self.back(t, "J", {graph.new[name]: c for name, c in credit.items()})
        return {name: found[n] for name, n in graph.previous.items() if n in found}

    def back(self, t: int, factor: Factor, seeds: Mapping[int, FloatArray]) -> Cotangents:
        """One pass through step t; the cotangents of the states at t-1, and for q of those at t, which end the pass."""
        graph, ends = self.walk.graph, frozenset(self.walk.graph.new.values())
        pending: Cotangents = {}
        for n, c in seeds.items():
            if graph.nodes[n].phase is Phase.STATIC and factor != "J":
                self.static[t][n] = self.static[t].get(n, 0.0) + c.sum(axis=0, keepdims=True)
            else:
                pending[n] = c
        found: Cotangents = {}
        for node in reversed(graph.nodes):
            if node.index not in pending:
                continue
            c = pending.pop(node.index)
            if node.op == "previous" or (factor == "q" and node.index in ends):
                found[node.index] = c
            elif node.op == "input":
                self.inputs[t][node.index] = self.inputs[t].get(node.index, 0.0) + c
            else:
                self._visit(Step(t, factor), node, c, pending)
        return found

    def _visit(self, step: Step, node: Node, c: FloatArray, pending: Cotangents) -> None:
        """The contributions of one node to its arguments; those to static ones are kept for later."""
        graph, factor, t = self.walk.graph, step.factor, step.t
        at = t if self.hooks.at is None else self.hooks.at(factor, t)
        for slot, arg in enumerate(node.args):
            source = graph.nodes[arg]
            static = source.phase is Phase.STATIC
            reaches = source.phase in (Phase.RECURRENT, Phase.OUTPUT) if factor == "J" else source.op != "previous"
            if source.op == "constant" or not (reaches or factor == "q"):
                continue
            edge = Edge(self.walk, node, slot, factor, t, at, c, self.call)
            into = self.static[t] if static and factor != "static" else pending
            given = self._gathered(edge) if static else self._given(edge)
            before = into.get(arg)
            if before is not None:
                given = before + given if self.hooks.add is None else self.hooks.add(edge, before, given)
            into[arg] = given

    def _given(self, edge: Edge) -> FloatArray:
        given = edge.pull() if self.hooks.edge is None else self.hooks.edge(edge)
        return np.broadcast_to(given, (self.walk.setup.batch, *given.shape[1:]))

    def _gathered(self, edge: Edge) -> FloatArray:
        """The sum over samples; of products as one product, where no hook wants to see the samples."""
        if self.hooks.edge is None and self.hooks.gather is None and (edge.node.op, edge.slot) == ("matmul", 0):
            v = edge.args[1]
            return np.asarray((edge.cotangent.T @ np.broadcast_to(v, (len(edge.cotangent), v.shape[1])))[None])
        given = edge.pull() if self.hooks.edge is None else self.hooks.edge(edge)
        if self.hooks.gather is None or edge.factor == "static":
            return np.asarray(given.sum(axis=0, keepdims=True))
        return self.hooks.gather(edge, given)

    def params(self, static: Mapping[int, FloatArray]) -> dict[str, FloatArray]:
        """The gradient by parameter, from cotangents of static nodes."""
        pending, found = dict(static), dict[str, FloatArray]()
        for node in reversed(self.walk.graph.nodes):
            if node.index not in pending:
                continue
            c = pending.pop(node.index)
            if node.op == "param":
                found[node.name] = c[0]
            else:
                self._visit(Step(0, "static"), node, c, pending)
        return found

    def gradient(self) -> dict[str, Array]:
        """The gradient by name, in shape, in float64."""
        total: Cotangents = {}
        for one in reversed(self.static):
            for n, c in one.items():
                total[n] = total[n] + c if n in total else c
        with np.errstate(all="ignore"):
            params = self.params(total)
        return {x.name: self._shaped(x, params) for x in self.walk.setup.wrt}

    def _shaped(self, x: Tensor, params: Mapping[str, FloatArray]) -> Array:
        setup = self.walk.setup
        if x.kind == "input":
            n, own = setup.graph.leaf.get(x.name, -1), x.shape[1:] if setup.graph.recurrent else x.shape
            return np.array([one.get(n, np.zeros(own)) for one in self.inputs]).reshape(x.shape)
        if x.kind == "state":
            return _initial(setup, x, self.start.get(x.name))
        return on_pattern(np.broadcast_to(params.get(x.name, 0.0), x.shape), x)


@dataclass(frozen=True)
class Step:
    """Where a pass is."""

    t: int
    factor: Factor


def on_pattern(value: Array, tensor: Tensor) -> Array:
    """A copy with zeros where a density leaves entries out."""
    if tensor.pattern is None:
        return value.copy()
    kept = np.zeros(tensor.shape, value.dtype)
    kept.reshape(-1)[tensor.pattern] = value.reshape(-1)[tensor.pattern]
    return kept


def _initial(setup: Setup, x: Tensor, c: FloatArray | None) -> Array:
    if c is None:
        return np.zeros(x.shape)
    return np.array(c.sum(axis=0) if x.name in setup.shared else c)


def _sum(one: FloatArray | None, other: FloatArray | None) -> FloatArray | None:
    if one is None or other is None:
        return other if one is None else one
    return one + other
