"""A trace: the values of a window of steps, and the passes forwards and backwards over them.

Values V, cotangents C and factors F of a trace stand in one array. Fresh memory from the system is zeroed page by page
as it is first written, which takes as long as many a pass, and the allocator returns a large freed array to the system
at once. So the last large array is kept for the next trace; and of small ones a few, with their views, as making views
takes as long as their kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpcli.graph.nodes import Phase
from bpcli.kernels import forward as forward_kernel
from bpcli.kernels import reverse as reverse_kernel
from bpcli.runtime.jobs import Call, reverse_job
from bpcli.runtime.kernel_loader import Jobs, single_threaded
from bpcli.runtime.schedule import Schedule, Span, schedule_of
from bpcli.tape.instructions import APART, BASE, EPOCH, INNER_ROW, STEP
from bpcli.tape.layout import WINDOW, Places
from bpcli.tape.plan import Plan

Array = NDArray[Any]
Arrays = Mapping[str, Array]
LEAST_REUSED, MOST_REUSED = 1 << 25, 1 << 28
"""Bytes of an array that is kept: no fewer than glibc's allocator returns to the system, no more than is negligible."""
MOST_VIEWED, VIEWED = 1 << 22, 4
"""Bytes of an array that is kept with its views, and how many of these are kept."""
ALIGNMENT = 128
"""Bytes: two cache lines, which processors fetch together. A vector across lines takes twice as long, and lines that
two threads write should not be neighbours."""
SPANS = 4
"""Spans of steps whose views are kept: those of many would take more memory than they save time."""


class Memory:
    """Arrays of traces that are done, kept for the next trace."""

    def __init__(self) -> None:
        self.freed: list[NDArray[np.uint8]] = []
        self.views: dict[object, Views] = {}

    def allocate(self, entries: int, dtype: np.dtype) -> tuple[NDArray[Any], int]:
        """An uninitialised array and its address, in a freed array if that has as many bytes."""
        size = entries * dtype.itemsize + ALIGNMENT
        try:
            held = self.freed.pop()
        except IndexError:
            held = np.empty(0, np.uint8)
        if held.size != size:
            del held  # before there is another
            held = np.empty(size, np.uint8)
        address = held.ctypes.data
        start = -address % ALIGNMENT
        return held[start : start + entries * dtype.itemsize].view(dtype), address + start

    def free(self, numbers: NDArray[Any]) -> None:
        """Keep the memory of an array that was allocated here; nothing reads or writes any part of it from now on."""
        held = numbers.base
        if held is not None and LEAST_REUSED <= held.nbytes <= MOST_REUSED:
            self.freed[:] = [held]

    def acquire(self, schedule: Schedule, dtype: np.dtype, room: int) -> Views:
        """The views that an earlier trace has released, or new ones; the numbers may be anything."""
        return self.views.pop((schedule, room), None) or Views(self, schedule, dtype, room)

    def release(self, views: Views) -> None:
        """Keep views for the next trace, or their memory; nothing reads or writes any part of it from now on."""
        if views.bytes > MOST_VIEWED:
            self.free(views.V)
            return
        self.views[views.key] = views
        for old in list(self.views)[:-VIEWED]:  # other Python threads may release views at any time
            self.views.pop(old, None)

    def clear(self) -> None:
        """Keep nothing."""
        self.freed.clear()
        self.views.clear()


MEMORY = Memory()
"""This process's."""


