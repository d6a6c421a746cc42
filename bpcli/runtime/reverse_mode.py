"""Reverse mode over windows of the unrolled graph: BPTT is one window, truncated BPTT is many.

A window (start, loss_from, stop) takes the losses of steps loss_from..stop back to step start. The trace holds the
steps of the longest window, and some more so that it slides seldom.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from bpcli.graph.nodes import Phase
from bpcli.problem.definition import Array, Problem, Setup
from bpcli.runtime.batched_windows import BLOCK_ROWS, BatchedWindows, BatchedWindowsPlan
from bpcli.runtime.trace import Disturbance, Trace
from bpcli.tape.plan import Plan, chunk_steps, make_plan, phase_flops


def memory_traffic(unrolled: Unrolled) -> float:
    """Bytes that a gradient reads and writes, from sizes alone.

    A step's part of the trace is written forwards and read backwards, and every step of the time loop reads its
    matrices anew, once for each shard of the batch. Batched windows go back as one.
    """
    T, plan = unrolled.setup.T, unrolled.plan
    blocks = list(unrolled.blocks()) if unrolled.batched else [[window] for window in unrolled.windows]
    spans = sum(block[-1].stop - block[0].start for block in blocks)
    lags = sum(max(w.stop - w.start for w in block) for block in blocks)
    held = plan.entries * (T + spans) / plan.extent.window
    read = _loop_matrices(unrolled) * plan.shards * (T + lags)
    return (held + read) * unrolled.setup.dtype.itemsize


def _loop_matrices(unrolled: Unrolled) -> int:
    """Entries of the matrices that the time loop multiplies by: where it takes whole steps, those of all phases."""
    graph, stepwise = unrolled.setup.graph, unrolled.plan.extent.stepwise
    phases = set(Phase) - {Phase.STATIC} if stepwise else {Phase.RECURRENT}
    products = [n for n in graph.nodes if n.op == "matmul" and n.phase in phases]
    return sum(graph.nodes[m].size for m in {n.args[0] for n in products}) if graph.recurrent else 0


Disturb = Callable[[Array], None]
SLACK = 32
"""Steps held beyond the longest window, at most as many as that has, so that the trace slides seldom."""


@dataclass(frozen=True)
class Window:
    """Part of what a method computes.

    The losses of steps `loss_from <= t < stop`, differentiated through steps `s >= start`. The state that enters step
    `start` counts as a constant, unless `start` is 0. Steps count from 0.
    """

    start: int
    loss_from: int
    stop: int


def staircase(T: int, k1: int, k2: int) -> tuple[Window, ...]:
    """The windows of TBPTT(k1, k2).

    At steps k1, 2·k1, … and at T the losses since the last one go back through k2 steps. Counting steps from 1,
    ∂l(t)/∂θ_s is taken in when s <= t and s > min(T, k1·⌈t/k1⌉) − k2.
    """
    stops = sorted({*range(k1, T, k1), T})
    return tuple(Window(max(0, stop - k2), (stop - 1) // k1 * k1, stop) for stop in stops)


def merged(windows: Sequence[Window]) -> list[Window]:
    """Merge windows with one start if the losses of one follow on those of the other; keep the others."""
    joined: list[Window] = []
    ends: dict[tuple[int, int], int] = {}
    for w in windows:
        at = ends.pop((w.start, w.loss_from), len(joined))
        if at < len(joined):
            joined[at] = Window(w.start, joined[at].loss_from, w.stop)
        else:
            joined.append(w)
        ends[w.start, w.stop] = at
    return joined


def loss_weights(setup: Setup) -> NDArray[np.float64]:
    """∂L/∂l(t, b), (T, batch), by `over_time` and `over_batch`."""
    objective = setup.spec.objective
    steps = np.ones(setup.T)
    if setup.graph.recurrent and objective.over_time == "mean":
        steps /= setup.T
    elif setup.graph.recurrent and objective.over_time == "last":
        steps[:-1] = 0
    share = 1 / setup.batch if objective.over_batch == "mean" else 1.0
    return np.repeat(steps[:, None] * share, setup.batch, axis=1)


@lru_cache(maxsize=8)
def unrolled(setup: Setup, windows: tuple[Window, ...], singly: bool = False) -> Unrolled:
    """The `Unrolled` of a setup and windows; the plan of a gradient that is taken again is kept."""
    return Unrolled(setup, windows, singly)


@dataclass(frozen=True, eq=False)
class Unrolled:
    """The gradient of a setup restricted to windows, in ascending order of `stop`; sizes are known before it runs.

    Short windows are batched unless it is to give the gradient of each (`singly`).
    """

    setup: Setup
    windows: Sequence[Window]
    singly: bool = False

    @cached_property
    def batched(self) -> BatchedWindowsPlan | None:
        """The plan of batched windows: None unless there are several short ones, evenly spaced, with few samples."""
        setup, longest = self.setup, max(w.stop - w.start for w in self.windows)
        apart = self.windows[0].stop
        count = min(len(self.windows), -(-BLOCK_ROWS // setup.batch))
        held = min(setup.T, longest + (count - 1) * apart)
        if any(x.kind == "input" for x in setup.wrt):
            held = setup.T
        if (
            self.singly
            or count == 1
            or held > chunk_steps(held, setup.batch)
            or self.windows != staircase(setup.T, apart, longest)
        ):
            return None
        return BatchedWindowsPlan(setup.graph, frozenset(self._leaves), setup.batch, apart, longest, count, held)

    @cached_property
    def _weights(self) -> NDArray[np.float64]:
        return loss_weights(self.setup)

    @property
    def _leaves(self) -> list[int]:
        graph = self.setup.graph
        return [graph.leaf[x.name] for x in self.setup.wrt if x.kind != "state" and x.name in graph.leaf]

    @cached_property
    def plan(self) -> Plan:
        """Tapes and layout."""
        if self.batched:
            return self.batched.trace
        setup, graph = self.setup, self.setup.graph
        longest = max(w.stop - w.start for w in self.windows)
        held = min(setup.T, longest + min(longest, SLACK))
        if len(self.windows) == 1 or any(x.kind == "input" for x in setup.wrt):
            held = setup.T
        return make_plan(graph, self._leaves, setup.batch, held, [graph.loss, *graph.new.values()])

    @property
    def bytes(self) -> int:
        """Bytes held while it runs: values, cotangents, and the gradient itself, which is collected at the end."""
        last = sum(int(np.prod(x.shape)) for x in self.setup.wrt)
        entries = self.plan.entries
        if self.batched:
            entries, last = self.batched.entries, max(last, self.batched.sums)
        return (entries + last) * self.setup.dtype.itemsize

    @cached_property
    def flops(self) -> float:
        """Floating-point operations: a step backwards does the products of a step forwards twice.

        Batched windows share all of a block but the way from state to state, which is one product for all of them.
        """
        once = sum(phase_flops(self.setup.graph, phase) for phase in Phase if phase is not Phase.STATIC)
        back = 2.0 * once * sum(w.stop - w.start for w in self.windows)
        if self.batched:
            back = 2.0 * once * sum(part[-1].stop - part[0].start for part in self.blocks())
            back += phase_flops(self.setup.graph, Phase.RECURRENT) * sum(w.stop - w.start for w in self.windows)
        return self.setup.batch * (once * self.setup.T + back) + 3 * phase_flops(self.setup.graph, Phase.STATIC)

    def blocks(self) -> Iterator[Sequence[Window]]:
        """The blocks of batched windows; the last window by itself where it has fewer losses."""
        plan = self.batched
        regular = self.setup.T // plan.k1 if plan else 0
        for first in range(0, regular, plan.count if plan else 1):
            yield self.windows[first : min(first + plan.count, regular)] if plan else ()
        yield from ([window] for window in self.windows[regular:])

    @np.errstate(all="ignore")  # the check reports values that are not finite
    def gradient(
        self,
        problem: Problem,
        rounding: bool = False,
        disturb: Disturb | None = None,
        seed: float = 1.0,
        disturbance: Disturbance | None = None,
    ) -> tuple[float, dict[str, Array]]:
        """The whole loss, and the gradient by name; with `rounding`, sums of absolute contributions instead.

        `disturb` is given all values of the forward pass, to change them in place before each reverse pass, which
        starts from `seed` times the weights of the losses. `disturbance` simulates rounding in all passes.
        """
        trace = Trace(self.plan, problem.setup.dtype, problem.arrays, rounding, disturbance=disturbance)
        weights = self._weights
        initial = {
            x.name: np.zeros((self.setup.batch, self._size(x.name))) for x in self.setup.wrt if x.kind == "state"
        }
        trace.start()
        if self.batched:
            return self._batched_gradient(trace, weights, self.batched, disturb, seed)
        loss, done = 0.0, 0
        for window in self.windows:
            loss += self._advance(trace, done, window, weights)
            done = window.stop
            with trace.disturbed(disturb):
                self._back(trace, window, weights * seed)
            if window.start == 0:
                for name in initial:
                    initial[name] += trace.initial(name)
        if done < self.setup.T:
            loss += self._advance(trace, done, Window(self.setup.T, self.setup.T, self.setup.T), weights)
        return loss, self._collect(trace, initial, disturb)

    @np.errstate(all="ignore")
    def gradients(self, problem: Problem) -> Iterator[tuple[float, dict[str, Array]]]:
        """The gradient of each window by itself, with the losses of the steps since the last one; needs `singly`."""
        trace, done = Trace(self.plan, problem.setup.dtype, problem.arrays), 0
        states = [x.name for x in self.setup.wrt if x.kind == "state"]
        trace.start()
        for window in self.windows:
            loss, done = self._advance(trace, done, window, self._weights), window.stop
            trace.clear()
            self._back(trace, window, self._weights)
            none = {name: np.zeros((self.setup.batch, self._size(name))) for name in states}
            initial = {name: trace.initial(name) for name in states} if window.start == 0 else none
            yield loss, collect(self.setup, trace.finish(), initial)
        trace.close()

    @np.errstate(all="ignore")  # the caller looks for values that are not finite
    def descend(self, problem: Problem, move: Callable[[int, dict[str, Array]], Mapping[str, Array]]) -> float:
        """The whole loss along parameters that move after every window.

        `move` takes the steps done and the gradient of the window's losses, and returns the parameters to go on with.
        The states of a window, and what else its steps left, are those of the parameters that they were taken with; the
        way back multiplies by the parameters as they are.
        """
        trace, weights = Trace(self.plan, problem.setup.dtype, problem.arrays), self._weights
        states = [x.name for x in self.setup.wrt if x.kind == "state"]
        loss, done = 0.0, 0
        trace.start()
        for window in self.windows:
            loss += self._advance(trace, done, window, weights)
            done = window.stop
            self._back(trace, window, weights)
            initial = {name: trace.initial(name) * (window.start == 0) for name in states}
            found = collect(self.setup, trace.finish(), initial)
            trace.clear()
            trace.set_params(move(done, found))
        trace.close()
        return loss

    def _batched_gradient(
        self, trace: Trace, weights: NDArray[np.float64], plan: BatchedWindowsPlan, disturb: Disturb | None, seed: float
    ) -> tuple[float, dict[str, Array]]:
        """The same, a block of windows at a time."""
        windows, loss, done = BatchedWindows(plan, trace), 0.0, 0
        for block in self.blocks():
            stop = block[-1].stop
            loss += self._advance(trace, done, Window(block[0].start, done, stop), weights)
            done = stop
            with trace.disturbed(disturb):
                windows.back(block[0].stop, len(block), block[0].stop - block[0].loss_from, weights * seed)
        return loss, self._collect(trace, windows.initial, disturb)

    def _size(self, state: str) -> int:
        return self.setup.graph.nodes[self.setup.graph.previous[state]].size

    def _advance(self, trace: Trace, done: int, window: Window, weights: NDArray[np.float64]) -> float:
        """Run forwards from `done` to the window's end, forgetting what lies before its start; the loss on the way."""
        loss, extent = 0.0, self.plan.extent
        while done < window.stop:
            room = trace.origin + extent.window - done
            if room == 0:
                trace.slide(min(window.start, done) - trace.origin)
                continue
            last = min(window.stop, done + min(room, extent.chunk))
            trace.forward(done, last)
            loss += float((trace.losses(done, last) * weights[done:last]).sum())
            done = last
        return loss

    def _back(self, trace: Trace, window: Window, weights: NDArray[np.float64]) -> None:
        last, most = window.stop, self.plan.extent.chunk
        while last > window.start:
            first = max(window.start, last - most)
            part = weights[first:last]
            if first < window.loss_from:
                part = part.copy()
                part[: window.loss_from - first] = 0
            trace.reverse(first, last, part, fresh=last == window.stop)
            last = first

    def _collect(
        self, trace: Trace, initial: dict[str, NDArray[np.float64]], disturb: Disturb | None
    ) -> dict[str, Array]:
        """Gradients by name and in their shapes; nothing outside a pattern. The trace is closed."""
        with trace.disturbed(disturb):  # what is computed once goes back here
            leaves = trace.finish()
        trace.close()
        return collect(self.setup, leaves, initial)


def collect(setup: Setup, leaves: Mapping[int, Array], initial: Mapping[str, Array]) -> dict[str, Array]:
    """Gradients by name and in their shapes, nothing outside a pattern: from those of the leaves, and of `initial`
    states (batch, size)."""
    arrays = {}
    for x in setup.wrt:
        if x.kind == "state":
            flat = initial[x.name].sum(axis=0) if x.name in setup.shared else initial[x.name]
            flat = flat.astype(setup.dtype)
        elif x.name in setup.graph.leaf:
            flat = leaves[setup.graph.leaf[x.name]]
        else:
            flat = np.zeros(x.shape, setup.dtype)
        if x.pattern is not None:
            kept = np.zeros(flat.size, flat.dtype)
            kept[x.pattern] = flat.ravel()[x.pattern]
            flat = kept
        arrays[x.name] = flat.reshape(x.shape)
    return arrays
