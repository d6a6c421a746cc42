"""A Trace: the values of a window of steps, with the passes over them that make a gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from bpcli.graph.model import Phase
from bpcli.graph.tape import Forward
from bpcli.kernels import forward as forward_kernel
from bpcli.kernels import products as products_kernel
from bpcli.kernels import reverse as reverse_kernel
from bpcli.kernels.fixes import Fix, no_fixes
from bpcli.kernels.layout import WINDOW, settle
from bpcli.kernels.library import Jobs, run
from bpcli.kernels.plan import Plan
from bpcli.kernels.rows import BASE, EPOCH, INNER_ROW, LANE, STEP
from bpcli.kernels.symbols import single_threaded

Array = NDArray[np.floating]
Arrays = Mapping[str, Array]


def forward_job(program: Forward, numbers: Array, places: Jobs, V: Array, fix: Fix) -> Jobs:
    """A job of the forward kernel with everything but lines, steps and rows."""
    slots, ends, rows, columns, changes = fix
    job = np.zeros(forward_kernel.JOB, np.int64)
    job[forward_kernel.CODE], job[forward_kernel.LINES] = program.code.ctypes.data, len(program.code)
    job[forward_kernel.NUMBERS], job[forward_kernel.NODES] = numbers.ctypes.data, len(numbers)
    job[forward_kernel.PLACES], job[forward_kernel.LENGTH] = places.ctypes.data, V.size
    job[forward_kernel.SLOTS], job[forward_kernel.ENDS] = slots.ctypes.data, ends.ctypes.data
    job[forward_kernel.SLOT_COUNT], job[forward_kernel.COPIES] = ends.shape[0], ends.shape[1] - 1
    job[forward_kernel.FIX_ROWS], job[forward_kernel.FIX_COLUMNS] = rows.ctypes.data, columns.ctypes.data
    job[forward_kernel.FIX_CHANGES], job[forward_kernel.FIX_COUNT] = changes.ctypes.data, changes.size
    job[forward_kernel.O1] = 1
    return job


def cut(job: Jobs, field: int, first: int, last: int, parts: int) -> Jobs:
    """`job` once for each of `parts` even stretches of `first` to `last`, written to `field` and the one after it."""
    if parts == 1:
        job[field], job[field + 1] = first, last
        return job[None]
    jobs = np.repeat(job[None], parts, axis=0)
    ends = first + (last - first) * np.arange(parts + 1) // parts
    jobs[:, field], jobs[:, field + 1] = ends[:-1], ends[1:]
    return jobs


class Trace:
    """Values, cotangents and sums of one plan; steps count from 0, and those from `origin` on are held.

    `params[name] (*shape)`, `inputs[name] (T, batch, *shape)` and `state[name]`, `(batch, *shape)` or `(*shape)`, are
    read, never written. `rounding` makes the reverse pass add up absolute contributions (see `bpcli.kernels.slopes`).
    """

    def __init__(
        self, plan: Plan, dtype: np.dtype, arrays: tuple[Arrays, Arrays, Arrays], rounding: bool = False
    ) -> None:
        single_threaded()
        params, inputs, state = arrays
        graph, batch = plan.graph, plan.extent.batch
        self.plan, self.dtype, self.rounding, self.origin = plan, dtype, rounding, 0
        self.V = np.empty(plan.values.size, dtype)
        self.F = np.empty(plan.values.size, dtype) if rounding else self.V
        self.C = np.empty(plan.cotangents.size, dtype)
        self._clear_sums()
        self.numbers = plan.forward.numbers.astype(dtype)
        self.fix = no_fixes(len(graph.nodes), dtype)
        self.place, self.cplace = plan.values.table.copy(), plan.cotangents.table.copy()
        self._forward_job = forward_job(plan.forward, self.numbers, self.place, self.V, self.fix)
        self._reverse_job = self.reverse_job(plan.reverse.code, self.place, self.cplace, self.C)
        self._products_job = self._product_jobs()
        self.inputs = {
            graph.leaf[name]: rows.reshape(-1, graph.nodes[graph.leaf[name]].size)
            for name, rows in inputs.items()
            if name in graph.leaf
        }
        self.states = {}
        for name, node in graph.previous.items():
            size = graph.nodes[node].size
            self.states[name] = np.broadcast_to(state[name].reshape(-1, size), (batch, size))
        self._load_static(params)

    def _load_static(self, params: Arrays) -> None:
        graph = self.plan.graph
        for node in graph.nodes:
            if node.op == "param":
                self.value(node.index, node.size)[:] = params[node.name].ravel()
            elif node.op == "constant":
                self.value(node.index, 1)[:] = node.numbers[0]
        self._forward((Phase.STATIC, Phase.STATIC), (0, 1), (0, 1), 1)

    def _clear_sums(self) -> None:
        """Set to zero what contributions are only ever added to: all but what a first contribution is stored in."""
        plan = self.plan
        for n, node in enumerate(plan.graph.nodes):
            final, line = plan.sums.table[n], plan.cotangents.table[n]
            if final[BASE] >= 0 and (node.phase is Phase.STATIC or node.op == "input"):
                steps = 1 if node.phase is Phase.STATIC else plan.extent.window * plan.extent.batch
                self.C[final[BASE] : final[BASE] + node.size * steps] = 0
                self.C[line[BASE] : line[BASE] + line[LANE] * plan.extent.lanes] = 0

    def value(self, node: int, entries: int) -> Array:
        """The first `entries` numbers stored for a node."""
        base = self.plan.values.table[node, BASE]
        return self.V[base : base + entries]

    def start(self) -> None:
        """Put the state before step 0 in place."""
        self.origin = 0
        for name, node in self.plan.graph.previous.items():
            rows = self.states[name]
            self.value(node, rows.size)[:] = rows.ravel()

    def forward(self, first: int, last: int) -> None:
        """Steps `first` to `last`, at most a chunk of them; they must lie in the window."""
        plan, batch = self.plan, self.plan.extent.batch
        settle(plan.values.table, first, self.origin, self.place)
        self._load_inputs(first, last)
        if plan.extent.stepwise:
            self._forward((Phase.INPUT, Phase.OUTPUT), (first, last), (0, batch), plan.shards)
            return
        rows = (first * batch, last * batch)
        self._forward((Phase.INPUT, Phase.INPUT), (0, 1), rows, plan.lanes(Phase.INPUT, last - first))
        self._forward((Phase.RECURRENT, Phase.RECURRENT), (first, last), (0, batch), plan.shards)
        self._forward((Phase.OUTPUT, Phase.OUTPUT), (0, 1), rows, plan.lanes(Phase.OUTPUT, last - first))

    def load(self, first: int, last: int) -> None:
        """Have everything in place that the reverse pass of some steps reads, at most a chunk of them."""
        self._load_inputs(first, last)
        if self.rounding:
            np.abs(self.V, out=self.F)

    def _load_inputs(self, first: int, last: int) -> None:
        batch = self.plan.extent.batch
        for node, rows in self.inputs.items():
            part = rows[first * batch : last * batch].ravel()
            self.value(node, part.size)[:] = part

    def _forward(self, phases: tuple[Phase, Phase], steps: tuple[int, int], rows: tuple[int, int], parts: int) -> None:
        """Run the instructions of `phases`, the first to the last of them."""
        program = self.plan.forward
        lines = program.bounds[phases[0]], program.bounds[phases[1] + 1]
        if lines[0] == lines[1]:
            return
        job = self._forward_job.copy()
        job[forward_kernel.FIRST : forward_kernel.LAST + 1] = lines
        job[forward_kernel.STEP0 : forward_kernel.STEP1 + 1] = steps
        run("forward", cut(job, forward_kernel.I0, *rows, parts), self.V)

    def losses(self, first: int, last: int) -> NDArray[np.float64]:
        """The loss node's values (steps, batch) of the chunk just run."""
        node, batch = self.plan.graph.nodes[self.plan.graph.loss], self.plan.extent.batch
        if node.phase is Phase.STATIC:
            return np.full((last - first, batch), self.value(node.index, 1)[0], np.float64)
        base = self.place[node.index, BASE] + first * batch * self.place[node.index, INNER_ROW]
        stretch = self.V[base:][: (last - first) * batch * self.place[node.index, INNER_ROW]]
        return stretch[:: self.place[node.index, INNER_ROW]].reshape(last - first, batch).astype(np.float64)

    def reverse(
        self, first: int, last: int, weights: Array, fresh: bool = False, later: Mapping[int, Array] | None = None
    ) -> None:
        """Steps `last - 1` down to `first`, at most a chunk of them; gradients add up until `finish`.

        `weights (steps, batch)` are the losses' cotangents; the state's cotangent after the last step is zero where
        `fresh`, else what the call before left at its first step. Where steps are taken apart (see `Extent`), `later`
        has for each new state the cotangents `(steps, batch, size)` that later steps bring.
        """
        plan, batch = self.plan, self.plan.extent.batch
        settle(plan.values.table, first, self.origin, self.place)
        settle(plan.cotangents.table, first, self.origin, self.cplace)
        self.load(first, last)
        if later is None:
            self._carry(last - first, fresh)
        else:
            self._bring(later)
        self._seed(first, weights)
        if plan.extent.stepwise and not plan.extent.apart:
            self._reverse((Phase.OUTPUT, Phase.INPUT), (first, last), (0, batch), plan.shards)
        else:
            rows = (first * batch, last * batch)
            for phase in (Phase.OUTPUT, Phase.RECURRENT, Phase.INPUT):
                if phase is Phase.RECURRENT and not plan.extent.apart:
                    self._reverse((phase, phase), (first, last), (0, batch), plan.shards)
                else:
                    self._reverse((phase, phase), (0, 1), rows, plan.lanes(phase, last - first))
        self._matrix_gradients(first * batch, last * batch)

    def _carry(self, steps: int, fresh: bool) -> None:
        """The states' cotangents: what entered the first step of the later chunk leaves the last step of this one."""
        graph, batch = self.plan.graph, self.plan.extent.batch
        for node in graph.previous.values():
            size = graph.nodes[node].size * batch
            base = self.plan.cotangents.table[node, BASE]
            last = self.C[base + steps * size : base + (steps + 1) * size]
            last[:] = 0 if fresh else self.C[base : base + size].copy()
            self.C[base : base + steps * size] = 0

    def _bring(self, later: Mapping[int, Array]) -> None:
        """Put the new states' cotangents in place; those of the states before have nothing yet."""
        graph = self.plan.graph
        for name, new in graph.new.items():
            for node, values in ((graph.previous[name], 0), (new, later[new].ravel())):
                base = self.plan.cotangents.table[node, BASE]
                self.C[base : base + later[new].size] = values

    def _seed(self, first: int, weights: Array) -> None:
        node = self.plan.graph.nodes[self.plan.graph.loss]
        if node.index not in self.plan.reverse.touched:
            return
        if node.phase is Phase.STATIC:
            self.C[self.plan.sums.table[node.index, BASE]] += weights.sum()
            return
        base = self.cplace[node.index, BASE] + first * self.plan.extent.batch
        self.C[base : base + weights.size] = weights.ravel()

    def _reverse(self, phases: tuple[Phase, Phase], steps: tuple[int, int], rows: tuple[int, int], parts: int) -> None:
        """Run the reverse instructions of `phases`, from the later phase to the earlier."""
        program = self.plan.reverse
        lines = program.bounds[3 - phases[0]], program.bounds[4 - phases[1]]
        if lines[0] == lines[1]:
            return
        job = self._reverse_job.copy()
        job[reverse_kernel.FIRST : reverse_kernel.LAST + 1] = lines
        job[reverse_kernel.STEP0 : reverse_kernel.STEP1 + 1] = steps
        jobs = cut(job, reverse_kernel.I0, *rows, parts)
        if parts > 1:
            jobs[:, reverse_kernel.LANE] = np.arange(parts)
        run("reverse", jobs, self.V)

    def reverse_job(self, code: Jobs, places: Jobs, cplaces: Jobs, C: Array) -> Jobs:
        """A job of the reverse kernel on this trace's values with everything but lines, steps and rows."""
        job = np.zeros(reverse_kernel.JOB, np.int64)
        job[reverse_kernel.CODE], job[reverse_kernel.LINES] = code.ctypes.data, len(code)
        job[reverse_kernel.NUMBERS], job[reverse_kernel.NODES] = self.numbers.ctypes.data, len(self.numbers)
        job[reverse_kernel.PLACES], job[reverse_kernel.COTANGENT_PLACES] = places.ctypes.data, cplaces.ctypes.data
        job[reverse_kernel.LENGTH_V], job[reverse_kernel.FACTORS] = self.V.size, self.F.ctypes.data
        job[reverse_kernel.COTANGENTS], job[reverse_kernel.LENGTH_C] = C.ctypes.data, C.size
        job[reverse_kernel.O1], job[reverse_kernel.ROUNDING] = 1, self.rounding
        return job

    def _product_jobs(self) -> Jobs:
        """The jobs of all matrix gradients with everything but where their rows begin and how many there are."""
        kernel = products_kernel
        matrix, delta, vector, turned, columns, r0, r1 = self.plan.tasks.T
        jobs = np.zeros((len(r0), kernel.JOB), np.int64)
        jobs[:, kernel.LENGTH_V], jobs[:, kernel.LENGTH_C] = self.V.size, self.C.size
        jobs[:, kernel.ADDRESS_C] = self.C.ctypes.data
        jobs[:, kernel.TURNED_], jobs[:, kernel.COLUMNS], jobs[:, kernel.ROWS] = turned, columns, r1 - r0
        jobs[:, kernel.DELTA_STRIDE] = self.plan.cotangents.table[delta, INNER_ROW]
        jobs[:, kernel.VECTOR_STRIDE] = self.plan.values.table[vector, INNER_ROW]
        jobs[:, kernel.SUM] = self.plan.cotangents.table[matrix, BASE] + r0 * columns
        return jobs

    def _matrix_gradients(self, first: int, last: int) -> None:
        kernel, jobs = products_kernel, self._products_job
        if not len(jobs):
            return
        _, delta, vector, turned, _, r0, _ = self.plan.tasks.T
        jobs[:, kernel.DEPTH] = last - first
        jobs[:, kernel.DELTA] = self.cplace[delta, BASE] + first * jobs[:, kernel.DELTA_STRIDE] + (1 - turned) * r0
        jobs[:, kernel.VECTOR] = self.place[vector, BASE] + first * jobs[:, kernel.VECTOR_STRIDE] + turned * r0
        run("products", jobs, self.F, parallel=len(jobs) > len(self.plan.reverse.products))

    def finish(self, extra: Sequence[tuple[int, Array]] = ()) -> dict[int, Array]:
        """Add up the lanes (and `extra` sums of static nodes), take the static phase backwards; gradients by leaf."""
        plan, graph = self.plan, self.plan.graph
        for n, line in enumerate(plan.cotangents.table):
            if line[LANE] and n not in plan.reverse.alias:
                base, size = plan.sums.table[n, BASE], graph.nodes[n].size
                lanes = self.C[line[BASE] : line[BASE] + line[LANE] * plan.extent.lanes].reshape(-1, line[LANE])
                for lane in lanes:
                    self.C[base : base + size] += lane[:size]
        for n, values in extra:
            base = plan.sums.table[n, BASE]
            self.C[base : base + values.size] += values
        if self.rounding:
            np.abs(self.V, out=self.F)
        self.place[:], self.cplace[:] = plan.values.table, plan.sums.table
        self._reverse((Phase.STATIC, Phase.STATIC), (0, 1), (0, 1), 1)
        return {n: self._leaf(n) for n in plan.leaves if graph.nodes[n].op != "previous"}

    def _leaf(self, n: int) -> Array:
        """A copy of a leaf's cotangent, flat: a parameter's, or an input's over the whole window."""
        node, line, extent = self.plan.graph.nodes[n], self.plan.sums.table[n], self.plan.extent
        entries = node.size if node.op == "param" else extent.window * extent.batch * node.size
        if line[BASE] < 0:
            return np.zeros(entries, self.dtype)
        return self.C[line[BASE] : line[BASE] + entries].copy()

    def take_window(self, n: int, steps: int) -> Array:
        """An input's cotangents (steps, batch, size) of the window so far; they are set to zero."""
        size, base = self.plan.graph.nodes[n].size, self.plan.sums.table[n, BASE]
        rows = self.C[base : base + steps * self.plan.extent.batch * size] if base >= 0 else np.zeros(0, self.dtype)
        taken = rows.copy() if base >= 0 else np.zeros(steps * self.plan.extent.batch * size, self.dtype)
        rows[:] = 0
        return taken.reshape(steps, self.plan.extent.batch, size)

    def initial(self, name: str) -> Array:
        """The cotangent (batch, size) of the state before the first step of the chunk last taken backwards."""
        node = self.plan.graph.nodes[self.plan.graph.previous[name]]
        base = self.plan.cotangents.table[node.index, BASE]
        return self.C[base : base + self.plan.extent.batch * node.size].reshape(-1, node.size).copy()

    def slide(self, steps: int) -> None:
        """Forget the first `steps` steps of the window: what follows moves to its front."""
        table, graph = self.plan.values.table, self.plan.graph
        owners = set(range(len(graph.nodes))) - set(self.plan.forward.alias) - set(graph.new.values())
        for n in owners:
            if table[n, EPOCH] == WINDOW:
                held = self.plan.extent.window + (graph.nodes[n].op == "previous")
                rows = self.V[table[n, BASE] : table[n, BASE] + held * table[n, STEP]]
                kept = rows[steps * table[n, STEP] :]
                rows[: kept.size] = kept  # they overlap; NumPy moves one dimension in place, without a copy
        self.origin += steps
