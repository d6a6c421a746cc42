"""Online rules that hold the influence of a matrix as Kronecker products.

A matrix W (m, n) enters a step by a product p = W x. With D (N, m) = ∂a(t)/∂p its immediate influence is D ⊗ x, and of
an influence that is a sum of terms A ⊗ u, A (N, m) and u (n),

    J (Σ A ⊗ u) + D ⊗ x = Σ (J A) ⊗ u + D ⊗ x                                                    (1)

has one more. A rule makes the terms few again, by random signs such that the mean is the sum (1). All that follows is
linear in the terms, so that the mean of the influence is exact at every step, and so is that of the gradient.

That holds on any recurrent graph: D has all ways from a product to all states. Every product has terms of its own, and
those of the products of one matrix add up. A vector that a step adds is a product with the number 1, of which A alone
is the influence: it is kept without a random sign, as are those of initial states and inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bpcli.graph.nodes import Graph, Phase, ancestors
from bpcli.methods._random import signs
from bpcli.methods.base import StepGradient
from bpcli.problem.definition import Array, Setup
from bpcli.runtime.local_derivatives import Factor, InfluenceLayout, LocalDerivatives, influence_layout

Terms = tuple[Factor, ...]
Reduce = Callable[[Terms, Factor, Array, Any], Terms]
"""The terms of a product after a step: from those before it, times J, what enters, and signs (batch, bits)."""
Key = tuple[int, int, bool]
"""The first column of a term, its number among those that begin there, and whether it is a product."""


@dataclass(frozen=True)
class Influence:
    """The terms of all products and of other columns after a step, and before it, options, and the source of signs."""

    terms: Mapping[Key, Terms]
    before: Mapping[Key, Terms]
    options: Any
    rng: np.random.Generator


@dataclass(frozen=True)
class Kronecker:
    """The rule with that `reduce`, which takes `bits(products, options)` random signs a step and sample.

    All products of a step take the same signs: each is right in the mean by itself.
    """

    reduce: Reduce
    bits: Callable[[Terms, Any], int]

    def start(self, setup: Setup, options: Any, rng: np.random.Generator) -> Influence:
        """M(0): initial states alone have an influence."""
        layout, terms = influence_layout(setup), dict[Key, Terms]()
        for name, rows in layout.states.items():
            if name in layout.columns:
                columns = layout.columns[name]
                M = np.zeros((setup.batch, layout.N, rows.stop - rows.start), setup.dtype)
                M[:, rows] = np.eye(rows.stop - rows.start)
                terms[columns.start, 0, False] = (Factor(columns, M, None, False, None),)
        return Influence(terms, terms, options, rng)

    def step(self, state: Influence, local: LocalDerivatives) -> Influence:
        """Equation (1) for every product, reduced."""
        entered = dict(_keyed(local.factors))
        products = tuple(f for f in entered.values() if f.vector is not None)
        bits = self.bits(products, state.options) if products else 0
        drawn = signs(state.rng, (len(local.J), bits)).astype(local.J.dtype)
        terms = {key: tuple(replace(f, delta=local.J @ f.delta) for f in old) for key, old in state.terms.items()}
        for key, new in entered.items():
            if new.vector is not None:
                terms[key] = self.reduce(terms.get(key, ()), new, drawn, state.options)
            else:
                whole = new.dense() + sum(f.delta for f in terms.get(key, ()))
                terms[key] = (Factor(new.columns, np.asarray(whole), None, False, None),)
        return replace(state, terms=terms, before=state.terms)

    def credit(self, state: Influence, local: LocalDerivatives) -> StepGradient:
        """(q A) ⊗ u for the terms after and before the step, and the direct part."""
        g = np.zeros((len(local.q), local.layout.P), local.q.dtype)
        for rows, held in ((local.q, state.terms), (local.q_before, state.before)):
            for factor in (f for terms in held.values() for f in terms):
                g[:, factor.columns] += factor.times(rows)
        return StepGradient(g, local.direct)


def _keyed(factors: Terms) -> Iterator[tuple[Key, Factor]]:
    """The factors of a step by keys that are the same at every step."""
    counts = dict[tuple[int, bool], int]()
    for factor in factors:
        place = factor.columns.start, factor.vector is not None
        counts[place] = counts.get(place, -1) + 1
        yield (place[0], counts[place], place[1]), factor


def unfit(graph: Graph) -> str | None:
    """Graphs in which no product with a matrix of parameters reaches a state have nothing to factor."""
    args = [n.args for n in graph.nodes]
    for n in ancestors(graph.new.values(), args):
        node = graph.nodes[n]
        static = node.op == "matmul" and graph.nodes[node.args[0]].phase is Phase.STATIC
        if static and any(graph.nodes[k].op == "param" for k in ancestors(node.args[:1], args)):
            return None
    return "no product with a matrix of parameters reaches the state: there is nothing to factor; `rtrl` applies"


def product_sizes(layout: InfluenceLayout) -> list[tuple[int, int]]:
    """(m, n) of every product whose matrix has an influence."""
    plan = layout.plan
    spans, nodes = {s.node for s in plan.column_spans}, plan.graph.nodes
    return [(nodes[p.delta].size, nodes[p.vector].size) for p in plan.step.products if p.matrix in spans]


def exact_columns(layout: InfluenceLayout) -> int:
    """Columns of the influence that are no product's."""
    matrices = {p.matrix for p in layout.plan.step.products}
    return sum(s.columns for s in layout.plan.column_spans if s.node not in matrices)


def flops(layout: InfluenceLayout, terms: int, by_inputs: bool = False) -> float:
    """Operations per step and sample with so many terms a product: J A, the balance, and q A; `by_inputs`: (N, n) A."""
    sizes = [n if by_inputs else m for m, n in product_sizes(layout)]
    columns = terms * sum(sizes) + exact_columns(layout)
    return 2.0 * layout.N * layout.N * columns + 12.0 * layout.N * columns + 2.0 * layout.P


def entries(layout: InfluenceLayout, terms: int, by_inputs: bool = False) -> int:
    """Numbers held per sample: terms before a step, times J and after it, what enters one product, and g."""
    sizes = [((n, m) if by_inputs else (m, n)) for m, n in product_sizes(layout)]
    held = sum(terms * (3 * layout.N * m + 3 * n) for m, n in sizes) + 4 * layout.N * exact_columns(layout)
    return held + max((4 * layout.N * m for m, _ in sizes), default=0) + 3 * layout.P
