"""Real-time recurrent learning (Williams & Zipser 1989): M(t) = J(t) M(t-1) + M̄(t), g = Σ_t q(t) M(t-1) + ∂l(t)/∂w.

M (N, P) is the influence da(t)/dw of the parameters that reach a state; J = ∂a(t)/∂a(t-1), M̄ = ∂a(t)/∂w at fixed
a(t-1). The loss is differentiated through its own step: q = ∂l(t)/∂a(t-1), and ∂l(t)/∂w at fixed a(t-1). Hence M is not
needed after the last step, and the step before it needs only q M = (q J) M + q M̄, unless it ends a chunk. Exact while
the parameters are constant; memory does not grow with T.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import ClassVar

import numpy as np

from bpcli.graph.nodes import Graph, Phase
from bpcli.methods.base import Cost, Exact, Gradient, NoOptions
from bpcli.problem.definition import Array, Problem, Setup, Tensor
from bpcli.runtime.forward_mode import RtrlRun, rtrl_plan
from bpcli.runtime.local_derivatives import scattered
from bpcli.runtime.reverse_mode import loss_weights
from bpcli.tape.plan import phase_flops


class RTRL:
    """Exact online gradients by compiled kernels."""

    name: ClassVar[str] = "rtrl"
    summary: ClassVar[str] = "influence matrix forwards, M <- J M + Mbar; memory does not grow with T"
    tags: ClassVar[frozenset[str]] = frozenset({"default", "exact", "online", "recurrent"})
    Options: ClassVar[type[NoOptions]] = NoOptions

    def refusal(self, graph: Graph) -> str | None:
        """The graph needs a state."""
        return None if graph.recurrent else "the network has no state; `backprop` applies"

    def definition(self, setup: Setup, options: NoOptions) -> Exact:
        """The total derivative."""
        return Exact()

    def cost(self, setup: Setup, options: NoOptions) -> Cost:
        """Per step and sample 2 N² P for J M, N single-step reverse passes for J and M̄, 2 N P for q M.

        J M leaves out structural zeros of M, and the last steps need none. All memory, mostly the influence, is read
        and written once per chunk of steps.
        """
        plan = rtrl_plan(setup)
        once = sum(phase_flops(setup.graph, phase) for phase in Phase if phase is not Phase.STATIC)
        step = phase_flops(setup.graph, Phase.RECURRENT) + phase_flops(setup.graph, Phase.INPUT)
        flops = plan.flops + setup.T * setup.batch * (plan.size * step + 3 * once)
        results = sum(int(np.prod(x.shape)) for x in setup.wrt)
        held = (plan.entries + results) * setup.dtype.itemsize
        return Cost(flops, held, setup.T, 2.0 * held * -(-setup.T // plan.chunk))

    @np.errstate(all="ignore")  # the check reports values that are not finite
    def gradient(self, problem: Problem, options: NoOptions) -> Gradient:
        """Run forwards, a chunk of steps at a time."""
        setup, plan = problem.setup, rtrl_plan(problem.setup)
        run = RtrlRun(plan, setup.dtype, problem.arrays)
        trace = run.trace
        weights = _weights(setup)
        direct = {n: list[Array]() for n in plan.leaves if setup.graph.nodes[n].op == "input"}
        trace.start()
        loss = 0.0
        for first in range(0, setup.T, plan.chunk):
            last = min(setup.T, first + plan.chunk)
            trace.forward(first, last)
            loss += float((trace.losses(first, last) * weights[first:last]).sum())
            trace.reverse(first, last, weights[first:last], later={})
            for n, parts in direct.items():
                parts.append(trace.take_window(n, last - first))
            run.advance(first, last)
            if last < setup.T:
                trace.slide(last - first)
        arrays = collect_gradient(setup, run, direct)
        run.close()
        return Gradient(loss, arrays)

    def step_gradients(self, problem: Problem, options: NoOptions) -> Iterator[Gradient]:
        """Run forwards a step at a time, and read off each step's own gradient."""
        setup, plan = problem.setup, rtrl_plan(problem.setup)
        run, weights = RtrlRun(plan, setup.dtype, problem.arrays), _weights(setup)
        trace, inputs = run.trace, [n for n in plan.leaves if setup.graph.nodes[n].op == "input"]
        trace.start()
        for t in range(setup.T):
            with np.errstate(all="ignore"):
                trace.forward(t, t + 1)
                loss = float((trace.losses(t, t + 1) * weights[t : t + 1]).sum())
                trace.clear()
                run.G[:] = 0
                trace.reverse(t, t + 1, weights[t : t + 1], later={})
                direct = {n: _alone(trace.take_window(n, 1), t, setup.T) for n in inputs}
                run.advance(t, t + 1)
                arrays = collect_gradient(setup, run, direct)
            yield Gradient(loss, arrays)
            if t + 1 < setup.T:
                trace.slide(1)
        run.close()


def _alone(rows: Array, t: int, T: int) -> list[Array]:
    """Rows of step t among zeros."""
    found = np.zeros((T, *rows.shape[1:]), rows.dtype)
    found[t] = rows[0]
    return [found]


_weights = lru_cache(maxsize=8)(loss_weights)
"""Cached for repeated gradients; read-only."""


def collect_gradient(setup: Setup, run: RtrlRun, direct: Mapping[int, list[Array]]) -> dict[str, Array]:
    """The gradient by tensor, in the tensor's shape: the part through the influence and the direct part."""
    plan, graph, total = run.plan, run.plan.graph, run.G.sum(axis=0)
    extra = []
    for span in plan.column_spans:
        if graph.nodes[span.node].phase is Phase.STATIC:
            extra.append((span.node, scattered(plan, span, total[span.start : span.start + span.columns])))
    leaves = run.trace.finish(extra)
    return {x.name: _shaped(setup, x, leaves, run, direct) for x in setup.wrt}


def _shaped(
    setup: Setup, x: Tensor, leaves: dict[int, Array], run: RtrlRun, direct: Mapping[int, list[Array]]
) -> Array:
    """The gradient of one tensor."""
    graph = setup.graph
    if x.kind == "state":
        rows = run.gradient(graph.previous[x.name])
        values = rows.sum(axis=0) if x.name in setup.shared else rows.copy()
    elif x.name not in graph.leaf:
        values = np.zeros(x.shape, setup.dtype)
    elif x.kind == "input":
        n = graph.leaf[x.name]
        values = np.concatenate(direct[n])
        if n in run.plan.step.touched:
            values = values + run.gradient(n).reshape(setup.batch, setup.T, -1).swapaxes(0, 1)
    else:
        values = leaves[graph.leaf[x.name]]
        if x.pattern is not None:
            values[np.setdiff1d(np.arange(values.size), x.pattern)] = 0
    return np.asarray(values.reshape(x.shape), order="C")


PER_STEP = ("2 N² P + 2 N F", "N P")
METHOD = RTRL()
