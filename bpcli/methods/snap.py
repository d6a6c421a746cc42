"""Sparse n-step approximation of RTRL (Menick et al., ICLR 2021): M ← mask ∘ (J M + M̄), on the entries alone.

The mask has the entries of M that may differ from zero within k steps of a parameter's use. It is read off the
equations, with densities, on any recurrent graph: of a vanilla RNN and k = 1 each weight influences its own unit, and
M has P entries; where a step mixes all units, as the reset gate of a GRU does, the mask of some parameters is full.
From some k on the mask is that of M itself, and the gradient exact. Each entry of M is advanced by the entries of its
column: with k = 1 a vanilla RNN takes O(P) a step in plain NumPy. The local derivatives that the rule is given take N
reverse passes of single steps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from bpcli.methods._online import Online
from bpcli.methods.base import StepGradient
from bpcli.problem.definition import Array, Setup
from bpcli.runtime.local_derivatives import InfluenceLayout, LocalDerivatives, influence_layout, influence_pattern


@dataclass(frozen=True)
class Options:
    """The pattern of `k` >= 1 steps."""

    k: int

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k must be at least 1, not {self.k}")


@dataclass(frozen=True, eq=False)
class Pattern:
    """The entries of M, sorted by column: their `rows` and `columns`, and where each column that has any `starts`.

    Entry e is the sum over the terms of J[rows[e], rows[from_]] M[from_], in the order of entries, which begin at
    `sums`; `J` are the flat indices of the factors.
    """

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    starts: NDArray[np.int64]
    from_: NDArray[np.int64]
    J: NDArray[np.int64]
    sums: NDArray[np.int64]


@lru_cache(maxsize=4)
def pattern_of(layout: InfluenceLayout, k: int) -> Pattern:
    """The entries of a mask and the terms of their sums."""
    columns, rows = np.nonzero(influence_pattern(layout, k).T)
    starts = np.flatnonzero(np.diff(columns, prepend=-1))
    counts = np.diff(starts, append=len(columns))
    many = np.repeat(counts, counts)  # the terms of each entry: as many as its column has entries
    sums = np.cumsum(many) - many
    first = np.repeat(np.repeat(starts, counts), many)
    from_ = first + np.arange(int(many.sum())) - np.repeat(sums, many)
    return Pattern(rows, columns, starts, from_, np.repeat(rows, many) * layout.N + rows[from_], sums)


@dataclass(frozen=True)
class Entries:
    """The entries of M after a step and before it, (batch, entries)."""

    M: Array
    before: Array
    pattern: Pattern


class SnAp:
    """The influence within the pattern of some steps."""

    def start(self, setup: Setup, options: Options, rng: np.random.Generator) -> Entries:
        """M(0)."""
        layout = influence_layout(setup)
        pattern = pattern_of(layout, options.k)
        M = layout.initial(1, setup.dtype)[:, pattern.rows, pattern.columns].repeat(setup.batch, axis=0)
        return Entries(M, M, pattern)

    def step(self, state: Entries, local: LocalDerivatives) -> Entries:
        """J M and M̄ at the entries of the mask."""
        p, batch = state.pattern, len(state.M)
        M = np.zeros_like(state.M)
        if len(p.rows):
            terms = local.J.reshape(batch, -1)[:, p.J] * state.M[:, p.from_]
            M += np.add.reduceat(terms, p.sums, axis=1)
        for factor in local.factors:
            inside = slice(*np.searchsorted(p.columns, [factor.columns.start, factor.columns.stop]))
            M[:, inside] += factor.at(p.rows[inside], p.columns[inside] - factor.columns.start)
        return replace(state, M=M, before=state.M)

    def credit(self, state: Entries, local: LocalDerivatives) -> StepGradient:
        """q M for the states after and before the step, and the direct part."""
        p = state.pattern
        g = np.zeros((len(state.M), local.layout.P), state.M.dtype)
        if len(p.rows):
            parts = local.q[:, p.rows] * state.M + local.q_before[:, p.rows] * state.before
            g[:, p.columns[p.starts]] = np.add.reduceat(parts, p.starts, axis=1)
        return StepGradient(g, local.direct)


def _terms(layout: InfluenceLayout, options: Options) -> tuple[int, int]:
    """The entries of the mask, and the terms of all their sums."""
    counts = influence_pattern(layout, options.k).sum(axis=0)
    return int(counts.sum()), int((counts * counts).sum())


PER_STEP = ("2 Σ c² + 2 N F", "12 Σ c + 3 Σ c²")
METHOD = Online(
    name="snap",
    summary="rtrl on the pattern of k steps, exact where J is diagonal; in plain NumPy",
    tags=frozenset({"biased", "online", "recurrent"}),
    Options=Options,
    rule=SnAp(),
    flops=lambda layout, options: 2.0 * _terms(layout, options)[1] + 6.0 * _terms(layout, options)[0],
    entries=lambda layout, options: 9 * _terms(layout, options)[0] + 3 * _terms(layout, options)[1] + 2 * layout.P,
    shared=lambda layout, options: 8 * _terms(layout, options)[0] + 4 * _terms(layout, options)[1],
)
