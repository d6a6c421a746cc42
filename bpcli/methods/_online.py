"""Online methods in plain NumPy: each is a rule over the local derivatives of a step, and its definition."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from bpcli.graph.nodes import Graph, Phase
from bpcli.methods.base import Cost, Definition, Gradient, OnlineRule, Recursion
from bpcli.problem.definition import Array, Problem, Setup, Tensor
from bpcli.problem.draw import generator
from bpcli.runtime.forward_mode import rtrl_plan
from bpcli.runtime.local_derivatives import LocalDerivatives, LocalSteps, influence_layout
from bpcli.tape.plan import phase_flops


class Steps(Protocol):
    """The local derivatives of all steps of a setup, by kernels or by measurement."""

    @property
    def setup(self) -> Setup:
        """What is differentiated; its dtype is that of the derivatives."""

    def since(self, start: int) -> Iterator[LocalDerivatives]:
        """Those of the steps from `start` on."""

    def gradient(self, influence: Array, direct: Mapping[str, Array]) -> dict[str, Array]:
        """The gradient by tensor, of what came through the influence, (batch, P), and of what losses owe directly."""


@np.errstate(all="ignore")  # what is not finite is for the check to tell
def follow(rule: OnlineRule[Any], steps: Steps, options: Any, draws: str) -> Gradient:
    """The sum over steps of what a rule credits, from the first step to the last.

    The rule's random numbers are those of a generator of its own, from the seed of the data and the name `draws`.
    """
    setup = steps.setup
    influence = np.zeros((setup.batch, influence_layout(setup).P), setup.dtype)
    direct = {x.name: np.zeros(x.shape, setup.dtype) for x in setup.wrt if x.kind != "state"}
    loss, state = 0.0, rule.start(setup, options, generator(setup.spec.data.seed, "method", draws))
    for local in steps.since(0):
        state = rule.step(state, local)
        found = rule.credit(state, local)
        influence += found.influence
        for x in setup.wrt:
            if x.name in found.direct:
                _at(direct[x.name], x, local.t)[...] += found.direct[x.name]
        loss += float((local.losses * local.weights).sum())
    return Gradient(loss, steps.gradient(influence, direct))


def _at(total: Array, x: Tensor, t: int) -> Array:
    """The part of a tensor's gradient that step t has a share in."""
    return total[t : t + 1] if x.kind == "input" else total


@dataclass(frozen=True)
class Online:
    """A method given by its rule.

    `defined(setup, options)` is the rule's definition; None: its own recursion. `flops(N, P)` are its operations on the
    local derivatives of a step and sample, `entries(N, P)` the numbers that it holds of a sample.
    """

    name: str
    summary: str
    tags: frozenset[str]
    Options: type[Any]
    rule: OnlineRule[Any]
    flops: Callable[[int, int], float]
    entries: Callable[[int, int], int]
    defined: Callable[[Setup, Any], Definition] | None = None

    def refusal(self, graph: Graph) -> str | None:
        """It needs a state."""
        return None if graph.recurrent else "there is no state to have an influence on; `backprop` applies"

    def definition(self, setup: Setup, options: Any) -> Definition:
        """See `Method`."""
        return self.defined(setup, options) if self.defined else Recursion(setup, self.rule, options, self.name)

    def cost(self, setup: Setup, options: Any) -> Cost:
        """The rule's own, and per step and sample N reverse passes of a step for J and M̄, one for q."""
        plan, layout = rtrl_plan(setup, False), influence_layout(setup)
        once = sum(phase_flops(setup.graph, phase) for phase in Phase if phase is not Phase.STATIC)
        step = phase_flops(setup.graph, Phase.RECURRENT) + phase_flops(setup.graph, Phase.INPUT)
        flops = setup.T * setup.batch * (plan.size * step + 3 * once + self.flops(layout.N, layout.P))
        results = sum(int(np.prod(x.shape)) for x in setup.wrt)
        held = plan.entries + setup.batch * self.entries(layout.N, layout.P) + 2 * results
        return Cost(flops, held * setup.dtype.itemsize, setup.T)

    def gradient(self, problem: Problem, options: Any) -> Gradient:
        """What the rule makes of the local derivatives that kernels give."""
        steps = LocalSteps(problem)
        found = follow(self.rule, steps, options, self.name)
        steps.close()
        return found