class Views:
    """Values V, cotangents C, factors F, and `room` for so many more numbers, in one array at `address`."""

    def __init__(self, memory: Memory, schedule: Schedule, dtype: np.dtype, room: int) -> None:
        numbers, self.address = memory.allocate(schedule.entries + room, dtype)
        plan, slices = schedule.plan, schedule.slices
        self.key, self.bytes = (schedule, room), numbers.nbytes
        self.V = numbers[: plan.values.size]
        self.C = numbers[schedule.cotangents :][: plan.cotangents.size]
        self.F = numbers[schedule.factors :][: plan.values.size]
        self.room = numbers[schedule.entries :]
        self.sums: Sequence[Array] = [self.C[part] for part in slices.sums]
        """Cotangents that have to be cleared."""
        self.params: Sequence[tuple[str, Array]] = [
            (name, self.V[part].reshape(shape[0], apart)[:, : shape[1]] if apart else self.V[part].reshape(shape))
            for name, part, shape, apart in slices.params
        ]
        self.states: Sequence[tuple[str, Array]] = [
            (name, self.V[part].reshape(-1, size)) for name, part, size in slices.states
        ]
        """Of each state the rows before the first step of the window."""
        self.lanes: Sequence[tuple[Array, Sequence[Array]]] = [
            (self.C[first], [self.C[other] for other in others]) for first, others in slices.lanes
        ]
        """Shares of cotangents of static nodes: the first, where their sum ends up, and the others."""
        self.leaves: Sequence[tuple[int, Array | None, int]] = [
            (n, None if part is None else self.C[part], entries) for n, part, entries in slices.leaves
        ]
        """Of each leaf's node the gradient, if it has one, and the entries of that."""
        self._schedule, self._kept = schedule, dict[Span, SpanViews]()

    def over(self, span: Span) -> SpanViews:
        """The views of a span of steps; those of the last few are kept."""
        if span not in self._kept:
            if len(self._kept) >= SPANS:
                self._kept.clear()
            self._kept[span] = SpanViews(self, self._schedule, span)
        return self._kept[span]


class SpanViews:
    """Views of what a span of steps reads and writes."""

    def __init__(self, views: Views, schedule: Schedule, span: Span) -> None:
        first, last, _ = span
        slices, plan, batch = schedule.slices, schedule.plan, schedule.plan.extent.batch
        steps, loss = last - first, plan.graph.nodes[plan.graph.loss]
        rows = steps * batch
        self.inputs: Sequence[tuple[int, Array, int, int]] = [
            (n, views.V[base : base + rows * size].reshape(rows, size), first * batch, last * batch)
            for n, _, base, size in slices.inputs
        ]
        """Of each input its node, its rows, and their range among the rows of all steps."""
        self.losses: Array | None = None
        """Losses (steps, batch) and"""
        self.seeds: Array | None = None
        """their cotangents; None where the loss is the same at all steps."""
        if loss.phase is not Phase.STATIC:
            apart = int(plan.values.table[loss.index, INNER_ROW])
            values = views.V[_first(plan.values, loss.index, span) :][: rows * apart]
            self.losses = values[::apart].reshape(steps, batch)
            if loss.index in plan.reverse.touched:
                start = _first(plan.cotangents, loss.index, span)
                self.seeds = views.C[start : start + rows].reshape(steps, batch)
        self.carried: Sequence[tuple[Array, Array, Array]] = [
            (views.C[base + steps * size :][:size], views.C[base:][:size], views.C[base:][: steps * size])
            for base, size in slices.carried
        ]
        """Of each state its cotangents after the last step, before the first one of the chunk, and before each step."""


def _first(places: Places, node: int, span: Span) -> int:
    """Where a node's rows of the first step of a chunk begin."""
    first, _, origin = span
    line = places.table[node].tolist()
    return int(line[BASE] + (first - origin) * line[STEP] if line[EPOCH] == WINDOW else line[BASE])


