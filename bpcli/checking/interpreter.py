"""The reference interpreter: the unrolled graph node by node in NumPy and float64, with hooks that replace its rules.

Reverse mode is c(t) = q(t) + J(t+1)ᵀ c(t+1), g = Σ_t q_w(t) + M̄(t)ᵀ c(t). q, J and M̄ are separate passes, so that a
fault can be planted in one of them alone. The code is slow, short, and independent of the kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from bpcli.checking.rules import apply, vjp
from bpcli.checking.sources.validate_gradient import on_pattern
from bpcli.graph.nodes import Graph, Node, Phase
from bpcli.problem.definition import Array, Problem, Setup, Tensor, cast
from bpcli.references.base import FloatArray
from bpcli.runtime.reverse_mode import Window, loss_weights

States = dict[str, FloatArray]


@dataclass(frozen=True, eq=False)
class ForwardPass:
    """`values[t][n]` is node n's value at step t, (B, *shape), or (1, *shape) if it is static.

    `problem` is in float64 for any dtype of the spec; `weights (T, B)` are ∂L/∂l(t, b).
    """

    problem: Problem
    values: tuple[tuple[FloatArray, ...], ...]
    weights: FloatArray

    @property
    def setup(self) -> Setup:
        """The setup of the problem."""
        return self.problem.setup

    @property
    def graph(self) -> Graph:
        """The graph of one step."""
        return self.problem.setup.graph

    @property
    def loss(self) -> float:
        """The total loss."""
        losses = [np.broadcast_to(v[self.graph.loss], self.setup.batch) for v in self.values]
        return float((np.array(losses) * self.weights).sum())


def run_forward(problem: Problem) -> ForwardPass:
    """Run the graph forwards over all steps and keep every value."""
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
    return ForwardPass(double, tuple(steps), loss_weights(setup))


def interpreter_cost(setup: Setup) -> float:
    """Approximate operations of one gradient, to which time and memory are proportional."""
    entries = sum(n.size for n in setup.graph.nodes if n.phase is not Phase.STATIC) * setup.batch
    products = sum(setup.graph.nodes[n.args[0]].size for n in setup.graph.nodes if n.op == "matmul") * setup.batch
    return float(setup.T * (entries + products + 2000 * len(setup.graph.nodes)))


def _spread(value: FloatArray, setup: Setup, name: str = "") -> FloatArray:
    """A state, or the initial state of that name, with a value for every sample."""
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
"""A pass through one step: q is ∂l/∂(a(t), a(t-1), w, x), J is cᵀ ∂a(t)/∂a(t-1), M is cᵀ ∂a(t)/∂(w, x).

"static" is the pass through nodes that depend on parameters and constants alone and are computed once.
"""


@dataclass(frozen=True, eq=False)
class Edge:
    """One use of a value: argument `slot` of `node`, at step `t`, with the cotangent (B or 1, *shape) of the node.

    `at` is the step whose values are used, `t` itself unless a hook replaces it; `call` counts earlier gradients. A
    `rule` replaces the right contribution, for a hook that changes what another hook gives.
    """

    forward: ForwardPass
    node: Node
    slot: int
    factor: Factor
    t: int
    at: int
    cotangent: FloatArray
    call: int
    rule: Callable[[Edge], FloatArray] | None = None

    @property
    def source(self) -> Node:
        """The node that is used."""
        return self.forward.graph.nodes[self.node.args[self.slot]]

    @property
    def args(self) -> Sequence[FloatArray]:
        """The values of the node's arguments."""
        return [self.forward.values[self.at][a] for a in self.node.args]

    @property
    def value(self) -> FloatArray:
        """The node's own value."""
        return self.forward.values[self.at][self.node.index]

    def vjp(self, args: Sequence[FloatArray] | None = None, cotangent: FloatArray | None = None) -> FloatArray:
        """The right contribution to the argument (B or 1, *shape), before it is summed over samples."""
        if self.rule is not None and args is None and cotangent is None:
            return self.rule(replace(self, rule=None))
        c = self.cotangent if cotangent is None else cotangent
        return vjp(self.node.op, self.slot, c, self.args if args is None else args, self.value, self.node.numbers)


@dataclass(frozen=True)
class Hooks:
    """Rules that replace the right ones; None keeps the right one.

    - `edge(edge)`: a contribution, as `Edge.vjp` gives it.
    - `gather(edge, contribution)`: its sum over samples (1, *shape), for an argument that is the same for all of them.
    - `add(edge, before, contribution)`: the cotangent of an argument that has one already.
    - `weights(forward)`: ∂L/∂l(t, b), (T, B).
    - `at(factor, t)`: the step at whose values the derivatives of `factor` at step t are taken.
    - `carry(reverse, t, credit)`: J(t)ᵀ c(t), the cotangents of the states at t-1 through those at t.
    - `end(reverse)`: cotangents of the states after the last step.
    - `answer(problem, arrays, call)`: the gradient by name, from the right one.
    """

    edge: Callable[[Edge], FloatArray] | None = None
    gather: Callable[[Edge, FloatArray], FloatArray] | None = None
    add: Callable[[Edge, FloatArray, FloatArray], FloatArray] | None = None
    weights: Callable[[ForwardPass], FloatArray] | None = None
    at: Callable[[Factor, int], int] | None = None
    carry: Callable[[ReversePass, int, States], States] | None = None
    end: Callable[[ReversePass], States] | None = None
    answer: Callable[[Problem, Mapping[str, Array], int], dict[str, Array]] | None = None


