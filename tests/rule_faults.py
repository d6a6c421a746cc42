"""Faults of online rules, random methods and windows: methods on wrong numbers, under their right definition."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bpcli.checking.check_options import CheckOptions
from bpcli.checking.checker import check_problem
from bpcli.methods import MethodCall
from bpcli.methods._online import Online, run
from bpcli.methods._patterned import OnPattern
from bpcli.methods.base import (
    Cost,
    Definition,
    Exact,
    Gradient,
    OnlineRule,
    Recursion,
    StepGradient,
    Windows,
    of_one_draw,
)
from bpcli.problem.definition import Array, Problem, Setup
from bpcli.runtime.jacobian import DenseJacobian
from bpcli.runtime.local_derivatives import LocalDerivatives, LocalSteps
from bpcli.runtime.reverse_mode import Window, unrolled
from bpcli.runtime.sparse_plan import Sparsity
from bpcli.tape.probing import PATHS

CHANGED = 1e-8
"""A part of the largest entry by which a fault has to change a tensor for it to have an effect."""
Spoil = Callable[[LocalDerivatives, LocalDerivatives], LocalDerivatives]


def with_jacobian(local: LocalDerivatives, change: Callable[[Array], Array]) -> LocalDerivatives:
    """The same with J and its parts along paths changed."""
    parts = {kind: change(local.jacobian.along(kind)) for kind in PATHS}
    return replace(local, jacobian=DenseJacobian(change(local.J), parts))


def entering(local: LocalDerivatives, factor: float) -> LocalDerivatives:
    """The same with `factor` times M̄."""
    return replace(local, factors=tuple(replace(f, delta=f.delta * factor) for f in local.factors))


SPOILED: Mapping[str, Spoil] = {
    "J transposed": lambda local, before: with_jacobian(local, lambda J: J.swapaxes(1, 2)),
    "J of the step before": lambda local, before: replace(local, jacobian=before.jacobian),
    "J a part in ten off": lambda local, before: with_jacobian(local, lambda J: 0.9 * J),
    "no J": lambda local, before: with_jacobian(local, lambda J: 0 * J),
    "wrong slope": lambda local, before: entering(local, 1.01),
    "wrong normaliser": lambda local, before: entering(local, 1.25 if local.t else 1.0),
    "M̄ of the step before": lambda local, before: replace(local, factors=before.factors),
    "M̄ without its last term": lambda local, before: replace(local, factors=local.factors[:-1]),
    "stale q": lambda local, before: replace(local, q=before.q),
    "nothing direct": lambda local, before: replace(local, direct={}),
    "stale state": lambda local, before: replace(local, a=before.a),
}
MASKS = {
    "snap": Sparsity(2, None), "rflo": Sparsity(1, None), "eprop": Sparsity(1, None), "eprop-random": Sparsity(1, None),
    "rtrl-sparse": Sparsity(1, None), "rtrl-block": Sparsity(1, None),
}  # fmt: skip
"""Patterns of M, or paths of J, in place of a method's own."""


@dataclass(frozen=True)
class Planted:
    """A rule that is given local derivatives made wrong, from those of the step and of the step before."""

    rule: OnlineRule[Any]
    spoil: Spoil

    def start(self, setup: Setup, options: Any, rng: np.random.Generator) -> Any:
        """The rule's state, and of the last step what it was and what it was made to be."""
        return self.rule.start(setup, options, rng), None, None

    def step(self, state: Any, local: LocalDerivatives) -> Any:
        """The rule's step."""
        own = self.spoil(local, local if state[1] is None else state[1])
        return self.rule.step(state[0], own), local, own

    def credit(self, state: Any, local: LocalDerivatives) -> StepGradient:
        """The rule's credit."""
        return self.rule.credit(state[0], state[2])


