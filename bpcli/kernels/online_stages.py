"""What RTRL does that sizes alone decide, worked out once: a gradient that is taken again makes no jobs."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bpcli.graph.nodes import Phase
from bpcli.kernels import influence as kernel
from bpcli.kernels import reverse as reverse_kernel
from bpcli.kernels.calls import Call
from bpcli.kernels.jit import BASE, INNER_ROW, OUTER
from bpcli.kernels.jobs import cut, reverse_job
from bpcli.kernels.online_plan import JOBS, OnlinePlan
from bpcli.kernels.stages import MOST_KEPT, stages
from bpcli.kernels.tiles import width
from bpcli.tape.dependency import Shifts, shifts
from bpcli.tape.instructions import Integers
from bpcli.tape.plan import LANE_FLOPS, phase_flops


@lru_cache(maxsize=8)
def online_stages(plan: OnlinePlan, dtype: np.dtype) -> OnlineStages:
    """The `OnlineStages` of a plan; those of the plans last used are kept."""
    return OnlineStages(plan, dtype)


class Span(NamedTuple):
    """Columns of M that a source contributes to, at a step or (-1) at all; `wide`: entries in a row of the source."""

    start: int
    columns: int
    source: int
    step: int
    wide: int


class OnlineStages:
    """The calls of one plan and dtype, on the array of the trace."""

    def __init__(self, plan: OnlinePlan, dtype: np.dtype) -> None:
        self.plan, self.width = plan, width(dtype)
        self.trace = stages(plan.trace, dtype, False)
        self.seeds = self.trace.entries + plan.room.seeds
        self.parts, self.units = self._parts(), self._units()
        self.sources, self.entries, spans = self._sources()
        self.pieces, ends = _pieces(spans, -(-plan.parameters // self.width), self.width)
        self.panels = np.concatenate([plan.structure.panels(self.width), ends], axis=1)
        self.jacobians = lru_cache(MOST_KEPT)(self._jacobians)
        self.influence = lru_cache(MOST_KEPT)(self._influence)

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

    def _sources(self) -> tuple[Integers, Integers, list[Span]]:
        """The table of sources of M̄, the lists of entries of sparse matrices and of shifts, and the sources' spans."""
        plan, reach, lines, lists = self.plan, shifts(self.plan.graph), list[list[int]](), list[NDArray[np.int64]]()
        spans = list[Span]()

        def listed(numbers: NDArray[np.int64]) -> int:
            lists.append(numbers)
            return sum(map(len, lists[:-1]))

        def line(kind: int, delta: int, columns: int) -> list[int]:
            by: Shifts = reach[delta]
            own = np.array(sorted(by or ()), np.int64)
            base, row, seed = plan.seeds.table[delta, [BASE, OUTER, INNER_ROW]]
            return [kind, self.seeds + base, row, seed, 0, 0, columns, 0, -1, listed(own), own.size]

        for stretch in plan.stretches:
            node = plan.graph.nodes[stretch.node]
            products = [p for p in plan.step.products if p.matrix == stretch.node]
            if node.op != "previous" and not products:
                steps = range(plan.steps) if node.op == "input" else [-1]
                for i, step in enumerate(steps):
                    spans.append(Span(stretch.start + i * node.size, node.size, len(lines), step, node.size))
                lines.append(line(kernel.VECTOR_ITSELF, stretch.node, node.size))
            for product in products:
                matrix = line(kernel.MATRIX, product.delta, node.shape[1])
                matrix[kernel.VECTOR : kernel.COLUMNS] = plan.trace.values.table[product.vector, [BASE, INNER_ROW]]
                matrix[kernel.TURNED] = int(product.turned)
                if stretch.node in plan.patterns:
                    matrix[kernel.LISTED] = listed(plan.patterns[stretch.node])
                spans.append(Span(stretch.start, stretch.columns, len(lines), -1, node.shape[1]))
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
        """The influence matrices through the steps `first` to `last`; after the last step of all nobody wants them."""
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


def _pieces(spans: list[Span], panels: int, width: int) -> tuple[Integers, Integers]:
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
    ends = np.searchsorted(np.sort(owner), np.arange(panels + 1))
    return np.concatenate(lines)[np.argsort(owner, kind="stable")], np.stack([ends[:-1], ends[1:]], axis=1)
