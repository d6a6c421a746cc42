"""A planted fault: rules of the reference interpreter replaced by wrong ones, and the interpreter as a method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from bpcli.checking.interpreter import Edge, ForwardPass, Hooks, ReversePass, interpreter_cost, run_forward
from bpcli.checking.sources.validate_gradient import on_pattern
from bpcli.graph.nodes import Graph
from bpcli.methods import MethodCall
from bpcli.methods.base import Cost, Definition, Exact, Gradient, NoOptions
from bpcli.problem.definition import Array, Problem, Setup
from bpcli.references.base import FloatArray

Advice = Callable[[Setup], str]


@dataclass(frozen=True)
class Fault:
    """One row of the catalogue.

    `what` describes the fault in words that serve as a cause; `factor` is the wrong factor of the gradient ("J", "M̄",
    "q") or "". `advice(setup)` says what to change in a spec that cannot reveal it. `harmless` replaces the same rule
    by one that computes the same in another way.
    """

    name: str
    what: str
    factor: str
    advice: Advice
    wrong: Hooks
    harmless: Hooks


def on_edges(test: Callable[[Edge], bool], rule: Callable[[Edge], FloatArray]) -> Hooks:
    """Hooks that follow `rule` on the edges that pass the test."""
    return Hooks(edge=lambda e: rule(e) if test(e) else e.vjp())


class Interpreted:
    """A method that runs the interpreter with some of its rules replaced; it counts its calls."""

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
        """The definition that it was constructed with."""
        return self.defined

    def cost(self, setup: Setup, options: Any) -> Cost:
        """About one forward and three reverse passes."""
        return Cost(4 * interpreter_cost(setup), int(8 * interpreter_cost(setup)), setup.T)

    def gradient(self, problem: Problem, options: Any) -> Gradient:
        """The gradient in the spec's dtype, computed in float64."""
        run = run_forward(problem)
        arrays = differentiate(problem, run, self.hooks, self.defined, self.calls)
        self.calls += 1
        return Gradient(run.loss, arrays)


def differentiate(
    problem: Problem, run: ForwardPass, hooks: Hooks, defined: Definition, call: int = 0
) -> dict[str, Array]:
    """The gradient by reverse mode over a forward pass, with `hooks`, in the spec's dtype."""
    setup = problem.setup
    parts = [ReversePass(run, hooks, call, w).run().gradient() for w in defined.over(setup)]
    found = {name: sum((part[name] for part in parts[1:]), array) for name, array in parts[0].items()}
    if hooks.answer is not None:
        found = hooks.answer(problem, found, call)
    tensors = {x.name: x for x in setup.wrt}
    with np.errstate(all="ignore"):
        return {n: np.array(on_pattern(a, tensors[n]), setup.dtype, order="C") for n, a in found.items()}


def as_method(name: str, hooks: Hooks, defined: Definition | None = None) -> MethodCall:
    """The interpreter with `hooks` as a method, of the total derivative by default."""
    return MethodCall(name, Interpreted(hooks, defined or Exact()), NoOptions())


def advise(text: str, *, batch: str = "", steps: str = "", constant: str = "") -> Advice:
    """Advice that names the setting at fault if it can: a batch of one, a single step, a constant of 0 or 1.

    `batch`, `steps` and `constant` say what such a setting leaves untested; `text` is for any other reason.
    """

    def advice(setup: Setup) -> str:
        if batch and setup.batch == 1:
            return f"batch = 1: {batch} is untested; use batch = 3"
        if steps and not setup.graph.recurrent:
            return f"the network has no state: {steps} does not exist here"
        if steps and setup.T == 1:
            return f"T = 1: {steps} is untested; use T = 4"
        flat = [f"{name} = {value:g}" for name, value in setup.spec.constants.items() if value in (0.0, 1.0)]
        if constant and flat:
            return f"{', '.join(flat)}: {constant} is untested; use 0.5"
        return text

    return advice


def separate(problem: Problem) -> Problem:
    """The problem with copies of its arrays, for methods that may write to them."""
    groups = (problem.params, problem.inputs, problem.state)
    copies: list[dict[str, Array]] = [{name: np.array(a) for name, a in group.items()} for group in groups]
    return Problem(problem.setup, *copies)
