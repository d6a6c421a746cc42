"""The protocol of a gradient method, its result and its cost, and the definition that it is judged against."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from bpcli.graph.nodes import Graph
from bpcli.problem.definition import Array, Problem, Setup
from bpcli.runtime.local_derivatives import LocalDerivatives
from bpcli.runtime.reverse_mode import Window


@dataclass(frozen=True)
class Cost:
    """Predicted cost of one gradient.

    `flops`: floating-point operations; `bytes`: peak memory; `forward_steps`: steps of the forward recurrence; `moved`:
    memory traffic in bytes (0: unknown).
    """

    flops: float
    bytes: int
    forward_steps: int
    moved: float = 0.0


@dataclass(frozen=True)
class Gradient:
    """The total loss and its gradient; `arrays[name]` has the shape of its `Tensor` and the spec's dtype."""

    loss: float
    arrays: Mapping[str, Array]


@dataclass(frozen=True)
class StepGradients:
    """The gradient of every step, in time: `losses (T,)`, with their weights, and `arrays[name] (T, *shape)`.

    They add up to the total loss and the gradient, up to rounding.
    """

    losses: NDArray[np.float64]
    arrays: Mapping[str, Array]


@dataclass(frozen=True)
class Exact:
    """The total derivative: every loss, differentiated through all steps before it."""

    def over(self, setup: Setup) -> tuple[Window, ...]:
        """One window with all steps and all losses."""
        return (Window(0, 0, setup.T),)


@dataclass(frozen=True)
class Windows:
    """A sum over windows, each the losses of some steps differentiated through some steps."""

    windows: tuple[Window, ...]

    def over(self, setup: Setup) -> tuple[Window, ...]:
        """The windows themselves."""
        return self.windows


State = TypeVar("State")
"""The state that an online rule carries from step to step: the influence M or an approximation of it."""


@dataclass(frozen=True)
class StepGradient:
    """g(t) in two parts: `influence (batch, P)` through the influence, `direct` as in `LocalDerivatives`."""

    influence: Array
    direct: Mapping[str, Array]


class OnlineRule(Protocol[State]):
    """An online method for any recurrent graph, as three functions of the local derivatives of a step.

    Local derivatives include the weights of the losses, so the gradient is the plain sum over steps. `rng` is the only
    source of randomness, seeded alike at every call of a method.
    """

    def start(self, setup: Setup, options: Any, rng: np.random.Generator) -> State:
        """The state before step 0; `influence_layout(setup)` has N, P and M(0)."""

    def step(self, state: State, local: LocalDerivatives) -> State:
        """The state after step t from the state before it."""

    def credit(self, state: State, local: LocalDerivatives) -> StepGradient:
        """The gradient of the losses of step t, given the state after it."""


Projection = Callable[[Setup, Any, Mapping[str, Array], np.random.Generator], Mapping[str, Array]]


@dataclass(frozen=True, eq=False)
class Recursion:
    """The gradient that `rule` computes from the local derivatives of `setup` in float64.

    The rule's approximation is part of the definition, not an error. `draws` names the generator of its random numbers.
    `project(setup, options, arrays, rng)`, if given, makes the gradient of the rule's. `constants` are parameters of
    `setup` that the problem does not have. Recursions are equal if they share one rule and one setup (by identity) and
    have equal options.
    """

    setup: Setup
    rule: OnlineRule[Any]
    options: Any
    draws: str
    project: Projection | None = None
    constants: Mapping[str, Array] = field(default_factory=dict)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Recursion) or self.rule is not other.rule or self.setup is not other.setup:
            return False
        return (self.options, self.draws, self.project) == (other.options, other.draws, other.project)

    def __hash__(self) -> int:
        return hash((id(self.rule), id(self.setup), self.draws))

    def over(self, setup: Setup) -> tuple[Window, ...]:
        """One window with all steps and all losses."""
        return Exact().over(setup)


@dataclass(frozen=True)
class Expectation:
    """A random estimate of the gradient `of`: a draw is the recursion `given` its random numbers, and its mean is `of`.

    The random numbers are bits, so that the mean can be taken over all of them: `rng.integers(0, 2, shape)`, and
    `rng.binomial(1, p, shape)` where they are not fair.
    """

    of: Exact | Recursion
    given: Recursion

    def over(self, setup: Setup) -> tuple[Window, ...]:
        """One window with all steps and all losses."""
        return self.given.over(setup)


Definition = Exact | Windows | Recursion | Expectation
"""The mathematical definition of a gradient.

`Exact` and `Windows` are judged by references that differentiate the losses of the windows `over(setup)`; a `Recursion`
by running its rule on local derivatives that are measured without the reverse-mode kernels; of an `Expectation` the
draw as the recursion that it is, and the mean over draws.
"""


KINDS = {Exact: "exact", Windows: "truncated", Recursion: "approximate", Expectation: "unbiased"}
"""The kind of gradient by the class of its definition."""


def of_one_draw(definition: Definition) -> Exact | Windows | Recursion:
    """The definition of a single gradient: of an expectation the recursion, given its random numbers."""
    return definition.given if isinstance(definition, Expectation) else definition


@dataclass(frozen=True)
class NoOptions:
    """Options of a method that takes none."""


class Method(Protocol):
    """One file of `bpcli.methods` holds one of these, as `METHOD`."""

    name: ClassVar[str]
    summary: ClassVar[str]
    tags: ClassVar[frozenset[str]]
    Options: ClassVar[type[Any]]

    def refusal(self, graph: Graph) -> str | None:
        """Why the method does not apply to this graph, with methods that do; None when it applies."""

    def definition(self, setup: Setup, options: Any) -> Definition:
        """The mathematics that the gradient is judged against."""

    def cost(self, setup: Setup, options: Any) -> Cost:
        """Predicted cost, from sizes alone."""

    def gradient(self, problem: Problem, options: Any) -> Gradient:
        """The gradient with respect to `problem.setup.wrt`."""


@runtime_checkable
class Stepwise(Protocol):
    """A method that also gives the gradients of single steps, which sum up to that of `gradient`."""

    def step_gradients(self, problem: Problem, options: Any) -> Iterator[Gradient] | None:
        """The loss of each step, with its weight, and the gradient credited to it; None where losses go back together.

        All arrays have the shapes of the whole gradient.
        """
