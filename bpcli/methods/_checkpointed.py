"""BPTT from snapshots of the state: steps that are not held are taken again.

The T steps are cut into segments, counted from the end. A segment is *advanced* to get from a snapshot to a later one,
and *recorded* once, just before its reverse pass. Gradients have the bits of a `bptt` that works on as many steps at a
time as a segment has; `bptt` itself takes more at a time, and sums in another order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from bpcli.graph.nodes import Graph, Phase
from bpcli.methods.base import Cost, Exact, Gradient
from bpcli.problem.definition import Problem, Setup
from bpcli.runtime.reverse_mode import collect, loss_weights, unrolled
from bpcli.runtime.trace import Snapshot, Trace
from bpcli.tape.plan import Plan, make_plan, phase_flops

Action = tuple[Literal["save", "restore", "advance", "record"], int]
"""On the segment that a run stands before, or with `restore` on the one to go back to."""
Schedule = Callable[[int, Any], Iterator[Action]]


@dataclass(frozen=True)
class Counts:
    """Of a schedule, how many segments it advances, how often the first of them, and the most snapshots alive."""

    advances: int
    first: int
    snapshots: int


@dataclass(frozen=True, eq=False)
class Segments:
    """`count` segments of `steps` steps (the first may have fewer), and the plan of a trace that holds one."""

    count: int
    steps: int
    plan: Plan
    T: int

    def ends(self, k: int) -> tuple[int, int]:
        """The first step of segment k, and the one after its last."""
        last = self.T - (self.count - 1 - k) * self.steps
        return max(0, last - self.steps), last

    @property
    def chunk(self) -> int:
        """Steps worked on at a time."""
        return self.plan.extent.chunk


@lru_cache(maxsize=8)
def segments_of(setup: Setup, steps: int) -> Segments:
    """Segments of so many steps."""
    graph = setup.graph
    leaves = [graph.leaf[x.name] for x in setup.wrt if x.kind != "state" and x.name in graph.leaf]
    plan = make_plan(graph, leaves, setup.batch, steps, [graph.loss, *graph.new.values()])
    return Segments(-(-setup.T // steps), steps, plan, setup.T)


@dataclass(frozen=True)
class Checkpointed:
    """A method given by its `schedule(segments, options)`, and the steps in a segment, `steps(T, options)`.

    `counts(segments, options)` foretells the schedule, which may be too long to go through.
    `summary`, `tags` and `Options` are as in `Method`.
    """

    name: str
    summary: str
    Options: type[Any]
    schedule: Schedule
    counts: Callable[[int, Any], Counts]
    steps: Callable[[int, Any], int]
    tags: frozenset[str] = frozenset({"exact", "recurrent", "reverse"})

    def refusal(self, graph: Graph) -> str | None:
        """The graph needs a state."""
        return None if graph.recurrent else "there is no state to take a snapshot of; `backprop` applies"

    def definition(self, setup: Setup, options: Any) -> Exact:
        """The total derivative."""
        return Exact()

    def _segments(self, setup: Setup, options: Any) -> Segments:
        return segments_of(setup, max(1, min(setup.T, self.steps(setup.T, options))))

    def cost(self, setup: Setup, options: Any) -> Cost:
        """The advances beside the cost of `bptt`; memory for one segment, the snapshots, and the losses with
        their weights."""
        segments, exact = self._segments(setup, options), unrolled(setup, Exact().over(setup))
        counts, (first, last) = self.counts(segments.count, options), segments.ends(0)
        again = counts.advances * segments.steps - counts.first * (segments.steps - (last - first))
        once = sum(phase_flops(setup.graph, phase) for phase in Phase if phase is not Phase.STATIC)
        state = sum(setup.graph.nodes[n].size for n in setup.graph.previous.values())
        results = sum(int(np.prod(x.shape)) for x in setup.wrt)
        held = segments.plan.entries + counts.snapshots * setup.batch * state + results
        held_bytes = held * setup.dtype.itemsize + 16 * setup.T * setup.batch
        return Cost(exact.flops + setup.batch * once * again, held_bytes, setup.T + again)

    @np.errstate(all="ignore")  # the check reports values that are not finite
    def gradient(self, problem: Problem, options: Any) -> Gradient:
        """Follow the schedule."""
        segments = self._segments(problem.setup, options)
        run = _Run(problem, segments)
        for action, k in self.schedule(segments.count, options):
            getattr(run, action)(k)
        return run.finish()


class _Run:
    """A run over segments, which stands before one of them."""

    def __init__(self, problem: Problem, segments: Segments) -> None:
        setup = problem.setup
        self.setup, self.segments = setup, segments
        self.trace, self.weights = Trace(segments.plan, setup.dtype, problem.arrays), loss_weights(setup)
        self.losses = np.zeros((setup.T, setup.batch))
        self.saved = dict[int, Snapshot]()
        graph = setup.graph
        inputs = {graph.leaf[x.name]: x for x in setup.wrt if x.kind == "input" and x.name in graph.leaf}
        self.inputs = {n: np.zeros((setup.T, setup.batch, graph.nodes[n].size), setup.dtype) for n in inputs}
        self.trace.start()

    def save(self, k: int) -> None:
        """Take a snapshot before segment k."""
        self.saved[k] = self.trace.snapshot(self.segments.ends(k)[0])

    def restore(self, k: int) -> None:
        """Go back to the snapshot before segment k."""
        self.trace.restore(self.saved[k])

    def advance(self, k: int) -> None:
        """Go from before segment k to its end."""
        first, last = self.segments.ends(k)
        for _ in self._forward(first, last):
            pass
        self.trace.slide(last - first)

    def record(self, k: int) -> None:
        """Take segment k forwards and back; what is saved before it is dropped."""
        trace, (first, last) = self.trace, self.segments.ends(k)
        for start, stop in self._forward(first, last):
            self.losses[start:stop] = trace.losses(start, stop)
        stop = last
        while stop > first:
            start = max(first, stop - self.segments.chunk)
            trace.reverse(start, stop, self.weights[start:stop], fresh=stop == self.setup.T)
            stop = start
        for n, rows in self.inputs.items():
            rows[first:last] = trace.take_window(n, last - first)
        self.saved.pop(k, None)

    def _forward(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """Take steps forwards, a chunk at a time; yields each."""
        for start in range(first, last, self.segments.chunk):
            stop = min(last, start + self.segments.chunk)
            self.trace.forward(start, stop)
            yield start, stop

    def finish(self) -> Gradient:
        """The gradient; the trace is closed."""
        setup, trace, chunk = self.setup, self.trace, self.segments.chunk
        initial = {x.name: trace.initial(x.name).astype(np.float64) for x in setup.wrt if x.kind == "state"}
        leaves = trace.finish() | self.inputs
        trace.close()
        loss = 0.0
        for first in range(0, setup.T, chunk):  # in the order of `bptt`
            part = slice(first, min(setup.T, first + chunk))
            loss += float((self.losses[part] * self.weights[part]).sum())
        return Gradient(loss, collect(setup, leaves, initial))
