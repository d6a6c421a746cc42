"""What the methods that go backwards through the unrolled graph share: they differ in their windows alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bpcli.graph.nodes import Graph
from bpcli.methods.base import Cost, Gradient
from bpcli.problem.definition import Problem, Setup
from bpcli.runtime.reverse_mode import Window, moved, unrolled


@dataclass(frozen=True)
class NoOptions:
    """None."""


@dataclass(frozen=True)
class Unrolling:
    """A method given by its windows; `reach(T, options)` lists them in the order of their ends."""

    name: str
    summary: str
    tags: frozenset[str]
    Options: type[Any]
    reach: Callable[[int, Any], tuple[Window, ...]]

    def refusal(self, graph: Graph) -> str | None:
        """Recurrent methods need a state, feed-forward ones its absence."""
        if graph.recurrent and "recurrent" not in self.tags:
            return "the network has a state; `bptt`, `tbptt` and `rtrl` apply"
        if not graph.recurrent and "recurrent" in self.tags:
            return "there is no state to unroll; `backprop` applies"
        return None

    def windows(self, setup: Setup, options: Any) -> tuple[Window, ...]:
        """What the method is meant to compute."""
        return self.reach(setup.T, options)

    def cost(self, setup: Setup, options: Any) -> Cost:
        """One pass forwards; backwards through every window; the longest window held."""
        plan = unrolled(setup, self.windows(setup, options))
        return Cost(plan.flops, plan.bytes, setup.T, moved(plan))

    def gradient(self, problem: Problem, options: Any) -> Gradient:
        """Forwards, and backwards from the end of each window."""
        return Gradient(*unrolled(problem.setup, self.windows(problem.setup, options)).gradient(problem))
