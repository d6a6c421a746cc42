"""The schedule of a plan: the kernel calls of each pass, and the slices of a trace that it loads, clears and collects.

A schedule follows from sizes alone and is worked out once: a gradient that is taken again makes no jobs. Jobs hold the
distance of arrays from the values, not their addresses, and so serve every trace of a plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np

from bpcli.graph.nodes import Phase
from bpcli.kernels import forward as forward_kernel
from bpcli.kernels import lockstep
from bpcli.kernels import matrix_gradients as products_kernel
from bpcli.kernels import reverse as reverse_kernel
from bpcli.kernels import tiles as packing_kernel
from bpcli.runtime.jobs import Call, cut, forward_job, no_updates, reverse_job
from bpcli.runtime.kernel_loader import Jobs
from bpcli.tape.barriers import MOST_LINES, forward_barriers, reverse_barriers
from bpcli.tape.instructions import (
    APART,
    BASE,
    INNER_ROW,
    LANE,
    LEAST_MATRIX,
    MATMUL,
    OP,
    PACKED,
    PACKED_T,
    SIZE,
    SIZE_B,
    STEP,
    Integers,
)
from bpcli.tape.layout import ALIGN, packed_shape, settle, without_packed
from bpcli.tape.plan import Plan


@dataclass(frozen=True, eq=False)
class TraceSlices:
    """Slices of the values and of the cotangents of one plan; `places` are those of its values."""

    plan: Plan
    places: Integers

    @cached_property
    def params(self) -> Sequence[tuple[str, slice, tuple[int, ...], int]]:
        """Of each parameter its name, slice and shape, and its row stride where there are gaps between rows, else 0."""
        found = []
        for n in self.plan.graph.nodes:
            if n.op == "param":
                base, apart = self.places[n.index, [BASE, APART]].tolist()
                found.append((n.name, _slice(base, n.shape[0] * apart if apart else n.size), n.shape, apart))
        return found

    @cached_property
    def inputs(self) -> Sequence[tuple[int, str, int, int]]:
        """Of each input its node, its name, the offset of a chunk's rows, and the entries of a row."""
        nodes = (n for n in self.plan.graph.nodes if n.op == "input")
        return [(n.index, n.name, int(self.places[n.index, BASE]), n.size) for n in nodes]

    @cached_property
    def states(self) -> Sequence[tuple[str, slice, int]]:
        """Of each state its name, the slice of its values before the window's first step, and the entries of a row."""
        graph, found = self.plan.graph, []
        for name, n in graph.previous.items():
            size = graph.nodes[n].size
            found.append((name, _slice(self.places[n, BASE], size * self.plan.extent.batch), size))
        return found

    @cached_property
    def carried(self) -> Sequence[tuple[int, int]]:
        """Of each state the offset of its cotangents before the chunk's first step, and how many there are."""
        graph, places, batch = self.plan.graph, self.plan.cotangents.table, self.plan.extent.batch
        return [(int(places[n, BASE]), graph.nodes[n].size * batch) for n in graph.previous.values()]

    @cached_property
    def constants(self) -> Sequence[tuple[int, float]]:
        """Offset and value of each constant."""
        return [(int(self.places[n.index, BASE]), n.numbers[0]) for n in self.plan.graph.nodes if n.op == "constant"]

    @cached_property
    def sums(self) -> Sequence[slice]:
        """Cotangents that no program stores before it adds to them, which have to be cleared."""
        plan, found = self.plan, list[tuple[int, int]]()
        for n, node in enumerate(plan.graph.nodes):
            line = plan.cotangents.table[n]
            if line[BASE] >= 0 and (node.phase is Phase.STATIC or node.op == "input"):
                steps = 1 if node.phase is Phase.STATIC else plan.extent.window * plan.extent.batch
                entries = max(node.size * steps, line[LANE] * plan.extent.lanes)
                found.append((line[BASE], line[BASE] + entries))
        joined: list[tuple[int, int]] = []
        for start, stop in sorted(found):
            # Only what pads one span to the next lies between them.
            if joined and start - joined[-1][1] < ALIGN:
                joined[-1] = joined[-1][0], max(stop, joined[-1][1])
            else:
                joined.append((start, stop))
        return [slice(*ends) for ends in joined]

    @cached_property
    def lanes(self) -> Sequence[tuple[slice, Sequence[slice]]]:
        """Of each static node that lanes share: the first lane's slice, where the sum ends up, and the others'."""
        plan, found = self.plan, []
        for n, line in enumerate(plan.cotangents.table):
            if line[LANE] and n not in plan.reverse.alias:
                size, lanes = plan.graph.nodes[n].size, range(plan.extent.lanes)
                first, *others = (_slice(line[BASE] + lane * line[LANE], size) for lane in lanes)
                found.append((first, others))
        return found

    @cached_property
    def leaves(self) -> Sequence[tuple[int, slice | None, int]]:
        """Of each leaf its node, the slice of its gradient (None: it has none), and the entries of that."""
        plan, found = self.plan, []
        for n in plan.leaves:
            node, base = plan.graph.nodes[n], plan.cotangents.table[n, BASE]
            if node.op != "previous":
                entries = node.size * (1 if node.op == "param" else plan.extent.window * plan.extent.batch)
                found.append((n, _slice(base, entries) if base >= 0 else None, entries))
        return found