@dataclass(frozen=True)
class Faulty:
    """A method of another's definition."""

    name: str
    right: Any
    compute: Callable[[Problem], Gradient]
    summary: str = ""
    tags: frozenset[str] = frozenset()
    Options: Any = None

    def refusal(self, graph: Any) -> str | None:
        """As the other's."""
        found: str | None = self.right.refusal(graph)
        return found

    def definition(self, setup: Setup, options: Any) -> Definition:
        """Of a draw alone: its mean is that of the right method."""
        return of_one_draw(self.right.definition(setup, options))

    def cost(self, setup: Setup, options: Any) -> Cost:
        """As the other's."""
        found: Cost = self.right.cost(setup, options)
        return found

    def gradient(self, problem: Problem, options: Any) -> Gradient:
        """The wrong one."""
        return self.compute(problem)


@dataclass(frozen=True)
class Outcome:
    """Of one fault in one method: "caught", "void" where it changes nothing, or "missed", and the tensors."""

    fault: str
    outcome: str
    wrong: tuple[str, ...]
    changed: tuple[str, ...]


def faults_of(call: MethodCall, setup: Setup) -> Iterator[tuple[str, Callable[[Problem], Gradient]]]:
    """By name the faulty gradients of a method; none of one that reverse mode computes for all steps."""
    method: Any = call.method
    definition = of_one_draw(call.definition(setup))
    if isinstance(definition, Windows):
        yield from _windows(definition.windows)
        return
    if isinstance(method, Online):
        if isinstance(definition, Exact):
            definition = Recursion(setup, method.rule, call.options, method.name)
        if method.name in MASKS:
            yield "wrong mask", _running(method, replace(definition, rule=OnPattern(lambda o: MASKS[method.name])))
    if isinstance(definition, Recursion):
        for how, spoil in SPOILED.items():
            if how == "stale state" and method.name != "dni":
                continue  # no other rule reads it
            yield how, _running(method, replace(definition, rule=Planted(definition.rule, spoil)))


def _running(method: Any, recursion: Recursion) -> Callable[[Problem], Gradient]:
    """A recursion on the kernels' local derivatives, in the network that the method runs on."""
    network = method.network if isinstance(method, Online) else lambda problem: problem
    return lambda problem: run(recursion, LocalSteps(network(problem)))


def _windows(windows: tuple[Window, ...]) -> Iterator[tuple[str, Callable[[Problem], Gradient]]]:
    """Windows that reach back a step less or more, and losses that are left out."""
    shorter = [replace(w, start=min(w.start + 1, w.loss_from)) for w in windows]
    longer = [replace(w, start=max(w.start - 1, 0)) for w in windows]
    fewer = [replace(w, loss_from=min(w.loss_from + 1, w.stop - 1)) for w in windows]
    for how, found in (
        ("a step less", shorter), ("a step more", longer), ("the first losses of windows missing", fewer),
        ("the last window missing", windows[:-1]),
    ):  # fmt: skip
        yield how, lambda problem, found=tuple(found): Gradient(*unrolled(problem.setup, found).gradient(problem))


def planted(problem: Problem, call: MethodCall) -> tuple[bool, list[Outcome]]:
    """Whether the right method passes, and what became of each fault."""
    faults = faults_of(call, problem.setup)
    faulty = {how: MethodCall(how, Faulty(how, call.method, compute), call.options) for how, compute in faults}
    findings = check_problem(problem, [call, *faulty.values()], CheckOptions())
    right, found = call.gradient(problem).arrays, list[Outcome]()
    for how, wrong in faulty.items():
        own = wrong.gradient(problem).arrays
        changed = tuple(
            name
            for name, values in right.items()
            if np.abs(own[name] - values).max(initial=0) > CHANGED * np.abs(values).max(initial=0)
        )
        accused = tuple(f.tensor for f in findings if f.method == how and f.verdict == "wrong" and f.tensor in right)
        found.append(Outcome(how, "caught" if accused else "missed" if changed else "void", accused, changed))
    return all(f.verdict == "pass" for f in findings if f.method == call.text), found
