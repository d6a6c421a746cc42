"""A check, or one reference's estimate of every entry, as a method of a bench, so that its cost can be measured."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, cast

from bpcli import methods, references
from bpcli.checking.check_options import CheckOptions, check_bytes, choose
from bpcli.checking.checker import check_problem
from bpcli.checking.findings import Finding
from bpcli.checking.reference_cache import AUTO
from bpcli.checking.sources.user_rule import is_rule, parse_rule
from bpcli.errors import Place
from bpcli.graph.nodes import Graph
from bpcli.methods import MethodCall, exact_method, parse
from bpcli.methods.base import Cost, Definition, Exact, Gradient, Method, NoOptions
from bpcli.problem.definition import Problem, Setup
from bpcli.runtime.evaluation import whole_loss

CHECK = "check"


@dataclass(frozen=True)
class Checking:
    """`bp check --mode full` of reverse mode as a method: all of it as "check", one estimate as a reference's name."""

    name: str
    summary: str = "cost of checking"
    tags: frozenset[str] = frozenset({"exact", "offline"})
    Options: type[Any] = NoOptions

    @property
    def options(self) -> CheckOptions:
        """The options of the check."""
        return CheckOptions(AUTO if self.name == CHECK else self.name, "full")

    def refusal(self, graph: Graph) -> str | None:
        """None: a check applies to every graph."""
        return None

    def definition(self, setup: Setup, options: Any) -> Definition:
        """The total derivative."""
        return Exact()

    def cost(self, setup: Setup, options: Any) -> Cost:
        """Predicted cost for every entry, with the largest number of evaluations that the references may take."""
        call = parse(exact_method(setup.graph))
        chosen = choose(setup, [call], self.options)
        flops = chosen.flops
        if self.name != CHECK:
            flops = references.get(self.name).cost(setup, Exact().over(setup))
        return Cost(flops, check_bytes(setup, [call], self.options), chosen.steps)

    def judge(self, problem: Problem) -> tuple[MethodCall, list[Finding]]:
        """Reverse mode, and the findings of the check on it."""
        exact = parse(exact_method(problem.setup.graph))
        return exact, check_problem(dataclasses.replace(problem), [exact], self.options)

    def gradient(self, problem: Problem, options: Any) -> Gradient:
        """The reference's estimate in the spec's dtype, or the gradient that the check judged."""
        fresh = dataclasses.replace(problem)  # without cached estimates, which would be computed only once
        setup = problem.setup
        if self.name == CHECK:
            call = parse(exact_method(setup.graph))
            check_problem(fresh, [call], self.options)
            return call.gradient(fresh)
        found = references.get(self.name).estimate(fresh, Exact().over(setup), setup.wrt)
        return Gradient(whole_loss(fresh), {name: e.value.astype(setup.dtype) for name, e in found.items()})


def parse_measurable(text: str, place: Place | None = None) -> MethodCall:
    """Parse a method, a reference, "check" or a user's rule, `FILE.py:RULE`. Raises BpError as `methods.parse`.

    A spec, which has a place, does not name code to run in bp's own processes.
    """
    name = text.strip()
    if place is None and is_rule(name):
        return parse_rule(name)
    if name == CHECK or name in references.known():
        # The protocol has class variables where this has fields.
        return MethodCall(name, cast("Method", Checking(name)), NoOptions())
    return methods.parse(text, place)
