"""The tangent network: the derivative of a network along changes of its preactivations, as a network of its own.

Under an imaginary step the real parts of all perturbed copies equal those of the unperturbed network bitwise, so that
only imaginary parts have to be computed. Linear operations apply to them unchanged; every other operation multiplies
them by a factor, its partial derivative from the complex forward rule, computed once per value of the network instead
of once per copy. No reverse rule is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpcli.graph.nodes import Graph, Node, Phase
from bpcli.graph.operations import STOPPING, SWITCHED
from bpcli.problem.definition import Problem, Setup, cast
from bpcli.references.perturbation import STEP
from bpcli.references.perturbation.perturbed import Perturbed
from bpcli.references.perturbation.preactivations import terms
from bpcli.runtime.evaluation import node_values
from bpcli.runtime.reverse_mode import Window
from bpcli.tape.lowering import active_nodes


def factors(
    problem: Problem, wanted: Mapping[str, tuple[int, int]], values: Mapping[int, NDArray[np.float64]]
) -> dict[str, NDArray[np.float64]]:
    """Partial derivatives `(T, batch, *shape)` by name, for `wanted` pairs of a node and the index of an argument.

    `values` are those of the arguments. All operations run on all steps at once, first with imaginary steps of their
    first arguments, then of the second ones. A dot product counts as an elementwise product.
    """
    setup, graph = problem.setup, problem.setup.graph
    if not wanted:
        return {}
    own, at = _operations(setup, tuple(sorted({n for n, _ in wanted.values()})))
    rows = own.batch
    args = sorted({(n, k) for n in at for k in range(len(graph.nodes[n].args))})
    found = {}
    for k in sorted({k for _, k in wanted.values()}):
        arrays: dict[str, Any] = {}
        for n, j in args:
            arg = graph.nodes[graph.nodes[n].args[j]]
            every = np.broadcast_to(values[arg.index], (setup.T, setup.batch, arg.size)).reshape(rows, *arg.shape)
            arrays[f"{n} {j}"] = every + (STEP * 1j if j == k else 0.0)
        shifted = node_values(Problem(own, {}, arrays, {}), [at[n] for n, j in wanted.values() if j == k])
        for name, (n, j) in wanted.items():
            if j == k:
                shape = own.graph.nodes[at[n]].shape
                found[name] = (shifted[at[n]][0].imag / STEP).reshape(setup.T, setup.batch, *shape)
    return found


@lru_cache(maxsize=4)
def _operations(setup: Setup, ops: tuple[int, ...]) -> tuple[Setup, dict[int, int]]:
    """A complex128 setup with all steps as rows, whose graph applies `ops` to inputs named "node argument"; and the
    places of `ops` in it."""
    graph = setup.graph
    args = [(n, k) for n in ops for k in range(len(graph.nodes[n].args))]
    nodes, place = list[Node](), graph.nodes[graph.loss].place
    for n, k in args:
        shape = graph.nodes[graph.nodes[n].args[k]].shape
        nodes.append(Node(len(nodes), "input", (), shape, Phase.INPUT, (), f"{n} {k}", place))
    leaf, at = {node.name: node.index for node in nodes}, {}
    for n in ops:
        op = graph.nodes[n]
        product = op.op == "dot"
        shape = graph.nodes[op.args[0]].shape if product else op.shape
        inputs = tuple(leaf[f"{n} {k}"] for k in range(len(op.args)))
        at[n] = len(nodes)
        name = "multiply" if product else op.op
        nodes.append(Node(len(nodes), name, inputs, shape, Phase.INPUT, op.numbers, "", place))
    nodes.append(Node(len(nodes), "sum", (len(nodes) - 1,), (), Phase.INPUT, (), "", place))
    small = Graph(tuple(nodes), leaf, {}, {}, {}, len(nodes) - 1, ())
    dtype: Any = np.dtype(np.complex128)
    rows = setup.T * setup.batch
    return replace(setup, graph=small, T=1, batch=rows, dtype=dtype, wrt=(), shared=frozenset()), at


_MIXED = frozenset({"logsumexp", "softmax", "log_softmax"})


def has_tangent(old: Graph, zs: Sequence[int]) -> bool:
    """Whether the tangent along changes of `zs` exists and consists of products, sums and factors."""
    active = active_nodes(old, {*zs, *old.previous.values()})
    return bool(zs) and old.loss in active and not any(old.nodes[n].op in _MIXED for n in active)


@dataclass
class Draft:
    """A tangent graph under construction.

    `tangent` maps nodes to their tangents; `read` are the nodes whose values are needed. Of the new leaves, `matrices`
    are static nodes, `factors` partial derivatives (node, argument), and `zeros` have a shape only.
    """

    old: Graph
    nodes: list[Node] = field(default_factory=list)
    leaf: dict[str, int] = field(default_factory=dict)
    tangent: dict[int, int] = field(default_factory=dict)
    read: set[int] = field(default_factory=set)
    matrices: dict[str, int] = field(default_factory=dict)
    factors: dict[str, tuple[int, int]] = field(default_factory=dict)
    zeros: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @staticmethod
    def of(old: Graph, zs: Sequence[int]) -> Draft | None:
        """The tangent along changes of the nodes `zs`; None if `has_tangent` is false."""
        if not has_tangent(old, zs):
            return None
        previous, draft = old.previous.values(), Draft(old)
        active = active_nodes(old, {*zs, *previous})
        for name, n in old.previous.items():
            draft.tangent[n] = draft._leaf("previous", name, old.nodes[n].shape)
        ends = {*zs, *old.new.values(), old.loss}
        for n in sorted((active | ends) - set(previous)):
            node = old.nodes[n]
            found = draft._visit(node)
            # Changed nodes, states and the loss need values of their own; a product may be fused into a sum.
            shared = found is None or found in draft.tangent.values() or draft.nodes[found].op == "matmul"
            if n in ends and shared:
                at = found if found is not None else draft._zero(node.shape)
                found = draft._add("copy", (at,), node.shape, node.phase)
            if found is not None:
                draft.tangent[n] = found
        return draft

    @property
    def graph(self) -> Graph:
        """The finished graph."""
        old, at = self.old, self.tangent
        previous = {name: at[n] for name, n in old.previous.items()}
        new = {name: at[n] for name, n in old.new.items()}
        return Graph(tuple(self.nodes), self.leaf, {}, previous, new, at[old.loss], ())

    def _visit(self, node: Node) -> int | None:
        """The tangent of a node; None if it is zero."""
        args = [self.tangent.get(a) for a in node.args]
        if node.op in STOPPING or all(a is None for a in args):
            return None
        if node.op == "matmul":
            return self._apply(node, (self._matrix(node.args[0]), args[1]))
        if node.op == "concat":
            shapes = (self.old.nodes[a].shape for a in node.args)
            parts = (self._zero(shape) if a is None else a for a, shape in zip(args, shapes, strict=True))
            return self._apply(node, tuple(parts))
        if node.op in ("copy", "negate", "sum", "slice"):
            return self._apply(node, tuple(args))
        if node.op == "subtract" and args[1] is not None:
            # Kept as a subtraction, since a subtracted product is never fused.
            first = args[0] if args[0] is not None else self._zero(self.old.nodes[node.args[0]].shape)
            return self._apply(node, (first, args[1]))
        if node.op in ("add", "subtract"):
            return self._sum(node, args)
        if node.op in SWITCHED:
            args.pop()
        return self._sum(node, [None if a is None else self._product(node, k, a) for k, a in enumerate(args)])

    def _product(self, node: Node, k: int, tangent: int) -> int:
        """The tangent of argument k times its factor."""
        name = f"factor {node.index} {k}"
        shape = self.old.nodes[node.args[k]].shape if node.op == "dot" else node.shape
        self.factors[name] = (node.index, k)
        self.read |= set(node.args)
        factor = self._leaf("input", name, shape)
        if node.op == "dot":
            return self._add("dot", (tangent, factor), (), node.phase)
        return self._add("multiply", (tangent, factor), node.shape, node.phase)

    def _sum(self, node: Node, parts: Sequence[int | None]) -> int:
        """The sum of the parts that are not zero, in the node's shape."""
        there = [p for p in parts if p is not None]
        if len(there) == 1 and self.nodes[there[0]].shape == node.shape:
            return there[0]
        if len(there) == 1:
            there.append(self._zero(node.shape))
        return self._add("add", tuple(there), node.shape, node.phase)

    def _matrix(self, n: int) -> int:
        """The leaf of a static matrix, transposed if the node is."""
        node = self.old.nodes[n]
        if node.op == "transpose":
            return self._add("transpose", (self._matrix(node.args[0]),), node.shape, Phase.STATIC)
        name = f"matrix {n}"
        self.matrices[name] = n
        self.read.add(n)
        return self._leaf("param", name, node.shape)

    def _zero(self, shape: tuple[int, ...]) -> int:
        name = f"zero {shape}"
        self.zeros[name] = shape
        return self._leaf("input", name, shape)

    def _leaf(self, op: str, name: str, shape: tuple[int, ...]) -> int:
        if name in self.leaf:
            return self.leaf[name]
        phase = {"param": Phase.STATIC, "input": Phase.INPUT, "previous": Phase.RECURRENT}[op]
        found = self._add(op, (), shape, phase, name=name)
        if op != "previous":
            self.leaf[name] = found
        return found

    def _apply(self, node: Node, args: tuple[int | None, ...]) -> int:
        there = tuple(a for a in args if a is not None)
        assert len(there) == len(node.args), "one argument, or all"
        return self._add(node.op, there, node.shape, node.phase, node.numbers)

    def _add(
        self,
        op: str,
        args: tuple[int, ...],
        shape: tuple[int, ...],
        phase: Phase,
        numbers: tuple[float, ...] = (),
        name: str = "",
    ) -> int:
        phase = max([phase, *(self.nodes[a].phase for a in args)])
        place = self.old.nodes[self.old.loss].place
        self.nodes.append(Node(len(self.nodes), op, args, shape, phase, numbers, name, place))
        return len(self.nodes) - 1


