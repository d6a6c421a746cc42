"""Batched windows of truncated BPTT, which given the forward pass do not depend on each other.

Window w takes the cotangent λ_w of the state back from its last step, lag by lag: λ_w(s-1) = J(s)ᵀ λ_w(s), and what its
own losses add. The windows of a block are rows of one product, each at its own step. A step's parameter gradient is
linear in the cotangent of the state after it, so it is taken once at the end, for Σ_w λ_w(s), with all steps as rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from bpcli.graph.nodes import Graph, Phase
from bpcli.kernels import reverse as kernel
from bpcli.runtime.jobs import Call, cut
from bpcli.runtime.trace import Array, Trace
from bpcli.tape.instructions import BASE, OUTER, STEP, Reverse
from bpcli.tape.layout import Allocator, Places, settle
from bpcli.tape.lowering import active_nodes, fuse, lower_reverse
from bpcli.tape.plan import Plan, make_plan, phase_flops

BLOCK_ROWS = 64
"""Windows × samples in a block: enough rows for fast products, few enough to hold not many more steps."""
PART_ROWS = 32
"""Least rows of a thread's part of a lag."""
PART_FLOPS = 4e6
"""Least flops of a thread's part: the work of a lag is small, and threads synchronise after each."""


@dataclass(frozen=True, eq=False)
class BatchedWindowsPlan:
    """Blocks of `count` windows of `k2` steps whose ends are `k1` steps apart; `held` steps are held."""

    graph: Graph
    leaves: frozenset[int]
    batch: int
    k1: int
    k2: int
    count: int
    held: int

    @cached_property
    def with_loss(self) -> Reverse:
        """The reverse program of a step from its loss and the state after it to the state before it."""
        return self._program([self.graph.loss])

    @cached_property
    def without_loss(self) -> Reverse:
        """The same without the loss."""
        return self._program([])

    def _program(self, seeds: list[int]) -> Reverse:
        active = active_nodes(self.graph, self.graph.previous.values())
        seeds = [n for n in (*seeds, *self.graph.new.values()) if n in active]
        return lower_reverse(self.graph, fuse(self.graph), active, seeds)

    @cached_property
    def trace(self) -> Plan:
        """The plan of the forward pass, and of the reverse pass with all steps as rows."""
        reads = self.with_loss.reads | self.without_loss.reads
        seeds = [self.graph.loss, *self.graph.new.values()]
        return make_plan(self.graph, self.leaves, self.batch, self.held, seeds, reads=reads, apart=True)

    @cached_property
    def places(self) -> tuple[Places, Places]:
        """Cotangents (window, sample, entry) of the two programs, in one array; states have the same places in both."""
        states = [*self.graph.previous.values(), *self.graph.new.values()]
        found = []
        for program in (self.with_loss, self.without_loss):
            allocator = Allocator(len(self.graph.nodes))
            for n in (*states, *sorted(program.touched - set(program.alias) - set(states))):
                size = self.graph.nodes[n].size
                base = allocator.take(self.count * self.batch * size)
                allocator.place(n, base, (0, self.batch * size, size, 0))
            found.append(allocator.finish(program.alias))
        return found[0], found[1]

    @property
    def entries(self) -> int:
        """Numbers held: the trace, and a step's cotangents of a block."""
        return self.trace.entries + max(p.size for p in self.places)

    @property
    def sums(self) -> int:
        """Numbers held while a block goes back: the states' cotangents summed over windows."""
        return self.held * self.batch * sum(self.graph.nodes[n].size for n in self.graph.new.values())


class BatchedWindows:
    """The windows of one problem, a block at a time, on a trace that has run forwards to the block's end."""

    def __init__(self, plan: BatchedWindowsPlan, trace: Trace) -> None:
        self.plan, self.trace = plan, trace
        self.C = np.zeros(max(p.size for p in plan.places), trace.dtype)
        self._flops = phase_flops(plan.graph, Phase.RECURRENT)
        self.initial = {
            name: np.zeros((plan.batch, plan.graph.nodes[n].size)) for name, n in plan.graph.previous.items()
        }
        """The gradient of the initial states, from the windows that reach step 0."""

    def back(self, stop: int, count: int, losses: int, weights: NDArray[np.float64]) -> None:
        """Take `count` windows back, the first of which ends at step `stop`; each has its last `losses` losses.

        `weights (T, batch)` are the losses' cotangents.
        """
        plan, trace = self.plan, self.trace
        first, last = max(0, stop - plan.k2), stop + (count - 1) * plan.k1
        trace.load(first, last)
        self.places = settle(plan.trace.values.table, first, trace.origin)
        jobs = self._jobs(stop)
        states = [(n, self._rows(n), self._rows(plan.graph.previous[name])) for name, n in plan.graph.new.items()]
        later = {n: np.zeros((last - first, *new.shape[1:]), trace.dtype) for n, new, _ in states}
        for _, new, _ in states:
            new[:] = 0
        for lag in range(plan.k2):
            left = max(0, -((stop - 1 - lag) // plan.k1))  # the windows before this one have arrived at step 0
            if left >= count:
                break
            step = stop - 1 - lag + left * plan.k1
            for n, new, previous in states:
                if lag:
                    new[left:count] = previous[left:count]
                    later[n][step - first :: plan.k1][: count - left] += new[left:count]
                previous[left:count] = 0
            if lag < losses:
                self._seed_losses(weights[step :: plan.k1], left, count)
            self._step(jobs[lag >= losses], left, count)
            if step == 0:
                for name, n in plan.graph.previous.items():
                    self.initial[name] += self._rows(n)[left]
            self.places[:, BASE] -= self._strides
        part = weights[first:last].copy()
        part[: max(0, stop - losses - first)] = 0
        trace.reverse(first, last, part, later=later)

    def _rows(self, node: int) -> Array:
        """A node's cotangents (window, sample, entry)."""
        plan, base = self.plan, self.plan.places[0].table[node, BASE]
        size = plan.graph.nodes[node].size
        return self.C[base : base + plan.count * plan.batch * size].reshape(plan.count, plan.batch, size)

    def _jobs(self, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The job of each program; the places say where the values of the windows' last steps stand."""
        plan, trace, found = self.plan, self.trace, []
        self.places[:, BASE] += (stop - 1) * self.places[:, STEP]
        self._strides = self.places[:, STEP].copy()
        self.places[:, OUTER], self.places[:, STEP] = plan.k1 * self._strides, 0
        for program, places in zip((plan.with_loss, plan.without_loss), plan.places, strict=True):
            job = trace.reverse_job(program.code, self.places, places.table, self.C)
            job[kernel.FIRST], job[kernel.LAST] = program.bounds[3 - Phase.OUTPUT], program.bounds[4 - Phase.RECURRENT]
            job[kernel.STEP1], job[kernel.I1] = 1, plan.batch
            found.append(job)
        return found[0], found[1]

    def _seed_losses(self, weights: NDArray[np.float64], left: int, count: int) -> None:
        if self.plan.graph.loss in self.plan.with_loss.touched:
            self._rows(self.plan.graph.loss)[left:count, :, 0] = weights[: count - left]

    def _step(self, job: NDArray[np.int64], left: int, count: int) -> None:
        """One step back for the windows `left` to `count`."""
        rows = (count - left) * self.plan.batch
        parts = max(1, min(count - left, rows // PART_ROWS, int(self._flops * rows / PART_FLOPS)))
        self.trace.run([Call("reverse", cut(job, kernel.O0, left, count, parts))])
