"""A graph as a derivation reads it: equations have names, everything between them is written inline."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from bpcli.graph.nodes import Graph, Node, Phase
from bpcli.lecture.linear_maps import LinearMap, Use, derivative, written
from bpcli.lecture.terms import STILL, ZERO, Symbol, Term, add_matrices, chain, eye, name, number, size_of
from bpcli.problem.definition import Setup

LONGEST = 24
"""Nodes of an expression that is written inline; a longer one gets a name."""
SHARED = 6
"""The same for an expression that is used more than once."""


@dataclass(eq=False)
class NamedGraph:
    """The graph of a setup; `names` takes the nodes that have a name, of the spec or made here, to it."""

    setup: Setup
    names: dict[int, str] = field(default_factory=dict)
    _terms: dict[int, Term] = field(default_factory=dict)
    _jacobians: dict[tuple[int, int], Term] = field(default_factory=dict)

    def __post_init__(self) -> None:
        free = (f"u{k}" for k in range(1, 10**9))
        taken = {node.name for node in self.nodes} | set(self.setup.spec.dims)
        for node in self.nodes:
            if node.op == "constant":
                self._terms[node.index] = number(node.numbers[0])
                continue
            if node.name:
                label = f"{node.name}[t-1]" if node.op == "previous" else node.name
                self._call(node, label)
                continue
            self._terms[node.index] = self.expression(node.index)
            if self._needs_name(node):
                self._call(node, next(label for label in free if label not in taken))

    @property
    def graph(self) -> Graph:
        """The graph of one step."""
        return self.setup.graph

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Its nodes, each after its arguments."""
        return self.graph.nodes

    def _call(self, node: Node, label: str) -> None:
        self.names[node.index] = label
        key: Hashable = (STILL, node.index) if node.phase is Phase.STATIC else node.index
        self._terms[node.index] = name(Symbol("name", (label,)), key, node.shape)

    def _needs_name(self, node: Node) -> bool:
        """Whether an expression is long, or is a function of parameters that the steps of a recurrent network use."""
        size = size_of(self._terms[node.index])
        used = self.users[node.index]
        if size > LONGEST or (len(used) > 1 and size > SHARED):
            return True
        static = node.phase is Phase.STATIC and node.op != "transpose" and self.graph.recurrent
        return static and node.index in self.varied and any(n.phase is not Phase.STATIC for n, _ in used)

    @cached_property
    def users(self) -> Mapping[int, list[tuple[Node, int]]]:
        """By node, the nodes that use it, with the argument's position."""
        found: dict[int, list[tuple[Node, int]]] = {node.index: [] for node in self.nodes}
        for node in self.nodes:
            for slot, arg in enumerate(node.args):
                found[arg].append((node, slot))
        return found

    @cached_property
    def varied(self) -> frozenset[int]:
        """The nodes that depend on something that is differentiated, or on a state."""
        wanted = {(x.kind, x.name) for x in self.setup.wrt}
        found = {node.index for node in self.nodes if (node.op, node.name) in wanted}
        found |= set(self.graph.previous.values())
        for node in self.nodes:
            if found & set(node.args):
                found.add(node.index)
        return frozenset(found)

    def term(self, n: int) -> Term:
        """A node as it is written where it is used: its name, or its expression."""
        return self._terms[n]

    def expression(self, n: int) -> Term:
        """The right-hand side of a node."""
        node = self.nodes[n]
        return written(node.op, tuple(self._terms[a] for a in node.args), node.numbers, node.shape)

    def value(self, n: int) -> Term:
        """A node's value in a derivative: its name or expression."""
        return self._terms[n] if n in self._terms else self.expression(n)

    def map(self, node: Node, slot: int) -> LinearMap | None:
        """The derivative of a node with respect to one argument."""
        args = tuple(self._terms[a] for a in node.args)
        return derivative(node.op, Use(args, self.value(node.index), slot, node.numbers))

    def named(self, n: int) -> bool:
        """Whether a node has a name of its own, leaves included."""
        return n in self.names

    def leaf(self, n: int) -> bool:
        """Whether a node is no equation."""
        return self.nodes[n].op in ("param", "constant", "input", "previous")

    def equations(self) -> list[int]:
        """The named nodes that are computed, in order."""
        return [n for n in self.names if not self.leaf(n)]

    def reaches(self, ends: frozenset[int], through: frozenset[int] | None = None) -> frozenset[int]:
        """The nodes within a step that lead to one of `ends`; not by way of the nodes in `through`."""
        found = set(ends)
        for node in reversed(self.nodes):
            if node.index in found and not (through and node.index in through and node.index not in ends):
                found |= set(node.args)
        return frozenset(found)

    def jacobian(self, n: int, target: int) -> Term:
        """∂n/∂target with every other named node held fixed, a matrix; `target` may have no name."""
        if (n, target) not in self._jacobians:
            self._jacobians[n, target] = self._jacobian(n, target)
        return self._jacobians[n, target]

    def _jacobian(self, n: int, target: int) -> Term:
        size, memo = self.nodes[n].size, dict[int, Term]()
        memo[n] = eye(size)
        for node in reversed(self.nodes[target + 1 : n + 1]):
            left = memo.get(node.index)
            if left is None or node.index == target or (node.index != n and self.named(node.index)):
                continue
            for slot, arg in enumerate(node.args):
                if (arg != target and self.named(arg)) or self.nodes[arg].op == "constant":
                    continue
                step = self.map(node, slot)
                if step is None or step.matrix is None:
                    continue
                given = chain(left, step.matrix)
                before = memo.get(arg)
                memo[arg] = given if before is None else add_matrices(before, given)
        return memo.get(target, ZERO) if target != n else memo[n]

    def pulled(self, node: Node, slot: int, cotangent: Term) -> tuple[Term, str]:
        """The contribution of a cotangent of a node to one argument, and the rule."""
        step = self.map(node, slot)
        return (ZERO, "") if step is None else (step.pull(cotangent), step.because)
