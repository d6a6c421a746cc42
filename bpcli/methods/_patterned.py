"""Online rules on the entries of a pattern of M: M ← mask ∘ (A M + M̄), where A is J or its part along some paths.

The rule in NumPy defines the method; its gradient comes from compiled code (`bpcli.runtime.sparse_influence`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpcli.graph.nodes import Phase
from bpcli.methods._online import Online
from bpcli.methods.base import Cost, Definition, Gradient, StepGradient
from bpcli.problem.definition import Array, Problem, Setup
from bpcli.runtime.local_derivatives import InfluenceLayout, LocalDerivatives, influence_layout
from bpcli.runtime.sparse_influence import sparse_gradient
from bpcli.runtime.sparse_plan import Sparsity, sets_of, sparse_plan
from bpcli.tape.plan import phase_flops
from bpcli.tape.probing import Paths


@dataclass(frozen=True, eq=False)
class Pattern:
    """The entries of M, sorted by column: their `rows` and `columns`, and where each column that has any `starts`.

    Entry e is the sum over the terms of A[rows[e], rows[from_]] M[from_], in the order of entries, which begin at
    `sums`; `A` are the flat indices of the factors.
    """

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    starts: NDArray[np.int64]
    from_: NDArray[np.int64]
    A: NDArray[np.int64]
    sums: NDArray[np.int64]
    P: int


@lru_cache(maxsize=4)
def pattern_of(layout: InfluenceLayout, sparsity: Sparsity) -> Pattern:
    """The entries of a pattern and the terms of their sums."""
    columns, rows = np.nonzero(sets_of(layout, sparsity).pattern().T)
    starts = np.flatnonzero(np.diff(columns, prepend=-1))
    counts = np.diff(starts, append=len(columns))
    many = np.repeat(counts, counts)  # the terms of each entry: as many as its column has entries
    sums = np.cumsum(many) - many
    first = np.repeat(np.repeat(starts, counts), many)
    from_ = first + np.arange(int(many.sum())) - np.repeat(sums, many)
    return Pattern(rows, columns, starts, from_, np.repeat(rows, many) * layout.N + rows[from_], sums, layout.P)


@dataclass(frozen=True)
class Entries:
    """The entries of M after a step and before it, (batch, entries)."""

    M: Array
    before: Array
    pattern: Pattern
    paths: Paths | None


@dataclass(frozen=True, eq=False)
class OnPattern:
    """The influence on the pattern that `sparsity` has for the options."""

    sparsity: Callable[[Any], Sparsity]

    def start(self, setup: Setup, options: Any, rng: np.random.Generator) -> Entries:
        """M(0)."""
        layout = influence_layout(setup)
        sparsity = self.sparsity(options)
        pattern = pattern_of(layout, sparsity)
        M = layout.initial(1, setup.dtype)[:, pattern.rows, pattern.columns].repeat(setup.batch, axis=0)
        return Entries(M, M, pattern, sparsity.paths)

    def step(self, state: Entries, local: LocalDerivatives) -> Entries:
        """A M + M̄ at the entries of the pattern."""
        p, batch, paths = state.pattern, len(state.M), state.paths
        M = np.zeros_like(state.M)
        if len(p.rows):
            A = local.J if paths is None else local.jacobian.along(paths)
            terms = A.reshape(batch, -1)[:, p.A] * state.M[:, p.from_]
            M += np.add.reduceat(terms, p.sums, axis=1)
        for factor in local.factors:
            inside = slice(*np.searchsorted(p.columns, [factor.columns.start, factor.columns.stop]))
            M[:, inside] += factor.at(p.rows[inside], p.columns[inside] - factor.columns.start)
        return replace(state, M=M, before=state.M)

    def credit(self, state: Entries, local: LocalDerivatives) -> StepGradient:
        """q M for the states after and before the step, and the direct part."""
        return StepGradient(credited(state, local.q, local.q_before), local.direct)


def credited(state: Entries, q: Array, q_before: Array) -> Array:
    """q M(t) + q_before M(t-1), (batch, P), of row vectors (batch, N)."""
    p = state.pattern
    g = np.zeros((len(state.M), p.P), state.M.dtype)
    if len(p.rows):
        parts = q[:, p.rows] * state.M + q_before[:, p.rows] * state.before
        g[:, p.columns[p.starts]] = np.add.reduceat(parts, p.starts, axis=1)
    return g


@dataclass(frozen=True, eq=False)
class SparseKernels:
    """The same in compiled code."""

    sparsity: Callable[[Any], Sparsity]

    def cost(self, setup: Setup, options: Any) -> Cost:
        """Per step and sample 2 r² c + 4 r c for each set of r rows that c columns have, as many single-step reverse
        passes as M̄ and A have colours (J at most the work of N), and one for q."""
        plan = sparse_plan(setup, self.sparsity(options))
        once = sum(phase_flops(setup.graph, phase) for phase in Phase if phase is not Phase.STATIC)
        flops = setup.T * setup.batch * (plan.local.flops + 3 * once + plan.flops)
        results = sum(int(np.prod(x.shape)) for x in setup.wrt)
        held = plan.local.entries + plan.gathered + setup.batch * plan.layout.P + 3 * results
        return Cost(flops, held * setup.dtype.itemsize, setup.T)

    def gradient(self, problem: Problem, options: Any) -> Gradient:
        """Run forwards, a chunk of steps at a time."""
        return Gradient(*sparse_gradient(problem, self.sparsity(options)))


def terms_of(layout: InfluenceLayout, sparsity: Sparsity) -> tuple[int, int]:
    """The entries of the pattern, and the terms of all their sums."""
    sets = sets_of(layout, sparsity)
    counts = sets.sets.sum(axis=0)
    columns = np.bincount(sets.of, minlength=len(counts))
    return int(counts @ columns), int(counts**2 @ columns)


def patterned(
    name: str,
    summary: str,
    tags: frozenset[str],
    Options: type[Any],
    sparsity: Callable[[Any], Sparsity],
    defined: Callable[[Setup, Any], Definition] | None = None,
) -> Online:
    """A method on a pattern; its definition is the rule itself, or `defined`. In NumPy it would take the given cost."""

    def terms(layout: InfluenceLayout, options: Any) -> tuple[int, int]:
        return terms_of(layout, sparsity(options))

    return Online(
        name=name,
        summary=summary,
        tags=tags,
        Options=Options,
        rule=OnPattern(sparsity),
        flops=lambda layout, options: 2.0 * terms(layout, options)[1] + 6.0 * terms(layout, options)[0],
        entries=lambda layout, options: 9 * terms(layout, options)[0] + 3 * terms(layout, options)[1] + 2 * layout.P,
        shared=lambda layout, options: 8 * terms(layout, options)[0] + 4 * terms(layout, options)[1],
        defined=defined,
        compiled=SparseKernels(sparsity),
    )
