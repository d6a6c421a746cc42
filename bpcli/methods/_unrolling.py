"""Reverse-mode methods on the unrolled graph, each given by its definition alone."""

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
    """A reverse-mode method; `defined(T, options)` is the total derivative, or windows in ascending order of `stop`."""

    name: str
    summary: str
    tags: frozenset[str]
    Options: type[Any]
    defined: Callable[[int, Any], Definition]

    def refusal(self, graph: Graph) -> str | None:
        """Recurrent methods need a graph with a state, feed-forward ones a graph without."""
        if graph.recurrent and "recurrent" not in self.tags:
            return "the network has a state; `bptt`, `tbptt` and `rtrl` apply"
        if not graph.recurrent and "recurrent" in self.tags:
            return "there is no state to unroll; `backprop` applies"
        return None

    def definition(self, setup: Setup, options: Any) -> Definition:
        """See `Method`; windows that leave nothing out become `Exact()`."""
        found = self.defined(setup.T, options)
        return Exact() if found.over(setup) == Exact().over(setup) else found

    def cost(self, setup: Setup, options: Any) -> Cost:
        """One forward pass and a reverse pass through every window; memory for the longest window."""
        plan = unrolled(setup, self.definition(setup, options).over(setup))
        return Cost(plan.flops, plan.bytes, setup.T, memory_traffic(plan))

    def gradient(self, problem: Problem, options: Any) -> Gradient:
        """One forward pass, with a reverse pass from the end of each window."""
        setup = problem.setup
        return Gradient(*unrolled(setup, self.definition(setup, options).over(setup)).gradient(problem))
