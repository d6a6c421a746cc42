"""Many perturbed copies of a network run side by side: finite differences at the speed of matrix products.

Copies × rows are rows of a batch. What a perturbation cannot reach is computed once and shared. A changed matrix entry
is a rank-one fix of its copy's rows (see `bpcli.kernels.fixes`), a changed vector is stored once per copy. Copies do
not wait for each other: each part of them goes through all steps by itself, while its values are in cache.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from bpcli.graph.fuse import LEAVES
from bpcli.graph.model import Phase
from bpcli.graph.tape import OUT
from bpcli.kernels import forward as kernel
from bpcli.kernels.calls import run
from bpcli.kernels.fixes import Fix, no_fixes
from bpcli.kernels.jobs import cut, forward_job
from bpcli.kernels.layout import Allocator, Places, without_packed
from bpcli.kernels.library import Jobs
from bpcli.kernels.plan import LANE_FLOPS
from bpcli.kernels.reach import Reach
from bpcli.kernels.rows import BASE, INNER_ROW, OUTER, PACKED, STEP
from bpcli.kernels.tiles import pack

PART_ROWS = 64
"""Rows that one job takes on: enough for products to be quick, few enough for a step's values to stay in cache."""
Group = tuple[int, int, int]
"""Copies that begin together: the first one, the one after the last, and the step."""
_GOLDEN = 0.6180339887


@dataclass(frozen=True, eq=False)
class Layout:
    """Places for `copies` copies of `rows` rows over `steps` steps."""

    reach: Reach
    copies: int
    rows: int
    steps: int

    @cached_property
    def places(self) -> Places:
        """Static values; what is shared, and the loss, for every step; what differs, for one step."""
        reach = self.reach
        allocator = Allocator(len(reach.graph.nodes))
        written = set(reach.forward.code[:, OUT].tolist())
        for node in reach.graph.nodes:
            if node.index in reach.slices or not (node.op in LEAVES or node.index in written):
                continue
            if node.phase is Phase.STATIC:
                vector = node.index in reach.crossing and len(node.shape) < 2
                entries = node.size * (self.copies if vector else 1)
                allocator.place(node.index, allocator.take(entries), (0, node.size if vector else 0, 0, 0))
            elif node.index in reach.reached:
                step = self.copies * self.rows * node.size if node.index == reach.graph.loss else 0
                base = allocator.take(step * self.steps or self.copies * self.rows * node.size)
                allocator.place(node.index, base, (step, self.rows * node.size, node.size, 0))
            else:
                base = allocator.take(self.steps * self.rows * node.size)
                allocator.place(node.index, base, (self.rows * node.size, 0, node.size, 0))
        for n, field in reach.packed:
            allocator.pack(reach.graph.nodes[n], field)
        return allocator.finish(reach.slices)


