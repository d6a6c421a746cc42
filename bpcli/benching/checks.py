"""What checking costs, as methods that a bench can measure: a reference's sweep over every entry, and a whole check."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any
from typing import cast as typed

from bpcli import methods, references
from bpcli.benching.truth import exact_method
from bpcli.benching.vouch import Vouch, sum_up
from bpcli.checking.check_options import CheckOptions, check_bytes, check_cost
from bpcli.checking.checker import check_problem
from bpcli.checking.reference_cache import AUTO, whole
from bpcli.errors import Place
from bpcli.graph.nodes import Graph
from bpcli.methods import MethodCall
from bpcli.methods.base import Cost, Gradient, Method
from bpcli.problem.definition import Problem, Setup
from bpcli.runtime.evaluation import whole_loss
from bpcli.runtime.reverse_mode import Window

CHECK = "check"
# Sweeps over time for each tensor: the references take copies side by side, but go through the steps this often.
_SWEEPS = 16


@dataclass(frozen=True)
class NoOptions:
    """None."""


@dataclass(frozen=True)
class Checking:
    """The work of `bp check --mode full` on reverse mode: of one reference alone, or, of "check", with all judging."""

    name: str
    summary: str = "what checking costs"
    tags: frozenset[str] = frozenset({"exact", "offline"})
    Options: type[Any] = NoOptions

    @property
    def options(self) -> CheckOptions:
        """The check that this is, or is part of."""
        return CheckOptions(AUTO if self.name == CHECK else self.name, "full")

    def refusal(self, graph: Graph) -> str | None:
        """It applies to every graph."""
        return None

    def windows(self, setup: Setup, options: Any) -> tuple[Window, ...]:
        """The true gradient."""
        return whole(setup)

    def cost(self, setup: Setup, options: Any) -> Cost:
        """Predicted for every entry, with as many evaluations as the references may take."""
        call = methods.parse(exact_method(setup))
        flops = check_cost(setup, [call], self.options)
        if self.name != CHECK:
            flops = references.get(self.name).cost(setup, whole(setup))
        return Cost(flops, check_bytes(setup, [call], self.options), _SWEEPS * len(setup.wrt) * setup.T)

    def gradient(self, problem: Problem, options: Any) -> Gradient:
        """What the reference finds, in the spec's dtype; of a whole check, the gradient that it has judged."""
        fresh = replace(problem)  # what is remembered of a problem would be measured once and then no more
        setup = problem.setup
        if self.name == CHECK:
            call = methods.parse(exact_method(setup))
            check_problem(fresh, [call], self.options)
            return call.gradient(fresh)
        found = references.get(self.name).estimate(fresh, whole(setup), setup.wrt)
        return Gradient(whole_loss(fresh), {name: e.value.astype(setup.dtype) for name, e in found.items()})


def parse(text: str, place: Place | None = None) -> MethodCall:
    """What a bench can measure: a method, a reference, or "check". Raises BpError as `methods.parse`."""
    name = text.strip()
    if name == CHECK or name in references.known():
        # The protocol has class variables where this has fields.
        return MethodCall(name, typed("Method", Checking(name)), NoOptions())
    return methods.parse(text, place)


def vouch_for(call: MethodCall, problem: Problem) -> Vouch | None:
    """The verdict where `call` is a check, by what it says of reverse mode; None for a method."""
    if not isinstance(call.method, Checking):
        return None
    exact = methods.parse(exact_method(problem.setup))
    findings = check_problem(replace(problem), [exact], call.method.options)
    return sum_up(findings, exact, f"{exact.text}, every entry, by it")
