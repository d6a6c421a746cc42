"""Forward-mode gradients over time (RTRL): J, M̄ and q of each step of any graph, and the influence matrix M.

A chunk of steps is run forwards. The reverse program from the new states, seeded with one unit vector per state entry,
gives J(t) = ∂a(t)/∂a(t-1) and, at every product and shared vector, the cotangents that M̄(t) is made of. The reverse
program from the loss, every step by itself, gives q(t) = ∂l(t)/∂a(t-1) and the loss's derivatives with respect to the
parameters of its own step. The influence kernel then takes g += q M and M ← J M + M̄ through the chunk.

Everything that follows from sizes alone, plan and jobs, is worked out once and kept for the next gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bpcli.graph.nodes import Graph, Phase
from bpcli.kernels import influence as kernel
from bpcli.kernels import reverse as reverse_kernel
from bpcli.kernels.influence import BIRTH
from bpcli.kernels.tiles import width
from bpcli.problem.definition import Setup
from bpcli.runtime.jobs import Call, cut, reverse_job
from bpcli.runtime.schedule import MOST_KEPT, schedule_of
from bpcli.runtime.trace import Array, Arrays, Trace
from bpcli.tape.dependency import ColumnSpan, Shifts, Structure, shifts
from bpcli.tape.instructions import BASE, INNER_ROW, OUTER, Integers, Reverse
from bpcli.tape.layout import Allocator, Places, owner, packed_entries, shared_arguments
from bpcli.tape.lowering import SLOTS, active_nodes, fuse, lower_reverse
from bpcli.tape.plan import LANE_FLOPS, Plan, chunk_steps, make_plan, phase_flops

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
    """Offsets of what stands behind the numbers of the trace, and the `entries` in all.

    M (sample, panel, N, width), g (sample, panel, width), for each job a spare block and q J, and the seeds'
    cotangents.
    """

    influence: int
    gradient: int
    spare: int
    seeds: int
    entries: int


@dataclass(frozen=True, eq=False)
class RtrlPlan:
    """Programs, layout and sizes of RTRL. `patterns[node]` lists the entries that exist of a sparse matrix."""

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
    def column_spans(self) -> tuple[ColumnSpan, ...]:
        """The columns of the influence matrix.

        Parameters that reach a state, initial states, inputs that reach a state.
        """
        matrices = {product.matrix for product in self.step.products}
        roots = sorted(matrices | shared_arguments(self.graph, self.step))
        inputs = sorted(n for n in self.leaves if self.graph.nodes[n].op == "input" and n in self.step.touched)
        column_spans, start = [], 0
        for n in (*roots, *(self.graph.previous.values() if self.states else ()), *inputs):
            node = self.graph.nodes[n]
            size = len(self.patterns[n]) if n in self.patterns else node.size
            column_spans.append(ColumnSpan(n, start, size * (self.steps if node.op == "input" else 1)))
            start += column_spans[-1].columns
        return tuple(column_spans)

    @property
    def parameters(self) -> int:
        """P: columns of the influence matrix."""
        return sum(span.columns for span in self.column_spans)

    @cached_property
    def structure(self) -> Structure:
        """The structural zeros of each column."""
        return Structure(self.graph, self.steps, self.column_spans, tuple(self.step.products), self.patterns)

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
        static = [s.node for s in self.column_spans if self.graph.nodes[s.node].phase is Phase.STATIC]
        seeds = [self.graph.loss, *static]
        reads, leaves = self.step.reads, self.leaves
        return make_plan(self.graph, leaves, self.batch, self.chunk, seeds, reads=reads, apart=True)

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
        """Columns in a block: whole panels, few enough that each job has a block."""
        shared_out = -(-self.batch * self.parameters // JOBS)
        entries = max(BLOCK_ENTRIES, min(MOST_BLOCK_ENTRIES, self.size * self.size // 2))
        return packed_entries(1, max(1, min(self.parameters, entries // self.size, shared_out)))

    @cached_property
    def jobs(self) -> int:
        """Jobs that share out the blocks of all samples."""
        blocks = self.batch * -(-self.parameters // self.block)
        flops = 2.0 * self.size * self.size * self.parameters * self.batch * self.chunk
        return max(1, min(JOBS, blocks, int(flops / JOB_FLOPS)))

    @property
    def spare(self) -> int:
        """Numbers that a job has for itself: a block of influence, and q J."""
        return self.block * self.size + packed_entries(1, self.size)

    @cached_property
    def room(self) -> Room:
        """The layout behind the trace."""
        allocator = Allocator(0)
        collected, spare = self.batch * packed_entries(1, self.parameters), self.jobs * self.spare
        sizes = self.influence, collected, spare, self.seeds.size
        influence, gradient, own, seeds = map(allocator.take, sizes)
        return Room(influence, gradient, own, seeds, allocator.size)

    @property
    def entries(self) -> int:
        """Numbers held: the trace, the influence matrices, the gradients, what jobs have for themselves, and seeds."""
        return self.trace.entries + self.room.entries


@lru_cache(maxsize=8)
def rtrl_plan(setup: Setup) -> RtrlPlan:
    """The plan of a setup's gradient; those of gradients that are taken again are kept."""
    graph = setup.graph
    leaves = frozenset(graph.leaf[x.name] for x in setup.wrt if x.kind != "state" and x.name in graph.leaf)
    patterns = {graph.leaf[x.name]: x.pattern for x in setup.wrt if x.pattern is not None and x.name in graph.leaf}
    states = any(x.kind == "state" for x in setup.wrt)
    return RtrlPlan(graph, leaves, states, setup.batch, setup.T, patterns)


