"""Online methods in plain NumPy: each is a rule over the local derivatives of a step, and its definition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from bpcli.graph.nodes import Graph, Phase
from bpcli.methods.base import Cost, Definition, Gradient, OnlineRule
from bpcli.problem.definition import Array, Problem, Setup, Tensor
from bpcli.problem.initial import generator
from bpcli.runtime.forward_mode import online_plan
from bpcli.runtime.local_derivatives import LocalSteps, influence_layout
from bpcli.tape.plan import phase_flops


@dataclass(frozen=True)
class Online:
    """A method given by its rule.

    `defined(T, options)` is what the rule is meant to compute; `flops(N, P)` what it does with the local derivatives of
    a step and sample, `entries(N, P)` the numbers that it holds of a sample.
    """

    name: str
    summary: str
    tags: frozenset[str]
    Options: type[Any]
    rule: OnlineRule[Any]
    defined: Callable[[int, Any], Definition]
    flops: Callable[[int, int], float]
    entries: Callable[[int, int], int]

    def refusal(self, graph: Graph) -> str | None:
        """It needs a state."""
        return None if graph.recurrent else "there is no state to have an influence on; `backprop` applies"

    def definition(self, setup: Setup, options: Any) -> Definition:
        """See `Method`."""
        return self.defined(setup.T, options)

    def cost(self, setup: Setup, options: Any) -> Cost:
        """The rule's own, and per step and sample N reverse passes of a step for J and M̄, one for q."""
        plan, layout = online_plan(setup, False), influence_layout(setup)
        once = sum(phase_flops(setup.graph, phase) for phase in Phase if phase is not Phase.STATIC)
        step = phase_flops(setup.graph, Phase.RECURRENT) + phase_flops(setup.graph, Phase.INPUT)
        flops = setup.T * setup.batch * (plan.size * step + 3 * once + self.flops(layout.N, layout.P))
        results = sum(int(np.prod(x.shape)) for x in setup.wrt)
        held = plan.entries + setup.batch * self.entries(layout.N, layout.P) + 2 * results
        return Cost(flops, held * setup.dtype.itemsize, setup.T)

    def gradient(self, problem: Problem, options: Any) -> Gradient:
        """The sum over steps of what the rule credits, from the first step to the last."""
        setup, steps = problem.setup, LocalSteps(problem)
        rng = generator(setup.spec.data.seed, "method", self.name)
        influence = np.zeros((setup.batch, steps.layout.P), setup.dtype)
        direct = {x.name: np.zeros(x.shape, setup.dtype) for x in setup.wrt if x.kind != "state"}
        loss, state = 0.0, self.rule.start(setup, options, rng)
        with np.errstate(all="ignore"):  # what is not finite is for the check to tell
            for local in steps.since(0):
                state = self.rule.step(state, local)
                found = self.rule.credit(state, local)
                influence += found.influence
                for x in setup.wrt:
                    if x.name in found.direct:
                        _at(direct[x.name], x, local.t)[...] += found.direct[x.name]
                loss += float((local.losses * local.weights).sum())
            arrays = steps.gradient(influence, direct)
        steps.close()
        return Gradient(loss, arrays)


def _at(total: Array, x: Tensor, t: int) -> Array:
    """The part of a tensor's gradient that step t has a share in."""
    return total[t] if x.kind == "input" else total
