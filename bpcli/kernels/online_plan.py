"""What RTRL computes and holds, worked out from sizes alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from bpcli.graph.fuse import fuse
from bpcli.graph.lower_reverse import active_nodes, lower_reverse
from bpcli.graph.model import Graph, Phase
from bpcli.graph.tape import Reverse
from bpcli.kernels.layout import Allocator, Places, shared_arguments
from bpcli.kernels.plan import Plan, chunk_steps, make_plan
from bpcli.kernels.tiles import packed_entries

SEED_ENTRIES = 1 << 19
"""Numbers that the unit seeds of one chunk may take: a few megabytes."""
BLOCK_ENTRIES = 1 << 14
"""Numbers in a block of the influence matrix: two blocks and a Jacobian stay in cache."""
MOST_STEPS, MOST_SMALL_STEPS = 16, 32
"""Steps in a chunk; those of a small network, where making a chunk ready takes longer than its products,"""
SMALL_ENTRIES = 1 << 15
"""which is one whose seeds take no more numbers than this."""
BLOCK_ROWS = 32
"""Parameters below which blocks are not cut further to have one for each job."""
JOBS = 16


@dataclass(frozen=True)
class Stretch:
    """Rows of the influence matrix: those of a static node, of an initial state or of an input at every step."""

    node: int
    start: int
    rows: int


@dataclass(frozen=True, eq=False)
class OnlinePlan:
    """What RTRL computes and holds, from sizes alone. `patterns[node]` lists the entries that exist of a matrix."""

    graph: Graph
    leaves: frozenset[int]
    states: bool
    batch: int
    steps: int
    patterns: Mapping[int, NDArray[np.int64]]

    @cached_property
    def step(self) -> Reverse:
        """The reverse program from the new states."""
        active = active_nodes(self.graph, {*self.leaves, *self.graph.previous.values()})
        return lower_reverse(self.graph, fuse(self.graph), active, list(self.graph.new.values()))

    @cached_property
    def size(self) -> int:
        """N: entries of all states."""
        return sum(self.graph.nodes[n].size for n in self.graph.previous.values())

    @cached_property
    def stretches(self) -> tuple[Stretch, ...]:
        """The rows of the influence matrix.

        Parameters that reach a state, initial states, inputs that reach a state.
        """
        matrices = {product.matrix for product in self.step.products}
        roots = sorted(matrices | shared_arguments(self.graph, self.step))
        inputs = sorted(n for n in self.leaves if self.graph.nodes[n].op == "input" and n in self.step.touched)
        stretches, start = [], 0
        for n in (*roots, *(self.graph.previous.values() if self.states else ()), *inputs):
            node = self.graph.nodes[n]
            rows = len(self.patterns[n]) if n in self.patterns else node.size
            rows *= self.steps if node.op == "input" else 1
            stretches.append(Stretch(n, start, rows))
            start += rows
        return tuple(stretches)

    @property
    def rows(self) -> int:
        """P: rows of the influence matrix."""
        return sum(stretch.rows for stretch in self.stretches)

    @cached_property
    def chunk(self) -> int:
        """Steps taken at a time."""
        per_row = self.size * sum(self.graph.nodes[n].size for n in self._owners()) * self.batch
        most = min(MOST_STEPS, SEED_ENTRIES // max(1, per_row))
        most = max(most, min(MOST_SMALL_STEPS, SMALL_ENTRIES // max(1, per_row)))
        return max(1, min(chunk_steps(self.steps, self.batch), most))

    def _owners(self) -> set[int]:
        """Nodes with cotangents of their own in the seeded program."""
        static_matrices = {p.matrix for p in self.step.products}
        touched = set(self.step.touched) - set(self.step.alias) - static_matrices
        shared = shared_arguments(self.graph, self.step)
        return {n for n in touched if self.graph.nodes[n].phase is not Phase.STATIC or n in shared}

    @cached_property
    def trace(self) -> Plan:
        """The plan of the forward pass and of the reverse program from the loss."""
        static = [s.node for s in self.stretches if self.graph.nodes[s.node].phase is Phase.STATIC]
        seeds, new = [self.graph.loss, *static], list(self.graph.new.values())
        return make_plan(self.graph, self.leaves, self.batch, self.chunk, seeds, new, self.step.reads)

    @cached_property
    def seeds(self) -> Places:
        """Cotangents of the seeded program: (row, seed, entry); those of previous states side by side make J (N, N)."""
        N, rows = self.size, self.chunk * self.batch
        allocator = Allocator(len(self.graph.nodes))
        jacobians = allocator.take(rows * N * N)
        for n in self.graph.previous.values():
            allocator.place(n, jacobians, (0, N * N, N, 0))
            jacobians += self.graph.nodes[n].size
        for n in sorted(self._owners() - set(self.graph.previous.values())):
            size = self.graph.nodes[n].size
            allocator.place(n, allocator.take(rows * N * size), (0, N * size, size, 0))
        return allocator.finish(self.step.alias)

    @cached_property
    def packed(self) -> int:
        """Numbers that the packed Jacobians of a chunk take; they stand behind the seeds."""
        return self.chunk * self.batch * packed_entries(self.size, self.size)

    @cached_property
    def block(self) -> int:
        """Parameters in a block."""
        shared_out = max(BLOCK_ROWS, -(-self.batch * self.rows // JOBS))
        return max(1, min(self.rows, BLOCK_ENTRIES // self.size, shared_out))

    @cached_property
    def jobs(self) -> int:
        """Jobs that the blocks of all samples are dealt out to."""
        return max(1, min(JOBS, self.batch * -(-self.rows // self.block)))

    @property
    def entries(self) -> int:
        """Numbers held: the influence matrices, spare blocks, seeds, gradients and the trace."""
        spare = self.jobs * (self.block + 1) * self.size
        q = (self.chunk + 1) * self.batch * self.size
        return (self.size + 1) * self.rows * self.batch + spare + q + self.seeds.size + self.packed + self.trace.entries
