"""The values of all lines of a derivation on a problem's data, from the lines alone."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np

from bpcli.checking.interpreter import ForwardPass
from bpcli.graph.nodes import Phase
from bpcli.lecture.derivation import Section, Step
from bpcli.lecture.term_values import evaluate
from bpcli.lecture.terms import STILL, Term
from bpcli.problem.definition import FloatArray, Setup


def loss_share(setup: Setup, t: int) -> float:
    """∂L/∂l(t) of one sample; 0 after the last step."""
    over, T = setup.spec.objective.over_time, setup.T
    if not setup.graph.recurrent or over == "sum":
        return 1.0 if t < T else 0.0
    return float(t == T - 1) if over == "last" else 1.0 / T if t < T else 0.0


@dataclass(eq=False)
class LineValues:
    """`found[key][t]` is the value (B or 1, *shape) of a name at step t, `still[key]` that of one without a step.

    `sums` has functions for the values of terms that are sums over pairs of steps.
    """

    forward: ForwardPass
    found: dict[Hashable, list[FloatArray | None]] = field(default_factory=dict)
    still: dict[Hashable, FloatArray] = field(default_factory=dict)
    sums: dict[Hashable, Callable[[], FloatArray]] = field(default_factory=dict)

    @property
    def T(self) -> int:
        """Number of steps."""
        return self.forward.setup.T

    def compute(self, sections: Sequence[Section]) -> None:
        """Evaluate every line, section by section; those that define a node itself have its value already."""
        for section in sections:
            steps = [step for step in section.steps if step.claim.kind != "value"]
            if section.order == "once":
                for step in steps:
                    self.still[step.key] = self.value(step, 0)
                continue
            times = range(self.T)
            for t in reversed(times) if section.order == "backwards" else times:
                for step in steps:
                    if isinstance(step.key, tuple) and step.key[0] == STILL:
                        self.still[step.key] = self.value(step, t)
                    else:
                        self.found.setdefault(step.key, [None] * self.T)[t] = self.value(step, t)

    def value(self, step: Step, t: int) -> FloatArray:
        """The right-hand side of a line at step t."""
        with np.errstate(all="ignore"):
            return evaluate(step.claim.right, lambda term: self.look(term, t))

    def look(self, term: Term, t: int) -> FloatArray:
        """The value of a name, or of a sum over steps, as seen from step t."""
        if term.kind in ("timesum", "first"):
            return self.summed(term)
        if term.kind == "next":
            inside = t + 1 < self.T
            return evaluate(term.args[0], lambda inner: self.look(inner, t)) if inside else np.zeros((1, *term.shape))
        if term.kind == "paths":
            return self.sums[term.key]()
        if isinstance(term.key, tuple) and term.key[0] == STILL:
            return self.still[term.key] if term.key in self.still else self.forward.values[0][term.key[1]]
        at = t + (term.symbol.lag if term.symbol else 0)
        if term.key == "ω":
            return np.array([loss_share(self.forward.setup, at)])
        if isinstance(term.key, int):
            return self.forward.values[min(max(at, 0), self.T - 1)][term.key]
        if 0 <= at < self.T:
            value = self.found[term.key][at]
            assert value is not None, f"{term.symbol} is used before it is computed"
            return value
        return np.zeros((1, *term.shape))

    def summed(self, term: Term) -> FloatArray:
        """The sum over all steps, or the first of them."""
        times = range(self.T) if term.kind == "timesum" else range(1)
        parts = [evaluate(term.args[0], lambda inner, t=t: self.look(inner, t)) for t in times]  # type: ignore[misc]
        rows = max(map(len, parts))
        return np.asarray(np.sum([np.broadcast_to(p, (rows, *p.shape[1:])) for p in parts], axis=0))

    def node(self, n: int, t: int) -> FloatArray:
        """A node's own value, by the interpreter."""
        return self.forward.values[0 if self.forward.graph.nodes[n].phase is Phase.STATIC else t][n]
