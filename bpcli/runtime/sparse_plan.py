"""The pattern of a sparse influence matrix, its groups of columns, and the sizes of what advances it.

Nothing is allocated yet; `bpcli.runtime.sparse_influence` runs it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from bpcli.graph.nodes import Phase
from bpcli.kernels import column_groups as kernel
from bpcli.problem.definition import Setup
from bpcli.runtime.forward_mode import JOB_FLOPS, JOBS, RtrlPlan, rtrl_plan
from bpcli.runtime.local_derivatives import InfluenceLayout, influence_layout
from bpcli.runtime.local_plan import LocalPlan
from bpcli.tape.instructions import Integers
from bpcli.tape.layout import Allocator
from bpcli.tape.plan import node_flops
from bpcli.tape.probing import Paths
from bpcli.tape.row_sets import Entering, RowSets, entering, row_sets

MOST_STEPS = 128
"""Steps in a block, unless they are given."""
SLOT_ENTRIES, SLOT_SHARE = 1 << 19, 2
"""Numbers that the blocks of A of all steps may take, or this part of M, which is read and written for every block."""
PIECE_ENTRIES = 1 << 15
"""Numbers in a group's part of M and g: wide enough for products, and there are several for several threads."""
BUNDLE_ROWS = 64
"""Rows of M and g in a bundle of groups of one shape."""
TERM = 8
"""Operations of a reverse pass that take as long as gathering a term of an entry of J."""


@dataclass(frozen=True)
class Sparsity:
    """The pattern of M of `steps` (None: any number), the paths of A (None: all, A = J), and the steps of a `block`
    (None: as many as are fast)."""

    steps: int | None
    paths: Paths | None
    block: int | None = None


