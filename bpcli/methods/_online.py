"""Online methods in plain NumPy, each given by a rule on the local derivatives of a step and its definition."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from bpcli.errors import fail
from bpcli.graph.nodes import Graph, Phase
from bpcli.methods.base import Cost, Definition, Gradient, OnlineRule, Recursion
from bpcli.problem.definition import Array, Problem, Setup, Tensor
from bpcli.problem.draw import method_generator
from bpcli.runtime.forward_mode import rtrl_plan
from bpcli.runtime.local_derivatives import InfluenceLayout, LocalDerivatives, LocalSteps, influence_layout
from bpcli.tape.plan import phase_flops


class Steps(Protocol):
    """The local derivatives of all steps of a setup, from kernels or measured."""

    @property
    def setup(self) -> Setup:
        """The differentiated setup; its dtype is the dtype of the derivatives."""

    def since(self, start: int) -> Iterator[LocalDerivatives]:
        """Local derivatives of the steps from `start` on."""

    def gradient(self, influence: Array, direct: Mapping[str, Array]) -> dict[str, Array]:
        """The gradient by tensor, from the part through the influence (batch, P) and the direct part."""


@np.errstate(all="ignore")  # the check reports values that are not finite
def follow(rule: OnlineRule[Any], steps: Steps, options: Any, draws: str, number: int = 0) -> Gradient:
    """Run a rule from the first step to the last, and sum the gradients that it credits.

    The rule has a random generator of its own, seeded by the seed of the data, the name `draws` and the `number`.
    """
    setup = steps.setup
    influence = np.zeros((setup.batch, influence_layout(setup).P), setup.dtype)
    direct = {x.name: np.zeros(x.shape, setup.dtype) for x in setup.wrt if x.kind != "state"}
    loss, state = 0.0, rule.start(setup, options, method_generator(setup, draws, number))
    for local in steps.since(0):
        state = rule.step(state, local)
        found = rule.credit(state, local)
        if np.shape(found.influence) != influence.shape:
            what = f"method {draws}: a StepGradient has an influence of shape {np.shape(found.influence)}"
            fail("bad-step-gradient", what, help=f"`credit` returns one of shape (batch, P) = {influence.shape}")
        influence += found.influence
        for x in setup.wrt:
            if x.name in found.direct:
                _at(direct[x.name], x, local.t)[...] += found.direct[x.name]
        loss += float((local.losses * local.weights).sum())
    return Gradient(loss, steps.gradient(influence, direct))


def _at(total: Array, x: Tensor, t: int) -> Array:
    """The part of a tensor's gradient to which step t contributes."""
    return total[t : t + 1] if x.kind == "input" else total


@dataclass(frozen=True)
class Online:
    """An online method given by its rule.

    `defined(setup, options)` is its definition; None stands for the recursion itself. Of the influence's layout and the
    options, `flops` are the rule's operations per step and sample, `entries` the numbers that it holds per sample, and
    `shared` those that it holds once.
    """

    name: str
    summary: str
    tags: frozenset[str]
    Options: type[Any]
    rule: OnlineRule[Any]
    flops: Callable[[InfluenceLayout, Any], float]
    entries: Callable[[InfluenceLayout, Any], int]
    shared: Callable[[InfluenceLayout, Any], int] = lambda layout, options: 0
    defined: Callable[[Setup, Any], Definition] | None = None

    def refusal(self, graph: Graph) -> str | None:
        """The graph needs a state."""
        return None if graph.recurrent else "there is no state to have an influence on; `backprop` applies"

    def definition(self, setup: Setup, options: Any) -> Definition:
        """See `Method`."""
        return self.defined(setup, options) if self.defined else Recursion(setup, self.rule, options, self.name)

    def cost(self, setup: Setup, options: Any) -> Cost:
        """The rule's own cost, and per step and sample N single-step reverse passes for J and M̄ and one for q."""
        plan, layout = rtrl_plan(setup, False), influence_layout(setup)
        once = sum(phase_flops(setup.graph, phase) for phase in Phase if phase is not Phase.STATIC)
        step = phase_flops(setup.graph, Phase.RECURRENT) + phase_flops(setup.graph, Phase.INPUT)
        flops = setup.T * setup.batch * (plan.size * step + 3 * once + self.flops(layout, options))
        results = sum(int(np.prod(x.shape)) for x in setup.wrt)
        own = setup.batch * (self.entries(layout, options) + layout.local_entries) + self.shared(layout, options)
        held = plan.entries + own + 3 * results
        return Cost(flops, held * setup.dtype.itemsize, setup.T)

    def gradient(self, problem: Problem, options: Any) -> Gradient:
        """Run the rule on local derivatives from the kernels."""
        return self.drawn(problem, options, 0)

    def drawn(self, problem: Problem, options: Any, number: int) -> Gradient:
        """The same with other random numbers for every `number`."""
        steps = LocalSteps(problem)
        found = follow(self.rule, steps, options, self.name, number)
        steps.close()
        return found