@dataclass(frozen=True)
class Disturbance:
    """Simulated rounding: every result and every cotangent is multiplied by 1 + e, e uniform in ±`size`.

    With `cotangents` alone the forward pass stays as it is.
    """

    size: float
    seed: int
    cotangents: bool = False

    def of(self, call: Call, dtype: np.dtype, number: int) -> Call:
        """The call, disturbed; another `number` gives other factors."""
        fields = {"forward": forward_kernel, "reverse": reverse_kernel}.get(call.name)
        if fields is None or (self.cotangents and fields is forward_kernel):
            return call
        jobs, size = call.jobs.copy(), np.array([self.size], dtype)
        jobs[:, fields.DISTURBANCE] = size.ctypes.data
        jobs[:, fields.SEED] = (self.seed << 52) + (number << 28)
        # A line that goes back disturbs its cotangent in place, all of which a product's other members read.
        group = None if fields is reverse_kernel else call.group
        return replace(call, jobs=jobs, keeps=(*call.keeps, size), group=group)


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Where a forward recurrence can restart: the `states` by name, (batch, size) or one for all samples, at a `step`.

    A restored run has the bits of the run it left, except under a `Disturbance`, whose factors go by place.
    """

    step: int
    states: Arrays


class Trace:
    """Values, cotangents and sums of one plan; steps count from 0, and those from `origin` on are held.

    `params[name] (*shape)`, `inputs[name] (T, batch, *shape)` and `state[name]`, `(batch, *shape)` or `(*shape)`, are
    read, never written. `rounding` makes the reverse pass add up absolute contributions (see
    `bpcli.kernels.elementwise`). `room` is for so many more numbers, which stand behind the trace's own. With a
    `disturbance` all passes simulate rounding.
    """

    def __init__(
        self,
        plan: Plan,
        dtype: np.dtype,
        arrays: tuple[Arrays, Arrays, Arrays],
        rounding: bool = False,
        room: int = 0,
        disturbance: Disturbance | None = None,
    ) -> None:
        single_threaded()
        params, inputs, self._state = arrays
        self.plan, self.dtype, self.rounding, self.origin = plan, dtype, rounding, 0
        self._disturbance, self._disturbed_calls = disturbance, 0
        self.schedule = schedule_of(plan, dtype, rounding)
        self._slices = self.schedule.slices
        self._views = MEMORY.acquire(self.schedule, self.dtype, room)
        views, self._address = self._views, self._views.address
        self.V, self.C, self.F, self.room = views.V, views.C, views.F, views.room
        self.clear()
        self.set_inputs(inputs)
        for place, number in self._slices.constants:
            self.V[place] = number
        self.set_params(params)

    def set_params(self, params: Arrays) -> None:
        """Other parameters for the passes from here on; what the trace holds of earlier steps stays as it is."""
        for name, rows in self._views.params:
            rows[...] = params[name]
        self.run(self.schedule.static_forward)

    def set_inputs(self, inputs: Arrays) -> None:
        """Other inputs `(T, batch, *shape)` for the steps from 0 on."""
        self.inputs = {n: inputs[name].reshape(-1, size) for n, name, _, size in self._slices.inputs}
        self._loaded = (0, 0)

    def run(self, calls: Sequence[Call]) -> None:
        """Run kernels on the trace's numbers."""
        for call in calls:
            if self._disturbance is not None:
                call = self._disturbance.of(call, self.dtype, self._disturbed_calls)
                self._disturbed_calls += 1
            call.run(self.V, self._address)

    def disturbed(self, change: Callable[[Array], None] | None) -> AbstractContextManager[None]:
        """A context in which `change` has changed the values, if given, except for inputs, which are loaded again."""
        return self._disturbed(change) if change else nullcontext()

    @contextmanager
    def _disturbed(self, change: Callable[[Array], None]) -> Iterator[None]:
        values = self.V.copy()
        change(self.V)
        self._loaded = (0, 0)
        yield
        self.V[:] = values
        self._loaded = (0, 0)

    def clear(self) -> None:
        """Forget the gradients that have added up so far."""
        for rows in self._views.sums:
            rows[:] = 0

    def value(self, node: int, entries: int) -> Array:
        """The first `entries` numbers stored for a node: to read, as they may be copies."""
        base, apart = self.plan.values.table[node, [BASE, APART]]
        if apart == 0:
            return self.V[base : base + entries]
        rows, columns = self.plan.graph.nodes[node].shape
        return self.V[base : base + rows * apart].reshape(rows, apart)[:, :columns].ravel()[:entries]

    def start(self) -> None:
        """Put the state before step 0 in place."""
        self.restore(Snapshot(0, self._state))

    def snapshot(self, step: int) -> Snapshot:
        """A copy of the states that enter `step`, a step of the window whose predecessors have run, or its end."""
        graph, table, states = self.plan.graph, self.plan.values.table, {}
        for name, n in graph.previous.items():
            size, start = graph.nodes[n].size, table[n, BASE] + (step - self.origin) * table[n, STEP]
            states[name] = self.V[start : start + self.plan.extent.batch * size].reshape(-1, size).copy()
        return Snapshot(step, states)

    def moved_on(self) -> Snapshot:
        """The states after the first step of the window, to start from as if nothing had been before."""
        return Snapshot(0, self.snapshot(self.origin + 1).states)

    def restore(self, snapshot: Snapshot) -> None:
        """Restart before a snapshot's step: the window begins there, and what it held is forgotten."""
        self.origin = snapshot.step
        for name, rows in self._views.states:
            rows[:] = snapshot.states[name].reshape(-1, rows.shape[1])

    def forward(self, first: int, last: int) -> None:
        """Steps `first` to `last`, at most a chunk of them; they must lie in the window."""
        self._load_inputs(first, last)
        self.run(self.schedule.forward((first, last, self.origin)))

    def chunks(self, steps: int) -> Iterator[tuple[int, int]]:
        """Start, and run that many steps forwards, which the window must hold; yield (first, last) after each chunk."""
        self.start()
        for first in range(0, steps, self.plan.extent.chunk):
            last = min(steps, first + self.plan.extent.chunk)
            self.forward(first, last)
            yield first, last

    def load(self, first: int, last: int) -> None:
        """Load what the reverse pass of some steps, at most a chunk of them, reads."""
        self._load_inputs(first, last)
        if self.rounding:
            np.abs(self.V, out=self.F)

    def _load_inputs(self, first: int, last: int) -> None:
        if self._loaded == (first, last):
            return
        self._loaded = (first, last)
        for n, rows, start, stop in self._over(first, last).inputs:
            rows[:] = self.inputs[n][start:stop]

    def losses(self, first: int, last: int) -> NDArray[np.float64]:
        """The loss node's values (steps, batch) of the chunk of steps that was just run; they hold until the next."""
        losses = self._over(first, last).losses
        if losses is None:
            shape = last - first, self.plan.extent.batch
            return np.full(shape, self.value(self.plan.graph.loss, 1)[0], np.float64)
        return losses.astype(np.float64, copy=False)

    def reverse(
        self, first: int, last: int, weights: Array, fresh: bool = False, later: Mapping[int, Array] | None = None
    ) -> None:
        """Steps `last - 1` down to `first`, at most a chunk of them; gradients add up until `finish`.

        `weights (steps, batch)` are the losses' cotangents; the state's cotangent after the last step is zero where
        `fresh`, else what the call before left at its first step. Where steps are taken apart (see `Extent`), `later`
        has for new states the cotangents `(steps, batch, size)` that later steps bring, if any.
        """
        self.load(first, last)
        if later is None:
            self._carry(first, last, fresh)
        else:
            self._bring(last - first, later)
        self._seed(first, weights)
        self.run(self.schedule.reverse((first, last, self.origin)))

    def _carry(self, first: int, last: int, fresh: bool) -> None:
        """The states' cotangents after the last step: those before the first step of the later chunk, or zero."""
        for after, entered, before in self._over(first, last).carried:
            after[:] = 0 if fresh else entered
            if not self.plan.extent.stepwise:
                before[:] = 0

    def _bring(self, steps: int, later: Mapping[int, Array]) -> None:
        """The new states' cotangents from `later`; those of the previous states begin at zero."""
        graph = self.plan.graph
        for name, new in graph.new.items():
            entries = steps * self.plan.extent.batch * graph.nodes[new].size
            brought = later[new].ravel() if new in later else 0
            for node, values in ((graph.previous[name], 0), (new, brought)):
                base = self.plan.cotangents.table[node, BASE]
                self.C[base : base + entries] = values

    def _seed(self, first: int, weights: Array) -> None:
        views, loss = self._over(first, first + len(weights)), self.plan.graph.loss
        if views.seeds is not None:
            views.seeds[:] = weights
        elif views.losses is None and loss in self.plan.reverse.touched:
            self.C[self.plan.cotangents.table[loss, BASE]] += weights.sum()

    def _over(self, first: int, last: int) -> SpanViews:
        return self._views.over((first, last, self.origin))

    def reverse_job(self, code: Jobs, places: Jobs, cplaces: Jobs, C: Array) -> Jobs:
        """A job of the reverse kernel on this trace's values, and cotangents `C`, but for lines, steps and rows."""
        job = reverse_job(code, self.schedule.numbers, places, cplaces, self.rounding)
        job[reverse_kernel.LENGTH_V], job[reverse_kernel.FACTORS] = self.V.size, self.schedule.factors
        job[reverse_kernel.COTANGENTS] = (C.ctypes.data - self._address) // C.itemsize
        job[reverse_kernel.LENGTH_C] = C.size
        return job

    def finish(self, extra: Sequence[tuple[int, Array]] = ()) -> dict[int, Array]:
        """Add up the lanes (and `extra` sums of static nodes), take the static phase backwards; gradients by leaf."""
        for total, others in self._views.lanes:
            for share in others:
                total += share
        for n, values in extra:
            base = self.plan.cotangents.table[n, BASE]
            self.C[base : base + values.size] += values
        if self.rounding:
            np.abs(self.V, out=self.F)
        self.run(self.schedule.static_reverse)
        leaves = self._views.leaves
        return {n: np.zeros(entries, self.dtype) if part is None else part.copy() for n, part, entries in leaves}

    def take_window(self, n: int, steps: int) -> Array:
        """An input's cotangents (steps, batch, size) of the window so far; they are set to zero."""
        size, base = self.plan.graph.nodes[n].size, self.plan.cotangents.table[n, BASE]
        rows = self.C[base : base + steps * self.plan.extent.batch * size] if base >= 0 else np.zeros(0, self.dtype)
        taken = rows.copy() if base >= 0 else np.zeros(steps * self.plan.extent.batch * size, self.dtype)
        rows[:] = 0
        return taken.reshape(steps, self.plan.extent.batch, size)

    def initial(self, name: str) -> Array:
        """The cotangent (batch, size) of the state before the first step of the chunk last taken backwards."""
        node = self.plan.graph.nodes[self.plan.graph.previous[name]]
        base = self.plan.cotangents.table[node.index, BASE]
        return self.C[base : base + self.plan.extent.batch * node.size].reshape(-1, node.size).copy()

    def close(self) -> None:
        """Release the memory to the next trace; nothing can be read any more."""
        MEMORY.release(self._views)
        del self._views, self.V, self.C, self.F, self.room

    def slide(self, steps: int) -> None:
        """Drop the first `steps` steps of the window; the rest moves to its front."""
        table, graph = self.plan.values.table, self.plan.graph
        owners = set(range(len(graph.nodes))) - set(self.plan.forward.alias) - set(graph.new.values())
        for n in owners:
            if table[n, EPOCH] == WINDOW:
                held = self.plan.extent.window + (graph.nodes[n].op == "previous")
                rows = self.V[table[n, BASE] : table[n, BASE] + held * table[n, STEP]]
                kept = rows[steps * table[n, STEP] :]
                rows[: kept.size] = kept  # they overlap; NumPy moves one dimension in place, without a copy
        self.origin += steps
