"""The protocol of a gradient method, and what every method returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np

from bpcli.graph.nodes import Graph
from bpcli.problem.definition import Array, Problem, Setup
from bpcli.runtime.local_derivatives import LocalDerivatives
from bpcli.runtime.reverse_mode import Window


@dataclass(frozen=True)
class Cost:
    """Predicted before anything runs.

    Floating-point operations, bytes held at the peak, steps of the forward recurrence, and bytes that are read and
    written on the way (0: not known).
    """

    flops: float
    bytes: int
    forward_steps: int
    moved: float = 0.0


@dataclass(frozen=True)
class Gradient:
    """`loss` is the whole loss; `arrays[name]` has the shape of its `Tensor` and the spec's dtype."""

    loss: float
    arrays: Mapping[str, Array]


@dataclass(frozen=True)
class Exact:
    """The total derivative: every loss, differentiated through all steps before it."""

    def over(self, setup: Setup) -> tuple[Window, ...]:
        """One window, of all steps and all losses."""
        return (Window(0, 0, setup.T),)


@dataclass(frozen=True)
class Windows:
    """The sum over `windows`: losses of given steps, differentiated through given steps."""

    windows: tuple[Window, ...]

    def over(self, setup: Setup) -> tuple[Window, ...]:
        """The windows themselves."""
        return self.windows


State = TypeVar("State")
"""What an online rule carries from step to step: the influence M, or what stands for it."""


@dataclass(frozen=True)
class StepGradient:
    """g(t): `influence (batch, P)` came through the influence, `direct` is as that of `LocalDerivatives`."""

    influence: Array
    direct: Mapping[str, Array]


class OnlineRule(Protocol[State]):
    """Three functions of the local derivatives of a step, which make an online method of any recurrent graph.

    Local derivatives carry the weights of the losses, so that the gradient is the sum of the steps'. `rng` is the one
    source of randomness, and the same at every call of a method.
    """

    def start(self, setup: Setup, options: Any, rng: np.random.Generator) -> State:
        """The state before step 0; `influence_layout(setup)` has N, P and M(0)."""

    def step(self, state: State, local: LocalDerivatives) -> State:
        """The state after step t, from that before it."""

    def credit(self, state: State, local: LocalDerivatives) -> StepGradient:
        """The gradient of the losses of step t, given the state after it."""


@dataclass(frozen=True, eq=False)
class Recursion:
    """The gradient that `rule` makes of the local derivatives of `setup`, in float64.

    Its approximation is the definition, not an error. `draws` names the generator that the rule starts from. Two are
    equal that have the very same rule and setup, with equal options.
    """

    setup: Setup
    rule: OnlineRule[Any]
    options: Any
    draws: str

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Recursion) or self.rule is not other.rule or self.setup is not other.setup:
            return False
        return (self.options, self.draws) == (other.options, other.draws)

    def __hash__(self) -> int:
        return hash((id(self.rule), id(self.setup), self.draws))

    def over(self, setup: Setup) -> tuple[Window, ...]:
        """All steps and all losses, which the rule sees one after the other."""
        return Exact().over(setup)


Definition = Exact | Windows | Recursion
"""What a gradient is meant to be.

The first two are judged by references that differentiate the losses of the windows `over(setup)`, a recursion by its
rule, run on local derivatives that are measured without the kernels that go backwards.
"""


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
        """Why the method does not apply to this graph, and what does; None when it applies."""

    def definition(self, setup: Setup, options: Any) -> Definition:
        """The mathematics that the gradient is judged against."""

    def cost(self, setup: Setup, options: Any) -> Cost:
        """Predicted cost, from sizes alone."""

    def gradient(self, problem: Problem, options: Any) -> Gradient:
        """The gradient with respect to `problem.setup.wrt`."""
