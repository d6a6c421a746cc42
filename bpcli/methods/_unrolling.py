"""Reverse-mode methods on the unrolled graph, each given by its definition alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from bpcli.graph.nodes import Graph
from bpcli.methods.base import Cost, Definition, Exact, Gradient
from bpcli.problem.definition import Problem, Setup
from bpcli.runtime.reverse_mode import Unrolled, Window, memory_traffic, unrolled

Defined = Callable[[int, Any], Definition]


@lru_cache(maxsize=8)  # finding windows takes a twentieth of a small gradient
def _resolved(defined: Defined, setup: Setup, options: Any) -> tuple[Definition, tuple[Window, ...]]:
    """A definition and its windows; windows that leave nothing out become `Exact()`."""
    found, exact = defined(setup.T, options), Exact()
    windows = found.over(setup)
    return (exact if windows == exact.over(setup) else found), windows


@dataclass(frozen=True)
class Unrolling:
    """A reverse-mode method; `defined(T, options)` is the total derivative, or windows in ascending order of `stop`."""

    name: str
    summary: str
    tags: frozenset[str]
    Options: type[Any]
    defined: Defined

    def refusal(self, graph: Graph) -> str | None:
        """Recurrent methods need a graph with a state, feed-forward ones a graph without."""
        if graph.recurrent and "recurrent" not in self.tags:
            return "the network has a state; `bptt`, `tbptt` and `rtrl` apply"
        if not graph.recurrent and "recurrent" in self.tags:
            return "there is no state to unroll; `backprop` applies"
        return None

    def definition(self, setup: Setup, options: Any) -> Definition:
        """See `Method`."""
        return _resolved(self.defined, setup, options)[0]

    def cost(self, setup: Setup, options: Any) -> Cost:
        """One forward pass and a reverse pass through every window; memory for the longest window."""
        plan = unrolled(setup, _resolved(self.defined, setup, options)[1])
        return Cost(plan.flops, plan.bytes, setup.T, memory_traffic(plan))

    def step_gradients(self, problem: Problem, options: Any) -> Iterator[Gradient] | None:
        """The windows' gradients, where each has the loss of one step."""
        windows = _resolved(self.defined, problem.setup, options)[1]
        if [(w.loss_from, w.stop) for w in windows] != [(t, t + 1) for t in range(problem.setup.T)]:
            return None
        return (Gradient(*found) for found in Unrolled(problem.setup, windows, singly=True).gradients(problem))

    def gradient(self, problem: Problem, options: Any) -> Gradient:
        """One forward pass, with a reverse pass from the end of each window."""
        return Gradient(*unrolled(problem.setup, _resolved(self.defined, problem.setup, options)[1]).gradient(problem))
