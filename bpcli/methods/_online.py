"""Online methods in plain NumPy, each given by a rule on the local derivatives of a step and its definition."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from bpcli.errors import fail
from bpcli.graph.nodes import Graph, Phase
from bpcli.methods.base import Cost, Definition, Exact, Expectation, Gradient, OnlineRule, Recursion, StepGradient
from bpcli.problem.definition import Array, Problem, Setup, Tensor
from bpcli.problem.draw import method_generator
from bpcli.runtime.forward_mode import rtrl_plan
from bpcli.runtime.local_derivatives import InfluenceLayout, LocalDerivatives, LocalSteps, influence_layout
from bpcli.runtime.local_plan import local_plan
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


def drawing(setup: Setup, name: str, number: int = 0) -> np.random.Generator:
    """A method's source of random numbers, seeded by the seed of the data, its name, and the number of the gradient."""
    return method_generator(setup, name, number)


def run(recursion: Recursion, steps: Steps, rng: np.random.Generator | None = None) -> Gradient:
    """The gradient of a recursion on given steps; `rng` stands in for its own source of random numbers."""
    rng = rng or drawing(steps.setup, recursion.draws)
    found = follow(recursion.rule, steps, recursion.options, recursion.draws, rng)
    if recursion.project is None:
        return found
    return Gradient(found.loss, recursion.project(steps.setup, recursion.options, found.arrays, rng))


Credited = tuple[LocalDerivatives, StepGradient]


def credited(
    rule: OnlineRule[Any], steps: Steps, options: Any, draws: str, rng: np.random.Generator | None = None
) -> Iterator[Credited]:
    """Run a rule from the first step to the last; yields the local derivatives of each step, and what it is credited.

    Its random numbers are from `rng`, by default a generator of its own by the name `draws`.
    """
    setup = steps.setup
    shape = setup.batch, influence_layout(setup).P
    with np.errstate(all="ignore"):  # the check reports values that are not finite
        state = rule.start(setup, options, rng or drawing(setup, draws))
    for local in steps.since(0):
        with np.errstate(all="ignore"):
            state = rule.step(state, local)
            found = rule.credit(state, local)
        if np.shape(found.influence) != shape:
            what = f"method {draws}: a StepGradient has an influence of shape {np.shape(found.influence)}"
            fail("bad-step-gradient", what, help=f"`credit` returns one of shape (batch, P) = {shape}")
        yield local, found


@np.errstate(all="ignore")
def follow(
    rule: OnlineRule[Any], steps: Steps, options: Any, draws: str, rng: np.random.Generator | None = None
) -> Gradient:
    """The sum of the gradients that a rule credits to all steps; see `credited`."""
    setup = steps.setup
    influence = np.zeros((setup.batch, influence_layout(setup).P), setup.dtype)
    direct, loss = _nothing(setup), 0.0
    for local, found in credited(rule, steps, options, draws, rng):
        influence += found.influence
        _add(direct, setup, local, found)
        loss += float((local.losses * local.weights).sum())
    return Gradient(loss, steps.gradient(influence, direct))


def follow_each(rule: OnlineRule[Any], steps: Steps, options: Any, draws: str) -> Iterator[Gradient]:
    """The gradients that a rule credits to each step, and the step's loss; see `credited`."""
    setup = steps.setup
    for local, found in credited(rule, steps, options, draws):
        direct = _nothing(setup)
        with np.errstate(all="ignore"):
            _add(direct, setup, local, found)
            loss = float((local.losses * local.weights).sum())
            arrays = steps.gradient(np.asarray(found.influence, setup.dtype), direct)
        yield Gradient(loss, arrays)


def _nothing(setup: Setup) -> dict[str, Array]:
    """Direct parts to add up."""
    return {x.name: np.zeros(x.shape, setup.dtype) for x in setup.wrt if x.kind != "state"}


def _add(direct: Mapping[str, Array], setup: Setup, local: LocalDerivatives, found: StepGradient) -> None:
    for x in setup.wrt:
        if x.name in found.direct:
            _at(direct[x.name], x, local.t)[...] += found.direct[x.name]


