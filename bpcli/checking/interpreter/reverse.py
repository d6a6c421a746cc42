"""Backwards through the unrolled graph, node by node: c(t) = q(t) + J(t+1)ᵀ c(t+1), g = Σ_t q_w(t) + M̄(t)ᵀ c(t).

Slow, short, and independent of the kernels: what the reverse pass means, with a place to plant a fault in every rule.
q, J and M̄ are passes of their own, so that each can be changed without the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from bpcli.checking.interpreter.hooks import RIGHT, Edge, Factor, Hooks
from bpcli.checking.interpreter.walk import States, Walk
from bpcli.graph.nodes import Node, Phase
from bpcli.problem.definition import Array, Setup, Tensor
from bpcli.references.base import FloatArray
from bpcli.runtime.reverse_mode import Window

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