RIGHT = Hooks()


Cotangents = dict[int, FloatArray]


@dataclass(eq=False)
class ReversePass:
    """Reverse mode over a forward pass.

    `static[t]` holds step t's contributions to static nodes, `inputs[t]` the cotangents of the inputs, `start` those of
    the initial states. `window` limits the losses and the steps, as for truncated methods; None takes all.
    """

    forward: ForwardPass
    hooks: Hooks = RIGHT
    call: int = 0
    window: Window | None = None
    static: list[Cotangents] = field(default_factory=list)
    inputs: list[Cotangents] = field(default_factory=list)
    start: States = field(default_factory=dict)

    def run(self) -> ReversePass:
        """Run from the last step to the first."""
        graph, T = self.forward.graph, self.forward.setup.T
        self.static, self.inputs = [{} for _ in range(T)], [{} for _ in range(T)]
        window = self.window or Window(0, 0, T)
        replaced = self.hooks.weights
        weights = (self.forward.weights if replaced is None else replaced(self.forward)).copy()
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
        graph = self.forward.graph
        found = self.back(t, "J", {graph.new[name]: c for name, c in credit.items()})
        return {name: found[n] for name, n in graph.previous.items() if n in found}

    def back(self, t: int, factor: Factor, seeds: Mapping[int, FloatArray]) -> Cotangents:
        """One pass through step t: the cotangents of the states at t-1, and for q also of those at t."""
        graph, ends = self.forward.graph, frozenset(self.forward.graph.new.values())
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
                self._visit(t, factor, node, c, pending)
        return found

    def _visit(self, t: int, factor: Factor, node: Node, c: FloatArray, pending: Cotangents) -> None:
        """Add the contributions of one node to its arguments; those to static nodes are kept for later."""
        graph = self.forward.graph
        at = t if self.hooks.at is None else self.hooks.at(factor, t)
        for slot, arg in enumerate(node.args):
            source = graph.nodes[arg]
            static = source.phase is Phase.STATIC
            reaches = source.phase in (Phase.RECURRENT, Phase.OUTPUT) if factor == "J" else source.op != "previous"
            if source.op == "constant" or not (reaches or factor == "q"):
                continue
            edge = Edge(self.forward, node, slot, factor, t, at, c, self.call)
            into = self.static[t] if static and factor != "static" else pending
            if static:
                given = self._gathered(edge)
            else:
                given = self._contribution(edge)
                given = np.broadcast_to(given, (self.forward.setup.batch, *given.shape[1:]))
            before = into.get(arg)
            if before is not None:
                given = before + given if self.hooks.add is None else self.hooks.add(edge, before, given)
            into[arg] = given

    def _contribution(self, edge: Edge) -> FloatArray:
        return edge.vjp() if self.hooks.edge is None else self.hooks.edge(edge)

    def _gathered(self, edge: Edge) -> FloatArray:
        """The contribution summed over samples; that of a matrix product as one product, unless a hook replaces it."""
        if self.hooks.edge is None and self.hooks.gather is None and (edge.node.op, edge.slot) == ("matmul", 0):
            v = edge.args[1]
            return np.asarray((edge.cotangent.T @ np.broadcast_to(v, (len(edge.cotangent), v.shape[1])))[None])
        given = self._contribution(edge)
        if self.hooks.gather is None or edge.factor == "static":
            return np.asarray(given.sum(axis=0, keepdims=True))
        return self.hooks.gather(edge, given)

    def params(self, static: Mapping[int, FloatArray]) -> dict[str, FloatArray]:
        """The gradient by parameter, from cotangents of static nodes."""
        pending, found = dict(static), dict[str, FloatArray]()
        for node in reversed(self.forward.graph.nodes):
            if node.index not in pending:
                continue
            c = pending.pop(node.index)
            if node.op == "param":
                found[node.name] = c[0]
            else:
                self._visit(0, "static", node, c, pending)
        return found

    def gradient(self) -> dict[str, Array]:
        """The gradient by name, in shape, in float64."""
        total: Cotangents = {}
        for one in reversed(self.static):
            for n, c in one.items():
                total[n] = total[n] + c if n in total else c
        with np.errstate(all="ignore"):
            params = self.params(total)
        return {x.name: self._shaped(x, params) for x in self.forward.setup.wrt}

    def _shaped(self, x: Tensor, params: Mapping[str, FloatArray]) -> Array:
        setup = self.forward.setup
        if x.kind == "input":
            n, own = setup.graph.leaf.get(x.name, -1), x.shape[1:] if setup.graph.recurrent else x.shape
            return np.array([one.get(n, np.zeros(own)) for one in self.inputs]).reshape(x.shape)
        if x.kind == "state":
            c = self.start.get(x.name)
            if c is None:
                return np.zeros(x.shape)
            return np.array(c.sum(axis=0) if x.name in setup.shared else c)
        return on_pattern(np.array(np.broadcast_to(params.get(x.name, 0.0), x.shape)), x)


def _sum(one: FloatArray | None, other: FloatArray | None) -> FloatArray | None:
    if one is None or other is None:
        return other if one is None else one
    return one + other
