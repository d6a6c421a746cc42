"""Perturbed copies of a network, batched: finite differences at the speed of matrix products.

Copies × rows are rows of a batch. Values that a perturbation cannot reach are computed once and shared. A changed
matrix entry is a rank-one update of its copy's rows (see `bpcli.runtime.jobs`), a changed vector is stored
once per copy. Copies do not wait for each other: each part of them goes through all steps by itself, while its values
are in cache. Or all steps are rows too, each by itself from a state that is known (`Reach.single`). Plans and layouts
are kept for the setups last worked on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpcli.graph.nodes import Phase
from bpcli.kernels import forward as kernel
from bpcli.kernels.tiles import pack
from bpcli.problem.definition import Setup
from bpcli.runtime.jobs import RankOneUpdates, cut, forward_job, no_updates, run
from bpcli.runtime.kernel_loader import Jobs
from bpcli.tape.dependency import Reach
from bpcli.tape.instructions import BASE, INNER_ROW, OUT, OUTER, PACKED, STEP, Forward
from bpcli.tape.layout import Allocator, Places, without_packed
from bpcli.tape.lowering import LEAVES, fuse, lower_forward
from bpcli.tape.plan import LANE_FLOPS, Plan, make_plan

PART_ROWS = 64
"""Rows that one job takes on: enough for products to be quick, few enough for a step's values to stay in cache."""


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
    """The values of one layout. `inputs[node] (steps, rows, size)` and `static[node]` are those of the base.

    Where steps are `single` states are `inputs` too.
    """

    def __init__(
        self, layout: Layout, dtype: np.dtype, inputs: Mapping[int, NDArray[Any]], static: Mapping[int, NDArray[Any]]
    ) -> None:
        self.layout = layout
        self.V = np.empty(layout.places.size, dtype)
        self.numbers = layout.reach.forward.numbers.astype(dtype)
        self.updates = no_updates(len(layout.reach.graph.nodes), dtype)
        self._places = without_packed(layout.places.table, dtype)
        for node, values in static.items():
            self.block(node)[..., :] = values.ravel()
        self._pack()
        self.feed(inputs)

    def feed(self, inputs: Mapping[int, NDArray[Any]]) -> None:
        """Replace the inputs."""
        self.inputs, layout = inputs, self.layout
        if not inputs:
            return  # for the static phase alone
        for node, rows in inputs.items():
            if node not in layout.reach.reached:
                self.block(node)[:] = rows.ravel()
        everything = (0, layout.steps * layout.rows)
        self._run(layout.reach.before, cut(self._job(layout.reach.before, self.updates), kernel.I0, *everything, 1))

    def _pack(self) -> None:
        """Pack the matrices, which stay as they are from here on: changes of theirs are added to the products."""
        for n, field in self.layout.reach.packed:
            if self._places[n, field] >= 0:
                matrix = self.block(n).reshape(self.layout.reach.graph.nodes[n].shape)
                pack(matrix if field == PACKED else matrix.T, self.V[self._places[n, field] :])

    def _job(self, code: Jobs, updates: RankOneUpdates) -> Jobs:
        job = forward_job(self.layout.reach.forward, self.numbers, self._places, self.V.size, updates)
        job[kernel.CODE], job[kernel.LINES], job[kernel.LAST] = code.ctypes.data, len(code), len(code)
        job[kernel.STEP1] = 1
        return job

    def _run(self, code: Jobs, jobs: Jobs) -> None:
        if len(code):
            run("forward", jobs, self.V)

    def block(self, node: int) -> NDArray[Any]:
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

    def rows(self, node: int) -> NDArray[Any]:
        """The values (copies, rows, size) of a node that differs between copies."""
        return self.block(node).reshape(self.layout.copies, self.layout.rows, -1)

    def run(self, first: int, last: int) -> None:
        """All copies from step `first` to `last`."""
        layout = self.layout
        if not len(layout.reach.each):
            return
        work = layout.copies * layout.rows * (last - first) * layout.reach.flops
        parts = max(1, min(layout.copies, layout.copies * layout.rows // PART_ROWS, int(work / LANE_FLOPS)))
        job = self._each.copy()
        job[kernel.STEP0], job[kernel.STEP1] = first, last
        run("forward", cut(job, kernel.O0, 0, layout.copies, parts), self.V)

    @cached_property
    def _each(self) -> Jobs:
        """A job on all rows of copies."""
        job = self._job(self.layout.reach.each, self.updates)
        job[kernel.I1] = self.layout.rows
        return job

    def losses(self) -> NDArray[Any]:
        """The losses of all steps, a view (steps, copies, rows)."""
        layout, loss = self.layout, self.layout.reach.graph.loss
        place = layout.places.table[loss]
        strides = [int(place[field]) * self.V.itemsize for field in (STEP, OUTER, INNER_ROW)]
        shape = (layout.steps, layout.copies, layout.rows)
        return np.lib.stride_tricks.as_strided(self.V[place[BASE] :], shape, strides, writeable=False)

    def values(self, node: int) -> NDArray[Any]:
        """A node's value in each copy, a view (copies, rows, size); it may be part of another node's."""
        layout, place = self.layout, self.layout.places.table[node]
        strides = [int(n) * self.V.itemsize for n in (place[OUTER], place[INNER_ROW], 1)]
        shape = (layout.copies, layout.rows, layout.reach.graph.nodes[node].size)
        return np.lib.stride_tricks.as_strided(self.V[place[BASE] :], shape, strides, writeable=False)

    def static_run(self) -> None:
        """Compute the static nodes afresh, from leaves that are stored once."""
        self._run(self.layout.reach.forward.code, self._static)

    @cached_property
    def _static(self) -> Jobs:
        """A job of the static nodes."""
        forward = self.layout.reach.forward
        job = self._job(forward.code, self.updates)
        job[kernel.FIRST], job[kernel.LAST] = forward.bounds[Phase.STATIC], forward.bounds[Phase.INPUT]
        return cut(job, kernel.I0, 0, 1, 1)


@lru_cache(maxsize=16)
def plan_of(setup: Setup, steps: int, reads: tuple[int, ...] = ()) -> Plan:
    """The plan of a forward pass over so many steps, which holds the values of `reads`."""
    return make_plan(setup.graph, [], setup.batch, steps, [], reads=reads)


@lru_cache(maxsize=4)
def _forward(setup: Setup) -> Forward:
    return lower_forward(setup.graph, fuse(setup.graph))


@lru_cache(maxsize=64)
def reach(setup: Setup, changed: frozenset[int], single: bool = False) -> Reach:
    """The nodes that a change of some nodes reaches, in a `single` step or all that follow."""
    return Reach(setup.graph, _forward(setup), changed, single)


@lru_cache(maxsize=64)
def layout_of(
    setup: Setup, changed: frozenset[int], copies: int, rows: int, steps: int, single: bool = False
) -> Layout:
    """Places for copies that differ in some nodes."""
    return Layout(reach(setup, changed, single), copies, rows, steps)