def _at(total: Array, x: Tensor, t: int) -> Array:
    """The part of a tensor's gradient to which step t contributes."""
    return total[t : t + 1] if x.kind == "input" else total


class Compiled(Protocol):
    """A rule in compiled code."""

    def cost(self, setup: Setup, options: Any) -> Cost:
        """See `Method`."""

    def gradient(self, problem: Problem, options: Any) -> Gradient:
        """The gradient of the rule."""


@dataclass(frozen=True)
class Online:
    """An online method given by its rule.

    `defined(setup, options)` is its definition; None stands for the recursion itself, of which the mean is exact where
    the tags have "unbiased". Of the influence's layout and the options, `flops` are the rule's operations per step and
    sample, `entries` the numbers that it holds per sample, and `shared` those that it holds once; `reads_jacobian`: J
    is put together for it. `unfit(graph)` says why a graph with a state is none for the rule; None when it is. With
    `compiled`, that computes the gradient, and the rule defines it. `rewrite(setup)` is the network that it runs on,
    with the parameters that this one has besides; None stands for the setup itself.
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
    unfit: Callable[[Graph], str | None] = lambda graph: None
    reads_jacobian: bool = True
    compiled: Compiled | None = None
    rewrite: Callable[[Setup], tuple[Setup, Mapping[str, Array]]] | None = None

    def network(self, problem: Problem) -> Problem:
        """The problem that the rule runs on."""
        if self.rewrite is None:
            return problem
        setup, constants = self.rewrite(problem.setup)
        return replace(problem, setup=setup, params={**problem.params, **constants})

    def refusal(self, graph: Graph) -> str | None:
        """The graph needs a state."""
        return self.unfit(graph) if graph.recurrent else "the network has no state; `backprop` applies"

    def definition(self, setup: Setup, options: Any) -> Definition:
        """See `Method`."""
        if self.defined:
            return self.defined(setup, options)
        own, constants = self.rewrite(setup) if self.rewrite else (setup, {})
        given = Recursion(own, self.rule, options, self.name, constants=constants)
        return Expectation(Exact(), given) if "unbiased" in self.tags else given

    def cost(self, setup: Setup, options: Any) -> Cost:
        """The rule's own cost, and per step and sample one single-step reverse pass for q, as many as it has colours
        for M̄, and the work of N for J."""
        setup = self.rewrite(setup)[0] if self.rewrite else setup
        if self.compiled is not None:
            return self.compiled.cost(setup, options)
        plan, layout = local_plan(rtrl_plan(setup)), influence_layout(setup)
        once = sum(phase_flops(setup.graph, phase) for phase in Phase if phase is not Phase.STATIC)
        step = phase_flops(setup.graph, Phase.RECURRENT) + phase_flops(setup.graph, Phase.INPUT)
        local = plan.flops + self.reads_jacobian * layout.N * step
        flops = setup.T * setup.batch * (local + 3 * once + self.flops(layout, options))
        results = sum(int(np.prod(x.shape)) for x in setup.wrt)
        own = setup.batch * (self.entries(layout, options) + layout.local_entries) + self.shared(layout, options)
        own += sum(plan.graph.nodes[first.matrix].size for first in plan.firsts or ())
        held = plan.entries + own + 3 * results
        return Cost(flops, held * setup.dtype.itemsize, setup.T)

    def gradient(self, problem: Problem, options: Any) -> Gradient:
        """Run the rule on local derivatives from the kernels, or compiled code in its place."""
        return self.drawn(problem, options, 0)

    def drawn(self, problem: Problem, options: Any, number: int) -> Gradient:
        """The same with other random numbers for every `number`."""
        problem = self.network(problem)
        if self.compiled is not None:
            return self.compiled.gradient(problem, options)
        steps = LocalSteps(problem)
        found = follow(self.rule, steps, options, self.name, drawing(problem.setup, self.name, number))
        steps.close()
        return found

    def step_gradients(self, problem: Problem, options: Any) -> Iterator[Gradient]:
        """The gradient that the rule credits to each step."""
        steps = LocalSteps(self.network(problem))
        yield from follow_each(self.rule, steps, options, self.name)
        steps.close()