@dataclass(frozen=True, eq=False)
class SparsePlan:
    """Pattern, groups and sizes."""

    layout: InfluenceLayout
    base: RtrlPlan
    sparsity: Sparsity

    @cached_property
    def ways(self) -> list[Entering]:
        """The ways in which columns enter a step."""
        base = self.base
        return entering(base.graph, base.column_spans, base.step.products, base.patterns, base.steps)

    @cached_property
    def rows(self) -> RowSets:
        """The pattern."""
        return sets_of(self.layout, self.sparsity)

    @cached_property
    def order(self) -> Integers:
        """The columns of M that have entries, group by group, neighbours as in the vectors that a matrix multiplies."""
        m, n, span = (np.zeros(self.layout.P, np.int64) for _ in range(3))
        for k, way in enumerate(reversed(self.ways)):
            m[way.columns], n[way.columns], span[way.columns] = way.m, way.n, k
        order = np.lexsort((n, m, span, self.rows.of))
        return np.asarray(order[(self.rows.sets.sum(axis=0) > 0)[self.rows.of[order]]])

    @cached_property
    def _used(self) -> Integers:
        """The sets of rows that a column with entries has, in the order of the groups."""
        return np.unique(self.rows.of[self.order])

    @cached_property
    def row_lists(self) -> Integers:
        """The rows of all used sets, set by set."""
        return np.nonzero(self.rows.sets[:, self._used].T)[1].astype(np.int64)

    @cached_property
    def sets(self) -> Integers:
        """The table of sets."""
        counts = self.rows.sets[:, self._used].sum(axis=0).astype(np.int64)
        slots = counts * (counts + 1)
        return np.stack([np.cumsum(counts) - counts, counts, np.cumsum(slots) - slots], axis=1)

    @property
    def slot_row(self) -> int:
        """Numbers of the slots of a step and sample."""
        return int((self.sets[:, kernel.COUNT] * (self.sets[:, kernel.COUNT] + 1)).sum())

    @cached_property
    def groups(self) -> Integers:
        """Of each group its set, its columns, and its first one in the order; (groups, 3)."""
        which = np.searchsorted(self._used, self.rows.of[self.order])
        starts = np.flatnonzero(np.diff(which, prepend=-1))
        widths = np.diff(starts, append=len(which))
        sets = which[starts]
        most = np.maximum(1, PIECE_ENTRIES // (self.sets[sets, kernel.COUNT] + 1))
        pieces = -(-widths // most)
        piece = np.arange(int(pieces.sum())) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        first = np.repeat(starts, pieces) + piece * np.repeat(most, pieces)
        width = np.minimum(np.repeat(most, pieces), np.repeat(starts + widths, pieces) - first)
        return np.stack([np.repeat(sets, pieces), width, first], axis=1)

    @cached_property
    def _counts(self) -> Integers:
        """The rows of each group."""
        return np.asarray(self.sets[self.groups[:, 0], kernel.COUNT])

    @cached_property
    def places(self) -> Integers:
        """Where each group's part of M and g begins, and after the last."""
        sizes = (self._counts + 1) * self.groups[:, 1]
        return np.concatenate([[0], np.cumsum(sizes)])

    @cached_property
    def gradient_places(self) -> Integers:
        """Where g of each column of the order stands among all groups' parts of M and g."""
        _, width, first = self.groups.T
        return np.repeat(self.places[1:] - width - first, width) + np.arange(len(self.order))

    @cached_property
    def pairs(self) -> tuple[Integers, Integers, Integers]:
        """Rows and columns of the entries of A that sets need, and where they stand in a slot row."""
        counts, lists = self.sets[:, kernel.COUNT], self.row_lists
        many = np.repeat(counts, counts)
        rows = np.repeat(lists, many)
        start = np.repeat(np.repeat(self.sets[:, kernel.FIRST_ROW], counts), many)
        k = np.arange(len(rows)) - np.repeat(np.cumsum(many) - many, many)
        within = np.repeat(np.arange(len(lists)) - np.repeat(self.sets[:, kernel.FIRST_ROW], counts), many)
        slot = np.repeat(np.repeat(self.sets[:, kernel.SLOT], counts), many)
        return rows, lists[start + k], slot + within * np.repeat(many, many) + k

    @cached_property
    def local(self) -> LocalPlan:
        """The passes through a step, with room for blocks of J, M, g, and a group for each job."""
        base, paths, block = self.base, self.sparsity.paths, self.sparsity.block
        slots = max(SLOT_ENTRIES, base.batch * int(self.places[-1]) // SLOT_SHARE)
        most = max(1, min(MOST_STEPS, slots // max(1, base.batch * self.slot_row)))
        kinds: tuple[Paths, ...] = ("elementwise",) if paths is None else (paths,)
        plan = LocalPlan(base, kinds, paths is None, block or most, fixed=block is not None)
        if paths is None and (plan.firsts is None or self._terms_are_many(plan)):
            plan = replace(plan, kinds=(), seeded=True)
        return replace(plan, extra=self._room(plan.chunk)["end"])

    def _terms_are_many(self, plan: LocalPlan) -> bool:
        """Whether putting together the entries of J takes more than N reverse passes."""
        graph = self.base.graph
        step = sum(node_flops(graph, n) for n in graph.nodes if n.phase is Phase.RECURRENT)
        return TERM * self._count(plan) > self.layout.N * step

    def _count(self, plan: LocalPlan) -> float:
        """How many terms the entries of J have through products."""
        total, (rows, columns, _) = 0.0, self.pairs
        for first in plan.firsts or ():
            delta = plan.probes["deltas"].reach.get(first.delta)
            if delta is not None:
                total += float(delta.sum(axis=1)[rows] @ vector_reach(plan, first.vector).sum(axis=0)[columns])
        return total

    def _room(self, chunk: int) -> dict[str, int]:
        """Offsets in the room, of the slots, M with g, and the room of jobs, and how much that is for each job."""
        allocator, batch = Allocator(0), self.base.batch
        r, c = self._counts, self.groups[:, 1]
        most = int(r.max(initial=0)) + 1
        spare = chunk * max(BUNDLE_ROWS, most) + max(int((r * c).max(initial=0)), most * most)
        found = {
            "slots": allocator.take((chunk + 1) * batch * self.slot_row),
            "influence": allocator.take(batch * int(self.places[-1])),
            "spare": allocator.take(max(self.jobs(flops, chunk) for flops in self.advance_flops) * spare),
        }
        return {**found, "each": spare, "end": allocator.size}

    @cached_property
    def room(self) -> dict[str, int]:
        """Offsets behind the cotangents."""
        return self._room(self.local.chunk)

    @cached_property
    def advance_flops(self) -> tuple[float, float]:
        """Floating-point operations of a step and sample: of L and λ; and of M̄ and q M, without L M once a block."""
        r, width = self.sets[:, kernel.COUNT].astype(float), self.groups[:, 1]
        return float((2 * r * r * (r + 1)).sum()), float((2 * (self._counts + 1.0) * width).sum())

    @property
    def flops(self) -> float:
        """Floating-point operations of a step and sample with the influence."""
        r, width = self._counts.astype(float), self.groups[:, 1]
        return sum(self.advance_flops) + float((2 * r * (r + 1) * width).sum()) / self.local.chunk

    @property
    def gathered(self) -> int:
        """Numbers held while terms of A are gathered, and matrices for that."""
        firsts = (self.local.firsts or ()) if self.sparsity.paths is None else ()
        matrices = sum(self.base.graph.nodes[first.matrix].size for first in firsts)
        return 3 * self.local.chunk * self.base.batch * len(self.pairs[0]) + matrices

    def jobs(self, flops: float, steps: int) -> int:
        """Jobs that share out the sets or groups of all samples, which take so many operations in a step."""
        most = self.base.batch * max(1, len(self.groups))
        return max(1, min(JOBS, most, int(flops * self.base.batch * steps / JOB_FLOPS)))


def vector_reach(plan: LocalPlan, vector: int) -> NDArray[np.bool_]:
    """Which states before a step (N) reach which entries of a product's vector (n, N)."""
    graph, probe = plan.graph, plan.probes["elementwise"]
    start, size = probe.start(vector), graph.nodes[vector].size
    none = np.zeros((len(probe.colors), 0), bool)
    parts = [probe.reach.get(n, none) for n in graph.previous.values()]
    sizes = [graph.nodes[n].size for n in graph.previous.values()]
    whole = [p if p.shape[1] else np.zeros((len(probe.colors), k), bool) for p, k in zip(parts, sizes, strict=True)]
    return np.concatenate(whole, axis=1)[start : start + size]


@lru_cache(maxsize=16)
def sets_of(layout: InfluenceLayout, sparsity: Sparsity) -> RowSets:
    """The pattern of M."""
    base = layout.plan
    ways = entering(base.graph, base.column_spans, base.step.products, base.patterns, base.steps)
    initial = np.full(layout.P, -1)
    initial[list(layout.initial_rows)] = list(layout.initial_rows.values())
    return row_sets(base.graph, ways, initial, base.patterns, sparsity.steps, sparsity.paths)


def influence_pattern(layout: InfluenceLayout, steps: int) -> NDArray[np.bool_]:
    """The entries of M (N, P) that may differ from zero within some steps of a parameter's use; read off the graph."""
    return sets_of(layout, Sparsity(steps, None)).pattern()


@lru_cache(maxsize=8)
def sparse_plan(setup: Setup, sparsity: Sparsity) -> SparsePlan:
    """The plan of a setup and pattern; those of gradients that are taken again are kept."""
    return SparsePlan(influence_layout(setup), rtrl_plan(setup), sparsity)