@dataclass(frozen=True, eq=False)
class Tangents:
    """Perturbed copies of the tangent network; `nodes` maps nodes to their tangents."""

    perturbed: Perturbed
    nodes: Mapping[int, int]


def tangents(problem: Problem, windows: Sequence[Window]) -> Tangents | None:
    """The tangent network of a problem; None if an operation mixes entries other than by products and sums."""
    setup, graph = problem.setup, problem.setup.graph
    drafted = _drafted(setup)
    if drafted is None:
        return None
    draft, own = drafted
    double = cast(problem, np.dtype(np.float64))
    values = node_values(double, sorted(draft.read))
    matrices = {name: values[n].reshape(graph.nodes[n].shape) for name, n in draft.matrices.items()}
    inputs = {name: np.zeros((setup.T, setup.batch, *shape)) for name, shape in draft.zeros.items()}
    inputs |= factors(double, draft.factors, values)
    if not setup.graph.recurrent:
        inputs = {name: rows[0] for name, rows in inputs.items()}
    state = {name: np.zeros((setup.batch, *graph.nodes[n].shape)) for name, n in graph.previous.items()}
    made = Problem(own, matrices, inputs, state)
    return Tangents(Perturbed(made, windows, np.dtype(np.float64)), draft.tangent)


@lru_cache(maxsize=4)
def _drafted(setup: Setup) -> tuple[Draft, Setup] | None:
    """The tangent graph of a setup, and its setup."""
    zs = sorted({term.z for some in terms(setup.graph).values() for term in some})
    draft = Draft.of(setup.graph, zs)
    if draft is None:
        return None
    return draft, replace(setup, graph=draft.graph, dtype=np.dtype(np.float64), wrt=(), shared=frozenset())