@lru_cache(maxsize=8)
def rtrl_schedule(plan: RtrlPlan, dtype: np.dtype) -> RtrlSchedule:
    """The `RtrlSchedule` of a plan; those of the plans last used are kept."""
    return RtrlSchedule(plan, dtype)


class SourceSpan(NamedTuple):
    """Columns of M that a source contributes to, at one `step` or (-1) at every one; `wide`: entries of its rows."""

    start: int
    columns: int
    source: int
    step: int
    wide: int


class RtrlSchedule:
    """The calls of one RTRL plan and dtype, on the array of the trace."""

    def __init__(self, plan: RtrlPlan, dtype: np.dtype) -> None:
        self.plan, self.width = plan, width(dtype)
        self.trace = schedule_of(plan.trace, dtype, False)
        self.seeds = self.trace.entries + plan.room.seeds
        self.parts, self.units = self._parts(), self._units()
        self.sources, self.entries, self.spans = self._sources()
        self.jacobians = lru_cache(MOST_KEPT)(self._jacobians)
        self.influence = lru_cache(MOST_KEPT)(self._influence)

    @cached_property
    def _cut(self) -> tuple[Integers, Integers]:
        """The pieces of M̄ that panels take, and each panel's first and last."""
        return _pieces(self.spans, -(-self.plan.parameters // self.width), self.width)

    @property
    def pieces(self) -> Integers:
        """The table of pieces, panel by panel."""
        return self._cut[0]

    @cached_property
    def panels(self) -> Integers:
        """The table of panels."""
        return np.concatenate([self.plan.structure.panels(self.width), self._cut[1]], axis=1)

    def _parts(self) -> Integers:
        """The parts of the state, with where the cotangents that losses bring to them stand."""
        graph, table = self.plan.graph, self.plan.trace.cotangents.table
        previous = list(graph.previous.values())
        bases, rows = table[previous, BASE] + self.trace.cotangents, table[previous, INNER_ROW]
        return np.stack([[graph.nodes[n].size for n in previous], bases, rows], axis=1)

    def _units(self) -> Integers:
        """Where the ones of the unit seeds stand: a seed for each entry of the state, for each row."""
        plan, found, offset = self.plan, list[Integers](), 0
        rows = np.arange(plan.chunk * plan.batch)[:, None]
        for n in plan.graph.new.values():
            base, outer, inner = plan.seeds.table[n, [BASE, OUTER, INNER_ROW]]
            entries = np.arange(plan.graph.nodes[n].size)
            found.append((base + rows * outer + (offset + entries) * inner + entries).ravel())
            offset += entries.size
        return np.unique(np.concatenate(found))

    def _sources(self) -> tuple[Integers, Integers, list[SourceSpan]]:
        """The table of sources of M̄, the lists of entries of sparse matrices and of shifts, and the sources' spans."""
        plan, reach, lines, lists = self.plan, shifts(self.plan.graph), list[list[int]](), list[NDArray[np.int64]]()
        spans = list[SourceSpan]()

        def listed(numbers: NDArray[np.int64]) -> int:
            lists.append(numbers)
            return sum(map(len, lists[:-1]))

        def line(kind: int, delta: int, columns: int) -> list[int]:
            by: Shifts = reach[delta]
            own = np.array(sorted(by or ()), np.int64)
            base, row, seed = plan.seeds.table[delta, [BASE, OUTER, INNER_ROW]]
            return [kind, self.seeds + base, row, seed, 0, 0, columns, 0, -1, listed(own), own.size]

        for span in plan.column_spans:
            node = plan.graph.nodes[span.node]
            products = [p for p in plan.step.products if p.matrix == span.node]
            if node.op != "previous" and not products:
                steps = range(plan.steps) if node.op == "input" else [-1]
                for i, step in enumerate(steps):
                    spans.append(SourceSpan(span.start + i * node.size, node.size, len(lines), step, node.size))
                lines.append(line(kernel.VECTOR_ITSELF, span.node, node.size))
            for product in products:
                matrix = line(kernel.MATRIX, product.delta, node.shape[1])
                matrix[kernel.VECTOR : kernel.COLUMNS] = plan.trace.values.table[product.vector, [BASE, INNER_ROW]]
                matrix[kernel.TRANSPOSED] = int(product.turned)
                if span.node in plan.patterns:
                    matrix[kernel.LISTED] = listed(plan.patterns[span.node])
                spans.append(SourceSpan(span.start, span.columns, len(lines), -1, node.shape[1]))
                lines.append(matrix)
        table = np.array(lines, np.int64).reshape(len(lines), kernel.SOURCE)
        return table, np.concatenate([np.zeros(0, np.int64), *lists]), spans

    def _jacobians(self, steps: int) -> Call:
        """The seeded program, on all rows of the chunk at once: the recurrent phase, then the input phase."""
        plan, code, bounds = self.plan, self.plan.step.code, self.plan.step.bounds
        places = self.trace.places.copy()
        varying = [n.index for n in plan.graph.nodes if n.phase is not Phase.STATIC]
        places[varying, OUTER], places[varying, INNER_ROW] = places[varying, INNER_ROW], 0
        job = reverse_job(code, self.trace.numbers, places, plan.seeds.table, False)
        job[reverse_kernel.LENGTH_V] = plan.trace.values.size
        job[reverse_kernel.COTANGENTS], job[reverse_kernel.LENGTH_C] = self.seeds, plan.seeds.size
        job[reverse_kernel.FIRST], job[reverse_kernel.LAST] = bounds[3 - Phase.RECURRENT], bounds[4 - Phase.INPUT]
        job[reverse_kernel.STEP1], job[reverse_kernel.I1] = 1, plan.size
        rows = steps * plan.batch
        flops = rows * plan.size * (phase_flops(plan.graph, Phase.RECURRENT) + phase_flops(plan.graph, Phase.INPUT))
        parts = max(1, min(rows, JOBS, int(flops / LANE_FLOPS)))
        return Call("reverse", cut(job, reverse_kernel.O0, 0, rows, parts), keeps=(places,))

    def _influence(self, first: int, last: int) -> Call:
        """g += q M and M ← J M + M̄ through the steps `first` to `last`; M is not needed after the final step."""
        plan, room, end = self.plan, self.plan.room, self.trace.entries
        job = np.zeros(kernel.JOB, np.int64)
        job[kernel.LENGTH] = end + room.entries
        job[kernel.PARTS], job[kernel.PART_COUNT] = self.parts.ctypes.data, len(self.parts)
        job[kernel.SOURCES], job[kernel.SOURCE_COUNT] = self.sources.ctypes.data, len(self.sources)
        job[kernel.ENTRIES], job[kernel.ENTRY_COUNT] = self.entries.ctypes.data, len(self.entries)
        job[kernel.PANELS], job[kernel.PANEL_COUNT] = self.panels.ctypes.data, len(self.panels)
        job[kernel.PIECES], job[kernel.PIECE_COUNT] = self.pieces.ctypes.data, len(self.pieces)
        job[kernel.WIDTH], job[kernel.STATES], job[kernel.BATCH] = self.width, plan.size, plan.batch
        job[kernel.STEP0], job[kernel.STEPS] = first, last - first
        job[kernel.ADVANCES] = min(last, plan.steps - 1) - first
        job[kernel.INFLUENCE], job[kernel.GRADIENT] = end + room.influence, end + room.gradient
        job[kernel.JACOBIANS] = self.seeds + plan.seeds.table[next(iter(plan.graph.previous.values())), BASE]
        job[kernel.BLOCK] = plan.block // self.width
        blocks = -(-len(self.panels) // int(job[kernel.BLOCK]))
        jobs = cut(job, kernel.FIRST_ITEM, 0, plan.batch * blocks, plan.jobs)
        jobs[:, kernel.SPARE] = end + room.spare + np.arange(plan.jobs) * plan.spare
        return Call("influence", jobs)


def _pieces(spans: list[SourceSpan], panels: int, width: int) -> tuple[Integers, Integers]:
    """The table of pieces that panels cut spans into, panel by panel; and (panels, 2) each panel's first and last."""
    lines, owners = [np.zeros((0, kernel.PIECE), np.int64)], [np.zeros(0, np.int64)]
    for span in spans:
        panel = np.arange(span.start // width, -(-(span.start + span.columns) // width))
        first, last = np.maximum(span.start, panel * width), np.minimum(span.start + span.columns, (panel + 1) * width)
        same, entry = np.ones_like(panel), first - span.start
        ends, of = (first - panel * width, last - panel * width), (span.source * same, span.step * same)
        lines.append(np.stack([*ends, *of, entry, entry // span.wide, entry % span.wide], axis=1))
        owners.append(panel)
    owner = np.concatenate(owners)
    bounds = np.searchsorted(np.sort(owner), np.arange(panels + 1))
    return np.concatenate(lines)[np.argsort(owner, kind="stable")], np.stack([bounds[:-1], bounds[1:]], axis=1)


class RtrlRun:
    """A trace and the influence matrices of a problem, moving forwards a chunk of steps at a time."""

    def __init__(self, plan: RtrlPlan, dtype: np.dtype, arrays: tuple[Arrays, Arrays, Arrays]) -> None:
        self.plan, self.schedule = plan, rtrl_schedule(plan, dtype)
        self.trace = Trace(plan.trace, dtype, arrays, room=plan.room.entries)
        room, numbers, N, width = plan.room, self.trace.room, plan.size, self.schedule.width
        panels = len(self.schedule.panels)
        self.M = numbers[room.influence :][: plan.batch * panels * N * width].reshape(plan.batch, panels, N, width)
        self.G = numbers[room.gradient :][: plan.batch * panels * width].reshape(plan.batch, panels * width)
        self.C = numbers[room.seeds :][: plan.seeds.size]
        self.G[:] = 0
        if plan.states:
            self._begin()

    def _begin(self) -> None:
        """M(0): the identity where initial states are differentiated; elsewhere M begins with its first M̄."""
        self.M[:, self.schedule.panels[:, BIRTH] < 0] = 0
        offset = 0
        for span in self.plan.column_spans:
            if self.plan.graph.nodes[span.node].op == "previous":
                panel, column = np.divmod(span.start + np.arange(span.columns), self.schedule.width)
                self.M[:, panel, offset + np.arange(span.columns), column] = 1
                offset += span.columns

    def advance(self, first: int, last: int) -> None:
        """M ← J M + M̄ through steps `first` to `last`, which the trace has just run in both directions."""
        self.C[: self.plan.cleared] = 0
        self.C[self.schedule.units] = 1
        self.trace.run((self.schedule.jacobians(last - first), self.schedule.influence(first, last)))

    def gradient(self, node: int) -> Array:
        """g of a node's columns of M, (batch, columns)."""
        span = next(s for s in self.plan.column_spans if s.node == node)
        return self.G[:, span.start : span.start + span.columns]

    def close(self) -> None:
        """Release the memory to the next trace; nothing can be read any more."""
        del self.M, self.G, self.C
        self.trace.close()
