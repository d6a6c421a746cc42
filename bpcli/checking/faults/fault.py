"""What a planted fault is: rules of the interpreter replaced by wrong ones, with a harmless rewrite beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from bpcli.checking.interpreter import Hooks, Sweep, on_pattern, walk, work
from bpcli.graph.nodes import Graph
from bpcli.methods import MethodCall
from bpcli.methods.base import Cost, Definition, Exact, Gradient, NoOptions
from bpcli.problem.definition import Array, Problem, Setup

Advice = Callable[[Setup], str]


@dataclass(frozen=True)
class Fault:
    """One row of the catalogue.

    `what` says what such a program does, in words that serve as a cause; `factor` is the factor of the lecture that is
    wrong ("J", "M̄", "q") or "". `advice(setup)` is what to change in a spec that cannot reveal it. `harmless` replaces
    the same rule by one that computes the same in another way.
    """

    name: str
    what: str
    factor: str
    advice: Advice
    wrong: Hooks
    harmless: Hooks


class Interpreted:
    """A method that is the interpreter with some of its rules replaced; it counts how often it is called."""

    name: ClassVar[str] = "interpreted"
    summary: ClassVar[str] = "the graph's reverse pass node by node, in NumPy"
    tags: ClassVar[frozenset[str]] = frozenset({"exact"})
    Options: ClassVar[type[NoOptions]] = NoOptions

    def __init__(self, hooks: Hooks, defined: Definition) -> None:
        self.hooks = hooks
        self.defined = defined
        self.calls = 0

    def refusal(self, graph: Graph) -> str | None:
        """It applies to every graph."""
        return None

    def definition(self, setup: Setup, options: Any) -> Definition:
        """That which it was made for."""
        return self.defined

    def cost(self, setup: Setup, options: Any) -> Cost:
        """About the numbers handled, forwards and three passes backwards."""
        return Cost(4 * work(setup), int(8 * work(setup)), setup.T)

    def gradient(self, problem: Problem, options: Any) -> Gradient:
        """In the spec's dtype, computed in float64."""
        run, windows = walk(problem), self.defined.over(problem.setup)
        parts = [Sweep(run, self.hooks, self.calls, w).run().gradient() for w in windows]
        found = {name: sum((part[name] for part in parts[1:]), array) for name, array in parts[0].items()}
        if self.hooks.answer is not None:
            found = self.hooks.answer(problem, found, self.calls)
        self.calls += 1
        dtype = problem.setup.dtype
        tensors = {x.name: x for x in problem.setup.wrt}
        with np.errstate(all="ignore"):
            arrays = {name: np.asarray(on_pattern(a, tensors[name]), dtype, order="C") for name, a in found.items()}
        return Gradient(run.loss, arrays)


def as_method(name: str, hooks: Hooks, defined: Definition | None = None) -> MethodCall:
    """The interpreter with `hooks` as a method that a check takes, of the total derivative if nothing else is said."""
    return MethodCall(name, Interpreted(hooks, defined or Exact()), NoOptions())


def advise(text: str, *, batch: str = "", steps: str = "", constant: str = "") -> Advice:
    """Advice that names the setting at fault where it can: a batch of one, a single step, a constant of 0 or 1.

    `text` is for any other reason; the others say what goes untested.
    """

    def advice(setup: Setup) -> str:
        if batch and setup.batch == 1:
            return f"batch = 1: {batch} is untested; take batch = 3"
        if steps and not setup.graph.recurrent:
            return f"the network has no state: {steps} does not exist here"
        if steps and setup.T == 1:
            return f"T = 1: {steps} is untested; take T = 4"
        flat = [f"{name} = {value:g}" for name, value in setup.spec.constants.items() if value in (0.0, 1.0)]
        if constant and flat:
            return f"{', '.join(flat)}: {constant} is untested; take 0.5"
        return text

    return advice


def separate(problem: Problem) -> Problem:
    """The problem with arrays of its own, for programs that may write to them."""
    groups = (problem.params, problem.inputs, problem.state)
    copies: list[dict[str, Array]] = [{name: np.array(a) for name, a in group.items()} for group in groups]
    return Problem(problem.setup, *copies)
