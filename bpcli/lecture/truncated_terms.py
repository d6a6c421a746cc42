"""The terms of a truncated gradient: those that a method keeps, and those that it leaves out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from bpcli.graph.nodes import Phase
from bpcli.lecture.derivation import Cell, Claim, Section, Step, line
from bpcli.lecture.line_values import LineValues
from bpcli.lecture.recurrent import RecurrentDerivation
from bpcli.lecture.terms import STILL, Symbol, Term, add, name
from bpcli.problem.definition import FloatArray
from bpcli.runtime.reverse_mode import Window

SHOWN = 6
"""Steps of the triangle of terms, the last ones."""


@dataclass(eq=False)
class Truncation:
    """Losses of steps t, differentiated through a parameter's use at steps s <= t, in the windows of a method."""

    d: RecurrentDerivation
    text: str
    windows: tuple[Window, ...]
    _terms: dict[int, FloatArray] = field(default_factory=dict)

    def keeps(self, t: int, s: int) -> bool:
        """Whether the loss of step t is differentiated through step s; steps count from 0."""
        return any(w.start <= s <= t and w.loss_from <= t < w.stop for w in self.windows)

    def pairs(self) -> list[tuple[int, int]]:
        """The pairs (t, s) that are kept."""
        T = self.d.net.setup.T
        return [(t, s) for t in range(T) for s in range(t + 1) if self.keeps(t, s)]

    def parameters(self) -> list[int]:
        """The parameters, and functions of parameters, that have terms."""
        direct = [n for n in self.d.net.names if self.d.net.nodes[n].phase is Phase.STATIC and n in self.d.local.given]
        return sorted({*self.d.met, *(n for n in direct if n in self.d.relevant)})

    def terms(self, n: int, values: LineValues) -> FloatArray:
        """Every term (T, T, batch, size) of a parameter from q, J and M̄ alone: [t, s] is q(t) J(t) ⋯ J(s+1) M̄(s)."""
        if n in self._terms:
            return self._terms[n]
        d, T, batch = self.d, values.T, values.forward.setup.batch
        size = d.net.nodes[n].size
        found, states = np.zeros((T, T, batch, size)), list(d.states.values())
        for t in range(T):
            if ("q", n) in values.found:
                found[t, t] += _at(values, ("q", n), t).reshape(-1, size)
            credit = {new: _at(values, ("q", new), t) for new, _ in states if ("q", new) in values.found}
            for s in range(t, -1, -1):
                for new, c in credit.items():
                    if ("Mbar", new, n) in values.found:
                        found[t, s] += np.einsum("bi,bij->bj", *_paired(c, _at(values, ("Mbar", new, n), s)))
                before = dict[int, FloatArray]()
                for new, old in states:
                    parts = [np.einsum("bi,bij->bj", *_paired(c, _at(values, ("J", other, old), s)))
                             for other, c in credit.items() if ("J", other, old) in values.found]  # fmt: skip
                    if s == t and ("q", old) in values.found:
                        parts.append(_at(values, ("q", old), t).reshape(-1, d.net.nodes[old].size))
                    if parts:
                        before[new] = np.sum([np.broadcast_to(p, (batch, *p.shape[1:])) for p in parts], axis=0)
                credit = before
        self._terms[n] = found
        return found

    def kept(self, n: int, values: LineValues) -> FloatArray:
        """The sum (batch, *shape) of the terms that are kept, without what the losses owe to the parameter directly."""
        terms = self.terms(n, values)
        total = np.sum([terms[pair] for pair in self.pairs()], axis=0)
        if ("q", n) in values.found:
            direct = [_at(values, ("q", n), t) for t in range(values.T)]
            total = total - np.sum([one.reshape(len(one), -1) for one in direct], axis=0)
        return np.asarray(total.reshape(-1, *self.d.net.nodes[n].shape))

    def section(self, values: LineValues | None) -> Section:
        """The sums of kept terms, and the triangle of all terms with those left out struck out."""
        net, steps = self.d.net, list[Step]()
        for n in self.parameters():
            left = name(Symbol("kept", (net.names[n],)), (STILL, "k", n), net.nodes[n].shape)
            parts = [Term("timesum", (self.d.q(n),), net.nodes[n].shape)] if n in self.d.local.given else []
            if n in self.d.met:
                symbol = Symbol("immediate", (net.names[n],))
                parts.append(Term("paths", (), net.nodes[n].shape, symbol, ("paths", n)))
            because = (
                "over the pairs (t, s) that are not struck out below" if n in self.d.met else "no state in between"
            )
            steps.append(line(Claim(left, add(*parts), "windows", -1, n), because))
        T = net.setup.T
        left_out = T * (T + 1) // 2 - len(self.pairs())
        sentences = (
            "The exact gradient is a sum over every loss l(t) and every step s ≤ t at which the parameter acts:",
            "∂L/∂w = Σ_t Σ_s q(t) J(t) ⋯ J(s+1) M̄(s).",
            f"{self.text} leaves out {left_out} of its {T * (T + 1) // 2} terms."
            if left_out
            else f"{self.text} leaves nothing out at T = {T}: it is the exact gradient.",
        )
        return Section("What truncation leaves out", sentences, tuple(steps), "once", rows=self.triangle(values))

    def triangle(self, values: LineValues | None) -> tuple[tuple[Cell, ...], ...]:
        """A row for each loss and a column for each step, the last ones; sizes of the terms where they are known."""
        T, parameters = self.d.net.setup.T, self.parameters()
        times = range(max(0, T - SHOWN), T)
        terms = None if values is None or not parameters else self.terms(parameters[0], values)
        corner = "" if terms is None else f"|·| of {self.d.net.names[parameters[0]]}"
        rows = [(Cell(corner), *(Cell(f"s = {s + 1}") for s in times))]
        for t in times:
            cells = [Cell(_spelled(t - s) if terms is None else f"{np.sqrt((terms[t, s] ** 2).sum(axis=1).mean()):.2g}",
                          not self.keeps(t, s)) for s in times if s <= t]  # fmt: skip
            rows.append((Cell(f"l({t + 1})"), *cells, *(Cell("") for s in times if s > t)))
        return tuple(rows)


def _spelled(lag: int) -> str:
    return "q M̄" if not lag else f"q {' '.join('J' * lag)} M̄" if lag < 4 else f"q J^{lag} M̄"


def _at(values: LineValues, key: tuple[object, ...], t: int) -> FloatArray:
    value = values.found[key][t]
    assert value is not None
    return value


def _paired(c: FloatArray, matrix: FloatArray) -> Sequence[FloatArray]:
    rows = max(len(c), len(matrix))
    return [np.broadcast_to(a, (rows, *a.shape[1:])) for a in (c.reshape(len(c), -1), matrix)]