def _slice(start: int, entries: int) -> slice:
    return slice(int(start), int(start + entries))


MOST_KEPT = 64
"""Spans whose calls are kept; of a longer sequence, making jobs is a small part of the time."""
LEAST_WOKEN = 1 << 25
"""Operations of matrix gradients from which sleeping threads are woken: for fewer, waking takes as long as it saves,
and a thread that stays awake afterwards is in the way."""
LEAST_PACKED = 1 << 16
"""Entries of matrices from which several threads copy them: for fewer, waking takes as long as it saves."""
Span = tuple[int, int, int]
"""First and last step of a chunk, and the first step of the window."""
Calls = Sequence[Call]


@lru_cache(maxsize=16)
def schedule_of(plan: Plan, dtype: np.dtype, rounding: bool) -> Schedule:
    """The `Schedule` of a plan; those of the plans last used are kept."""
    return Schedule(plan, dtype, rounding)


class Schedule:
    """The calls of one plan and dtype on an array that holds values, cotangents and, with `rounding`, factors."""

    def __init__(self, plan: Plan, dtype: np.dtype, rounding: bool) -> None:
        self.plan, self.rounding, self.places = plan, rounding, without_packed(plan.values.table, dtype)
        self.slices = TraceSlices(plan, self.places)
        self.numbers = plan.forward.numbers.astype(dtype)
        self.updates = no_updates(len(plan.graph.nodes), dtype)
        self.cotangents = plan.values.size
        self.factors = self.cotangents + plan.cotangents.size if rounding else 0
        self.entries = self.cotangents + plan.cotangents.size + (plan.values.size if rounding else 0)
        self._kept: dict[tuple[str, Span], Calls] = {}
        self._found_barriers: dict[tuple[Callable[..., tuple[int, int]], tuple[Phase, Phase]], tuple[int, int]] = {}

    def forward(self, span: Span) -> Calls:
        """The passes forwards over a span."""
        return self._keep("forward", self._forward, span)

    def reverse(self, span: Span) -> Calls:
        """The passes backwards over a span, and the gradients of matrices."""
        return self._keep("reverse", self._reverse, span)

    def _keep(self, way: str, make: Callable[[Span], Calls], span: Span) -> Calls:
        if (way, span) not in self._kept:
            if len(self._kept) >= MOST_KEPT:
                self._kept.clear()
            self._kept[way, span] = make(span)
        return self._kept[way, span]

    @cached_property
    def static_forward(self) -> Calls:
        """The static phase, and the packed copies of matrices."""
        phases = Phase.STATIC, Phase.STATIC
        return [*self._pass_forward(self.places, phases, (0, 1), (0, 1), 1), *self._packing()]

    @cached_property
    def static_reverse(self) -> Calls:
        """The static phase backwards, from the first lane, where sums end up."""
        tables = self.places, self.plan.cotangents.table
        return list(self._pass_reverse(tables, (Phase.STATIC, Phase.STATIC), (0, 1), (0, 1), 1))

    def _packing(self) -> Iterable[Call]:
        jobs = []
        for node, line in zip(self.plan.graph.nodes, self.places, strict=True):
            for field in (PACKED, PACKED_T):
                if line[field] >= 0:
                    strides = (node.shape[1], 1) if field == PACKED else (1, node.shape[1])
                    ends = self.plan.values.size, line[BASE], *strides, *packed_shape(node.shape, field)
                    jobs.append((*ends, packing_kernel.width(self.numbers.dtype), line[field]))
        if jobs:
            entries = sum(job[packing_kernel.K] * job[packing_kernel.N] for job in jobs)
            yield Call("pack", np.array(jobs, np.int64), parallel=entries >= LEAST_PACKED)

    def _forward(self, span: Span) -> Calls:
        first, last, origin = span
        plan, batch = self.plan, self.plan.extent.batch
        table = settle(self.places, first, origin)
        if plan.extent.stepwise:
            phases = Phase.INPUT, Phase.OUTPUT
            return list(self._pass_forward(table, phases, (first, last), (0, batch), plan.shards))
        found: list[Call] = []
        for phase in (Phase.INPUT, Phase.RECURRENT, Phase.OUTPUT):
            within = self._within(span, phase, phase is Phase.RECURRENT)
            found += self._pass_forward(table, (phase, phase), *within)
        return list(_joined(found))

    def _reverse(self, span: Span) -> Calls:
        first, last, origin = span
        plan, extent = self.plan, self.plan.extent
        tables = settle(self.places, first, origin), settle(plan.cotangents.table, first, origin)
        found: list[Call] = []
        if extent.stepwise and not extent.apart:
            phases = Phase.OUTPUT, Phase.INPUT
            found += self._pass_reverse(tables, phases, (first, last), (0, extent.batch), plan.shards)
        else:
            for phase in (Phase.OUTPUT, Phase.RECURRENT, Phase.INPUT):
                within = self._within(span, phase, phase is Phase.RECURRENT and not extent.apart)
                found += self._pass_reverse(tables, (phase, phase), *within)
        awake = plan.shards > 1 or any(call.group is not None for call in found)
        return [*_joined(found), *self._products(tables, first, last, awake)]

    def _within(self, span: Span, phase: Phase, in_turn: bool) -> tuple[tuple[int, int], tuple[int, int], int]:
        """Steps, rows and parts: steps one after another, or as rows all at once."""
        first, last, _ = span
        batch = self.plan.extent.batch
        if in_turn:
            return (first, last), (0, batch), self.plan.shards
        return (0, 1), (first * batch, last * batch), self.plan.lanes(phase, last - first)

    def _pass_forward(
        self, table: Integers, phases: tuple[Phase, Phase], steps: tuple[int, int], rows: tuple[int, int], parts: int
    ) -> Iterable[Call]:
        """The instructions of `phases`, the first to the last of them; none where there are none."""
        program = self.plan.forward
        lines = program.bounds[phases[0]], program.bounds[phases[1] + 1]
        if lines[0] == lines[1]:
            return
        job = forward_job(program, self.numbers, table, self.plan.values.size, self.updates)
        job[forward_kernel.FIRST : forward_kernel.LAST + 1] = lines
        job[forward_kernel.STEP0 : forward_kernel.STEP1 + 1] = steps
        code, group = program.code[slice(*lines)], None
        if self._worth_lockstep(code, steps, rows):
            group = forward_kernel.GROUP
            found = self._barriers(forward_barriers, phases, code, self.places)
            job[forward_kernel.BARRIERS], job[forward_kernel.LEADER_LINES] = found
        yield Call("forward", cut(job, forward_kernel.I0, *rows, parts), keeps=(table,), group=group)

    def _pass_reverse(
        self,
        tables: tuple[Integers, Integers],
        phases: tuple[Phase, Phase],
        steps: tuple[int, int],
        rows: tuple[int, int],
        parts: int,
    ) -> Iterable[Call]:
        """The reverse instructions of `phases`, from the later phase to the earlier; none where there are none."""
        program, kernel = self.plan.reverse, reverse_kernel
        lines = program.bounds[3 - phases[0]], program.bounds[4 - phases[1]]
        if lines[0] == lines[1]:
            return
        job = reverse_job(program.code, self.numbers, *tables, self.rounding)
        job[kernel.LENGTH_V], job[kernel.FACTORS] = self.plan.values.size, self.factors
        job[kernel.COTANGENTS], job[kernel.LENGTH_C] = self.cotangents, self.plan.cotangents.size
        job[kernel.FIRST : kernel.LAST + 1] = lines
        job[kernel.STEP0 : kernel.STEP1 + 1] = steps
        code, group = program.code[slice(*lines)], None
        if self._worth_lockstep(code, steps, rows):
            group = kernel.GROUP
            found = self._barriers(reverse_barriers, phases, code, self.plan.cotangents.table)
            job[kernel.BARRIERS], job[kernel.LEADER_LINES] = found
        jobs = cut(job, kernel.I0, *rows, parts)
        if parts > 1:
            jobs[:, kernel.LANE] = np.arange(parts)
        yield Call("reverse", jobs, keeps=tables, group=group)

    def _worth_lockstep(self, code: Integers, steps: tuple[int, int], rows: tuple[int, int]) -> bool:
        """Whether some steps of a tape, on one row, read so much of large matrices that threads should share it.

        Complex products are the BLAS's, and no BLAS promises that parts of a result have the bits of the whole.
        """
        products = code[code[:, OP] == MATMUL]
        entries = products[:, SIZE] * products[:, SIZE_B]
        step = int(entries[entries >= LEAST_MATRIX].sum())
        enough = step >= lockstep.LEAST_STEP and step * (steps[1] - steps[0]) >= lockstep.LEAST_READ
        return enough and rows[1] - rows[0] == 1 and len(code) <= MOST_LINES and self.numbers.dtype.kind == "f"

    def _barriers(
        self, find: Callable[..., tuple[int, int]], phases: tuple[Phase, Phase], code: Integers, places: Integers
    ) -> tuple[int, int]:
        """The result of `forward_barriers` or `reverse_barriers`, which is the same for all spans."""
        key = find, phases
        if key not in self._found_barriers:
            self._found_barriers[key] = find(code, places, self.plan.extent.chunk if Phase.RECURRENT in phases else 1)
        return self._found_barriers[key]

    def _products(self, tables: tuple[Integers, Integers], first: int, last: int, awake: bool) -> Iterable[Call]:
        """The gradients of all matrices over the rows of steps `first` to `last`; `awake`: threads have just worked."""
        plan, kernel, batch = self.plan, products_kernel, self.plan.extent.batch
        places, cplaces = tables
        matrix, delta, vector, turned, columns, r0, r1, turn, shard = plan.tasks.T
        own, shard = shard >= 0, np.maximum(shard, 0)
        start = first * batch + own * (batch * shard // plan.shards)
        jobs = np.zeros((len(r0), kernel.JOB), np.int64)
        jobs[:, kernel.FACTORS], jobs[:, kernel.LENGTH_V] = self.factors, plan.values.size
        jobs[:, kernel.COTANGENTS], jobs[:, kernel.LENGTH_C] = self.cotangents, plan.cotangents.size
        jobs[:, kernel.TRANSPOSED], jobs[:, kernel.COLUMNS] = turned, columns
        jobs[:, kernel.ROWS], jobs[:, kernel.TIMES] = r1 - r0, np.where(own, last - first, 1)
        end = np.where(own, first * batch + batch * (shard + 1) // plan.shards, last * batch)
        jobs[:, kernel.DEPTH] = end - start
        jobs[:, kernel.DELTA_STRIDE] = cplaces[delta, INNER_ROW]
        jobs[:, kernel.VECTOR_STRIDE] = places[vector, INNER_ROW]
        jobs[:, kernel.DELTA] = cplaces[delta, BASE] + start * cplaces[delta, INNER_ROW] + (1 - turned) * r0
        jobs[:, kernel.VECTOR] = places[vector, BASE] + start * places[vector, INNER_ROW] + turned * r0
        jobs[:, kernel.DELTA_JUMP], jobs[:, kernel.VECTOR_JUMP] = cplaces[delta, STEP], places[vector, STEP]
        jobs[:, kernel.SUM] = cplaces[matrix, BASE] + shard * cplaces[matrix, LANE] + r0 * columns
        sizes = jobs[:, [kernel.ROWS, kernel.COLUMNS, kernel.DEPTH, kernel.TIMES]]
        flops = 2 * int(sizes.prod(axis=1).sum())
        worth_it = len(jobs) > len(plan.reverse.products) and (awake or flops >= LEAST_WOKEN)
        for each in range(max(turn, default=-1) + 1):
            yield Call("products", jobs[turn == each], parallel=worth_it)  # no two of them add to the same matrix


def _joined(calls: Sequence[Call]) -> Iterable[Call]:
    """The same calls, single jobs of one kernel that follow each other as one."""
    held: Call | None = None
    for call in calls:
        single = len(call.jobs) == 1 and call.group is None
        if (
            held
            and held.name == call.name
            and single
            and (held.ordered or (len(held.jobs) == 1 and held.group is None))
        ):
            jobs: Jobs = np.concatenate([held.jobs, call.jobs])
            held = replace(held, jobs=jobs, ordered=True, keeps=(*held.keeps, *call.keeps))
            continue
        if held:
            yield held
        held = call
    if held:
        yield held