class Copies:
    """The values of one layout. `inputs[node] (steps, rows, size)` and `static[node]` are those of the base."""

    def __init__(
        self, layout: Layout, dtype: np.dtype, inputs: Mapping[int, NDArray], static: Mapping[int, NDArray]
    ) -> None:
        self.layout, self.inputs = layout, inputs
        self.V = np.zeros(layout.places.size, dtype)
        self.numbers = layout.reach.forward.numbers.astype(dtype)
        self.fix = no_fixes(len(layout.reach.graph.nodes), dtype)
        self._places = without_packed(layout.places.table, dtype)
        for node, values in static.items():
            self.block(node)[..., :] = values.ravel()
        for node, rows in inputs.items():
            if node not in layout.reach.reached:
                self.block(node)[:] = rows.ravel()
        self._pack()
        everything = (0, layout.steps * layout.rows)
        self._run(layout.reach.before, cut(self._job(layout.reach.before, self.fix), kernel.I0, *everything, 1))

    def _pack(self) -> None:
        """Matrices stay as they are from here on: what changes them is added to the products."""
        for n, field in self.layout.reach.packed:
            if self._places[n, field] >= 0:
                matrix = self.block(n).reshape(self.layout.reach.graph.nodes[n].shape)
                pack(matrix if field == PACKED else matrix.T, self.V[self._places[n, field] :])

    def _job(self, code: Jobs, fix: Fix) -> Jobs:
        job = forward_job(self.layout.reach.forward, self.numbers, self._places, self.V.size, fix)
        job[kernel.CODE], job[kernel.LINES], job[kernel.LAST] = code.ctypes.data, len(code), len(code)
        job[kernel.STEP1] = 1
        return job

    def _run(self, code: Jobs, jobs: Jobs) -> None:
        if len(code):
            run("forward", jobs, self.V)

    def block(self, node: int) -> NDArray:
        """All that is stored for a node, flat: `(copies, size)` where a static vector differs between copies."""
        layout, place = self.layout, self.layout.places.table[node]
        size = layout.reach.graph.nodes[node].size
        if layout.reach.graph.nodes[node].phase is Phase.STATIC:
            copies = (
                layout.copies if node in layout.reach.crossing and len(layout.reach.graph.nodes[node].shape) < 2 else 1
            )
            return self.V[place[BASE] : place[BASE] + copies * size].reshape(copies, size)
        spread = layout.copies if node in layout.reach.reached else layout.steps
        return self.V[place[BASE] : place[BASE] + spread * layout.rows * size]

    def rows(self, node: int) -> NDArray:
        """The values (copies, rows, size) of a node that differs between copies."""
        return self.block(node).reshape(self.layout.copies, self.layout.rows, -1)

    def run(self, groups: Sequence[Group], last: int, change: Callable[[], None] | None = None) -> None:
        """Each group of copies from its step to `last`; at its first one `change` is called where what is changed has
        its value."""
        known, end = self.layout.reach.known, len(self.layout.reach.each)
        spans = [(o0, o1, first, last) for o0, o1, first in groups]
        if change is not None:
            one = [(o0, o1, first, first + 1) for o0, o1, first, _ in spans]
            self._spans(one, 0, known)
            change()
            self._spans(one, known, end)
            spans = [(o0, o1, first + 1, last) for o0, o1, first, _ in spans]
        self._spans([span for span in spans if span[2] < last], 0, end)

    def _spans(self, spans: Sequence[tuple[int, int, int, int]], line: int, end: int) -> None:
        """Lines `line` to `end` of copies (first, end) and steps (first, end)."""
        if not spans or line == end:
            return
        rows, flops = self.layout.rows, self.layout.reach.flops
        work = sum((o1 - o0) * (last - first) for o0, o1, first, last in spans) * flops * rows
        pieces = []
        for o0, o1, first, last in spans:
            parts = max(1, min(o1 - o0, (o1 - o0) * rows // PART_ROWS, int(work / LANE_FLOPS)))
            ends = [o0 + (o1 - o0) * part // parts for part in range(parts + 1)]
            pieces += [(first, last, a, b) for a, b in itertools.pairwise(ends)]
        # Threads take even stretches of the list: wherever they are cut, there are long and short ones in each.
        pieces.sort(key=lambda piece: (piece[0] - piece[1]) * (piece[3] - piece[2]))
        order = sorted(range(len(pieces)), key=lambda i: i * _GOLDEN % 1)
        jobs = np.repeat(self._each[None], len(pieces), axis=0)
        jobs[:, [kernel.STEP0, kernel.STEP1, kernel.O0, kernel.O1]] = [pieces[i] for i in order]
        jobs[:, [kernel.FIRST, kernel.LAST]] = line, end
        run("forward", jobs, self.V)

    @cached_property
    def _each(self) -> Jobs:
        """A job on all rows of copies."""
        job = self._job(self.layout.reach.each, self.fix)
        job[kernel.I1] = self.layout.rows
        return job

    def losses(self, first: int, last: int) -> NDArray:
        """The losses of steps that have run, a view (steps, copies, rows)."""
        layout, loss = self.layout, self.layout.reach.graph.loss
        place = layout.places.table[loss]
        strides = [int(place[field]) * self.V.itemsize for field in (STEP, OUTER, INNER_ROW)]
        shape = (last - first, layout.copies, layout.rows)
        start = self.V[place[BASE] + first * place[STEP] :]
        return np.lib.stride_tricks.as_strided(start, shape, strides, writeable=False)

    def static_run(self) -> None:
        """Compute the static nodes afresh, from leaves that are stored once."""
        layout = self.layout
        bounds = layout.reach.forward.bounds
        job = self._job(layout.reach.forward.code, self.fix)
        job[kernel.FIRST], job[kernel.LAST] = bounds[Phase.STATIC], bounds[Phase.INPUT]
        self._run(layout.reach.forward.code, cut(job, kernel.I0, 0, 1, 1))
