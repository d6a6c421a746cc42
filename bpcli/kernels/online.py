"""Forward-mode gradients over time: the one-step ingredients J, M̄ and q of any graph, and the influence matrix.

A chunk of steps is run forwards. The reverse program from the new states, seeded with one unit vector per state entry,
gives J(t) = ∂a(t)/∂a(t-1) and, at every product and shared vector, the cotangents that M̄(t) is made of. The reverse
program from the loss, stopping at the new states, gives q(t) = ∂l(t)/∂a(t) and what the loss owes to parameters
directly.
"""

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
from bpcli.kernels import influence as kernel
from bpcli.kernels import reverse as reverse_kernel
from bpcli.kernels.calls import run
from bpcli.kernels.jobs import cut
from bpcli.kernels.layout import Allocator, Places, shared_arguments
from bpcli.kernels.plan import Plan, chunk_steps, make_plan
from bpcli.kernels.rows import BASE, INNER_ROW, OUTER
from bpcli.kernels.trace import Array, Trace

SEED_ENTRIES = 1 << 19
"""Numbers that the unit seeds of one chunk may take: a few megabytes."""
BLOCK_ENTRIES = 1 << 14
"""Numbers in a block of the influence matrix: two blocks and a Jacobian stay in cache."""
MOST_STEPS = 16
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
        return max(1, min(chunk_steps(self.steps, self.batch), MOST_STEPS, SEED_ENTRIES // max(1, per_row)))

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
    def block(self) -> int:
        """Parameters in a block."""
        return max(1, min(self.rows, BLOCK_ENTRIES // self.size))

    @cached_property
    def jobs(self) -> int:
        """Jobs that the blocks of all samples are dealt out to."""
        return max(1, min(JOBS, self.batch * -(-self.rows // self.block)))

    @property
    def entries(self) -> int:
        """Numbers held: the influence matrices, spare blocks, seeds, gradients and the trace."""
        spare = self.jobs * (self.block + 1) * self.size
        q = (self.chunk + 1) * self.batch * self.size
        return (self.size + 1) * self.rows * self.batch + spare + q + self.seeds.size + self.trace.entries


class Online:
    """The influence matrices of a problem, moving forwards a chunk of steps at a time."""

    def __init__(self, plan: OnlinePlan, trace: Trace) -> None:
        self.plan, self.trace = plan, trace
        dtype, N, P = trace.dtype, plan.size, plan.rows
        self.M = np.zeros(plan.batch * P * N, dtype)
        self.G = np.zeros(plan.batch * P, dtype)
        self.S = np.zeros(plan.jobs * (plan.block + 1) * N, dtype)
        self.C = np.zeros(plan.seeds.size, dtype)
        self.Q = np.zeros((plan.chunk + 1) * plan.batch * N, dtype)
        self.sources, self.entries = self._sources()
        offset, M = 0, self.M.reshape(plan.batch, P, N)
        for stretch in plan.stretches:
            if plan.graph.nodes[stretch.node].op == "previous":
                M[:, stretch.start + np.arange(stretch.rows), offset + np.arange(stretch.rows)] = 1
                offset += stretch.rows

    def _sources(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The table of sources of M̄, and the lists of entries of sparse matrices."""
        plan, lines, lists = self.plan, list[list[int]](), list[NDArray[np.int64]]()
        for stretch in plan.stretches:
            node = plan.graph.nodes[stretch.node]
            line = [stretch.start, stretch.rows, kernel.SHARED]
            line += [*plan.seeds.table[stretch.node, [BASE, OUTER, INNER_ROW]], 0, 0, 1, 0, -1]
            if node.op == "input":
                line[kernel.KIND], line[kernel.COLUMNS], line[kernel.COUNT] = kernel.STEPWISE, node.size, node.size
            products = [p for p in plan.step.products if p.matrix == stretch.node]
            if node.op != "previous" and not products:
                lines.append(line)
            for product in products:
                matrix = line.copy()
                matrix[kernel.KIND], matrix[kernel.COLUMNS] = kernel.MATRIX, node.shape[1]
                matrix[kernel.DELTA : kernel.VECTOR] = plan.seeds.table[product.delta, [BASE, OUTER, INNER_ROW]]
                matrix[kernel.VECTOR : kernel.COLUMNS] = plan.trace.values.table[product.vector, [BASE, INNER_ROW]]
                matrix[kernel.TURNED] = int(product.turned)
                if stretch.node in plan.patterns:
                    matrix[kernel.LISTED] = sum(map(len, lists))
                    lists.append(plan.patterns[stretch.node])
                lines.append(matrix)
        table = np.array(lines, np.int64).reshape(len(lines), kernel.SOURCE)
        return table, np.concatenate([np.zeros(0, np.int64), *lists])

    def advance(self, first: int, last: int) -> None:
        """Take the influence through steps `first` to `last`; the trace has just run them in both directions."""
        self._seed()
        self._step_back(last - first)
        self._gather_q(last - first)
        self._influence(first, last)

    def _seed(self) -> None:
        """One unit vector per state entry, for every row."""
        plan, offset = self.plan, 0
        self.C[:] = 0
        rows = plan.chunk * plan.batch
        for n in plan.graph.new.values():
            size = plan.graph.nodes[n].size
            base = plan.seeds.table[n, BASE]
            seeds = self.C[base : base + rows * plan.size * size].reshape(rows, plan.size, size)
            seeds[:, offset + np.arange(size), np.arange(size)] = 1
            offset += size

    def _step_back(self, steps: int) -> None:
        """The seeded program, on all rows of the chunk at once: the recurrent phase, then the input phase."""
        plan, trace = self.plan, self.trace
        places = plan.trace.values.table.copy()
        varying = [n.index for n in plan.graph.nodes if n.phase is not Phase.STATIC]
        places[varying, OUTER], places[varying, INNER_ROW] = places[varying, INNER_ROW], 0
        code, bounds = plan.step.code, plan.step.bounds
        job = trace.reverse_job(code, places, plan.seeds.table, self.C)
        job[reverse_kernel.FIRST], job[reverse_kernel.LAST] = bounds[3 - Phase.RECURRENT], bounds[4 - Phase.INPUT]
        job[reverse_kernel.STEP1], job[reverse_kernel.I1] = 1, plan.size
        rows = steps * plan.batch
        run("reverse", cut(job, reverse_kernel.O0, 0, rows, min(rows, JOBS)), trace.V)

    def _gather_q(self, steps: int) -> None:
        """∂l/∂a, (step, sample, N): what multiplies M before the chunk's first step and after each of its steps."""
        plan, offset = self.plan, 0
        Q = self.Q[: (steps + 1) * plan.batch * plan.size].reshape(-1, plan.size)
        for n in plan.graph.previous.values():
            size, base = plan.graph.nodes[n].size, plan.trace.cotangents.table[n, BASE]
            Q[:, offset : offset + size] = self.trace.C[base : base + len(Q) * size].reshape(-1, size)
            offset += size

    def _influence(self, first: int, last: int) -> None:
        plan = self.plan
        job = np.zeros(kernel.JOB, np.int64)
        job[kernel.LENGTH_M] = self.M.size
        job[kernel.ADDRESS_V], job[kernel.LENGTH_V] = self.trace.V.ctypes.data, self.trace.V.size
        job[kernel.ADDRESS_C], job[kernel.LENGTH_C] = self.C.ctypes.data, self.C.size
        job[kernel.ADDRESS_Q], job[kernel.ADDRESS_G] = self.Q.ctypes.data, self.G.ctypes.data
        job[kernel.ADDRESS_S], job[kernel.LENGTH_S] = self.S.ctypes.data, self.S.size
        job[kernel.SOURCES], job[kernel.SOURCE_COUNT] = self.sources.ctypes.data, len(self.sources)
        job[kernel.ENTRIES], job[kernel.ENTRY_COUNT] = self.entries.ctypes.data, len(self.entries)
        job[kernel.STATES], job[kernel.PARAMETERS], job[kernel.BATCH] = plan.size, plan.rows, plan.batch
        job[kernel.STEPS], job[kernel.STEP0], job[kernel.BLOCK] = last - first, first, plan.block
        job[kernel.JACOBIANS] = plan.seeds.table[next(iter(plan.graph.previous.values())), BASE]
        items = plan.batch * -(-plan.rows // plan.block)
        jobs = cut(job, kernel.FIRST_ITEM, 0, items, plan.jobs)
        jobs[:, kernel.SCRATCH] = np.arange(plan.jobs) * (plan.block + 1) * plan.size
        run("influence", jobs, self.M)

    def gradient(self, node: int) -> Array:
        """What has been collected for a stretch: (batch, rows)."""
        start, rows = next((s.start, s.rows) for s in self.plan.stretches if s.node == node)
        return self.G.reshape(self.plan.batch, -1)[:, start : start + rows]
