"""Methods that go backwards through the unrolled graph: each is its definition, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bpcli.graph.nodes import Graph
from bpcli.methods.base import Cost, Definition, Exact, Gradient
from bpcli.problem.definition import Problem, Setup
from bpcli.runtime.reverse_mode import memory_traffic, unrolled


@dataclass(frozen=True)
class Unrolling:
    """A method given by `defined(T, options)`: the total derivative, or windows in the order of their ends."""

    name: str
    summary: str
    tags: frozenset[str]
    Options: type[Any]
    defined: Callable[[int, Any], Definition]

    def refusal(self, graph: Graph) -> str | None:
        """Recurrent methods need a state, feed-forward ones its absence."""
        if graph.recurrent and "recurrent" not in self.tags:
            return "the network has a state; `bptt`, `tbptt` and `rtrl` apply"
        if not graph.recurrent and "recurrent" in self.tags:
            return "there is no state to unroll; `backprop` applies"
        return None

    def definition(self, setup: Setup, options: Any) -> Definition:
        """See `Method`; windows that leave nothing out are the total derivative."""
        found = self.defined(setup.T, options)
        return Exact() if found.over(setup) == Exact().over(setup) else found

    def cost(self, setup: Setup, options: Any) -> Cost:
        """One pass forwards; backwards through every window; the longest window held."""
        plan = unrolled(setup, self.definition(setup, options).over(setup))
        return Cost(plan.flops, plan.bytes, setup.T, memory_traffic(plan))

    def gradient(self, problem: Problem, options: Any) -> Gradient:
        """Forwards, and backwards from the end of each window."""
        setup = problem.setup
        return Gradient(*unrolled(setup, self.definition(setup, options).over(setup)).gradient(problem))
