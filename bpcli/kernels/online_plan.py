"""What RTRL computes and holds, worked out from sizes alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from bpcli.graph.nodes import Graph, Phase
from bpcli.kernels.tiles import packed_entries
from bpcli.tape.dependency import Stretch, Structure
from bpcli.tape.instructions import Reverse
from bpcli.tape.layout import Allocator, Places, owner, shared_arguments
from bpcli.tape.lowering import fuse
from bpcli.tape.plan import Plan, chunk_steps, make_plan
from bpcli.tape.reverse_lowering import SLOTS, active_nodes, lower_reverse

SEED_ENTRIES = 1 << 19
"""Numbers that the cotangents of one chunk's unit seeds may take: a few megabytes,"""
SEED_SHARE = 8
"""or this part of the influence matrices, which are read from memory and written to it for every chunk."""
MOST_STEPS = 32
"""Steps in a chunk."""
BLOCK_ENTRIES, MOST_BLOCK_ENTRIES = 1 << 13, 1 << 16
"""Numbers in a block of the influence matrix: two blocks stay in the first cache or, half as large as a Jacobian, in
the second: it is read anew for every block and step."""
JOBS = 16
JOB_FLOPS = 4e6
"""Operations of a job of the influence: at the rate of its products they take as long as waking a thread."""


@dataclass(frozen=True)
class Room:
    """What stands behind the numbers of the trace, and how many numbers that is in all.

    M (sample, panel, N, width), g (sample, panel, width), for each job a spare block and q J, and the seeds'
    cotangents.
    """

    influence: int
    gradient: int
    spare: int
    seeds: int
    entries: int


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
        return lower_reverse(self.graph, fuse(self.graph), active, list(self.graph.new.values()), own=True)

    @cached_property
    def size(self) -> int:
        """N: entries of all states."""
        return sum(self.graph.nodes[n].size for n in self.graph.previous.values())

    @cached_property
    def stretches(self) -> tuple[Stretch, ...]:
        """The columns of the influence matrix.

        Parameters that reach a state, initial states, inputs that reach a state.
        """
        matrices = {product.matrix for product in self.step.products}
        roots = sorted(matrices | shared_arguments(self.graph, self.step))
        inputs = sorted(n for n in self.leaves if self.graph.nodes[n].op == "input" and n in self.step.touched)
        stretches, start = [], 0
        for n in (*roots, *(self.graph.previous.values() if self.states else ()), *inputs):
            node = self.graph.nodes[n]
            size = len(self.patterns[n]) if n in self.patterns else node.size
            stretches.append(Stretch(n, start, size * (self.steps if node.op == "input" else 1)))
            start += stretches[-1].columns
        return tuple(stretches)

    @property
    def parameters(self) -> int:
        """P: columns of the influence matrix."""
        return sum(stretch.columns for stretch in self.stretches)

    @cached_property
    def structure(self) -> Structure:
        """What is known of each column without its values."""
        return Structure(self.graph, self.steps, self.stretches, tuple(self.step.products), self.patterns)

    @cached_property
    def flops(self) -> float:
        """Floating-point operations of all products with the influence matrices.

        The last step finds the M before it in its own chunk, or M is advanced as at any step.
        """
        return self.batch * self.structure.flops((self.steps - 1) % self.chunk > 0)

    @cached_property
    def chunk(self) -> int:
        """Steps taken at a time."""
        per_step = self.size * sum(self.graph.nodes[n].size for n in self._owners() - self._same) * self.batch
        most = max(SEED_ENTRIES, self.influence // SEED_SHARE) // max(1, per_step)
        return max(1, min(chunk_steps(self.steps, self.batch), MOST_STEPS, most))

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
        seeds = [self.graph.loss, *static]
        return make_plan(self.graph, self.leaves, self.batch, self.chunk, seeds, reads=self.step.reads, apart=True)

    @cached_property
    def seeds(self) -> Places:
        """Cotangents of the seeded program: (row, seed, entry); those of previous states side by side make J (N, N)."""
        return self._seeds[0]

    @property
    def cleared(self) -> int:
        """Cotangents, from the first, that the seeded program does not store before it adds to them."""
        return self._seeds[1]

    @cached_property
    def _seeds(self) -> tuple[Places, int]:
        N, rows, graph = self.size, self.chunk * self.batch, self.graph
        previous, new = list(graph.previous.values()), sorted(graph.new.values())
        allocator = Allocator(len(graph.nodes))
        for n in new:
            self._place(allocator, n, rows)
        cleared, jacobians = allocator.size, allocator.take(rows * N * N)
        for n in previous:
            allocator.place(n, jacobians, (0, N * N, N, 0))
            jacobians += graph.nodes[n].size
        if not self.step.touched.issuperset(previous):
            cleared = allocator.size
        for n in sorted(self._owners() - {*previous, *new}):
            self._place(allocator, n, rows)
        return allocator.finish(self.step.alias), cleared

    def _place(self, allocator: Allocator, n: int, rows: int) -> None:
        """Room for a node's cotangents."""
        size = self.graph.nodes[n].size
        if n in self._same:
            allocator.place(n, allocator.take(self.size * size), (0, 0, size, 0))
        else:
            allocator.place(n, allocator.take(rows * self.size * size), (0, self.size * size, size, 0))

    @cached_property
    def _same(self) -> set[int]:
        """New states that the seeded program adds nothing to: their cotangents are the unit seeds in every row."""
        found = set()
        for row in self.step.code.tolist():
            found |= {row[slot] for slot, mode in SLOTS if row[mode]}
        return set(self.graph.new.values()) - {owner(self.step.alias, n) for n in found}

    @property
    def influence(self) -> int:
        """Numbers that the influence matrices take, in panels."""
        return self.batch * packed_entries(self.size, self.parameters)

    @cached_property
    def block(self) -> int:
        """Columns in a block: whole panels, so many that there is a block for each job."""
        shared_out = -(-self.batch * self.parameters // JOBS)
        entries = max(BLOCK_ENTRIES, min(MOST_BLOCK_ENTRIES, self.size * self.size // 2))
        return packed_entries(1, max(1, min(self.parameters, entries // self.size, shared_out)))

    @cached_property
    def jobs(self) -> int:
        """Jobs that the blocks of all samples are dealt out to."""
        blocks = self.batch * -(-self.parameters // self.block)
        flops = 2.0 * self.size * self.size * self.parameters * self.batch * self.chunk
        return max(1, min(JOBS, blocks, int(flops / JOB_FLOPS)))

    @property
    def spare(self) -> int:
        """Numbers that a job has for itself: a block of influence, and q J."""
        return self.block * self.size + packed_entries(1, self.size)

    @cached_property
    def room(self) -> Room:
        """What stands where."""
        allocator, spare = Allocator(0), self.jobs * self.spare
        sizes = self.influence, self.batch * packed_entries(1, self.parameters), spare, self.seeds.size
        return Room(*map(allocator.take, sizes), allocator.size)

    @property
    def entries(self) -> int:
        """Numbers held: the trace, the influence matrices, the gradients, what jobs have for themselves, and seeds."""
        return self.trace.entries + self.room.entries
