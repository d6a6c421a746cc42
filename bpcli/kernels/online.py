"""Forward-mode gradients over time: the one-step ingredients J, M̄ and q of any graph, and the influence matrix.

A chunk of steps is run forwards. The reverse program from the new states, seeded with one unit vector per state entry,
gives J(t) = ∂a(t)/∂a(t-1) and, at every product and shared vector, the cotangents that M̄(t) is made of. The reverse
program from the loss, stopping at the new states, gives q(t) = ∂l(t)/∂a(t) and what the loss owes to parameters
directly.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bpcli.graph.model import Phase
from bpcli.kernels import influence as kernel
from bpcli.kernels import reverse as reverse_kernel
from bpcli.kernels.calls import run
from bpcli.kernels.jobs import cut
from bpcli.kernels.online_plan import JOBS, OnlinePlan
from bpcli.kernels.rows import BASE, INNER_ROW, OUTER
from bpcli.kernels.tiles import pack
from bpcli.kernels.trace import Array, Trace


class Online:
    """The influence matrices of a problem, moving forwards a chunk of steps at a time."""

    def __init__(self, plan: OnlinePlan, trace: Trace) -> None:
        self.plan, self.trace = plan, trace
        dtype, N, P = trace.dtype, plan.size, plan.rows
        self.M = np.zeros(plan.batch * P * N, dtype)
        self.G = np.zeros(plan.batch * P, dtype)
        self.S = np.zeros(plan.jobs * (plan.block + 1) * N, dtype)
        self.C = np.zeros(plan.seeds.size + plan.packed, dtype)
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
        self.C[: plan.seeds.size] = 0
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
        job[kernel.JACOBIANS], job[kernel.JACOBIAN_ROW] = plan.seeds.size, self._pack((last - first) * plan.batch)
        items = plan.batch * -(-plan.rows // plan.block)
        jobs = cut(job, kernel.FIRST_ITEM, 0, items, plan.jobs)
        jobs[:, kernel.SCRATCH] = np.arange(plan.jobs) * (plan.block + 1) * plan.size
        run("influence", jobs, self.M)

    def _pack(self, rows: int) -> int:
        """Pack the Jacobians of so many rows, transposed; how far apart they stand."""
        N, start = self.plan.size, self.plan.seeds.table[next(iter(self.plan.graph.previous.values())), BASE]
        jacobians = self.C[start : start + rows * N * N].reshape(rows, N, N)
        return pack(jacobians.swapaxes(1, 2), self.C[self.plan.seeds.size :])

    def gradient(self, node: int) -> Array:
        """What has been collected for a stretch: (batch, rows)."""
        start, rows = next((s.start, s.rows) for s in self.plan.stretches if s.node == node)
        return self.G.reshape(self.plan.batch, -1)[:, start : start + rows]
