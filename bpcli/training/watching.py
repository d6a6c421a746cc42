"""Passive comparisons on a trajectory: gradients of other methods beside the true one, at the current parameters."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bpcli.methods import MethodCall
from bpcli.methods._online import Online
from bpcli.problem.definition import Array
from bpcli.training.optimizers import length

FIGURES = ("cosine", "ratio", "signs")
"""Of a gradient and the true one: cosine, norm over the true norm, share of the true gradient's entries whose sign it
has."""


NUMPY_EVERY = 10
"""Steps from one comparison to the next, for each watched method in plain NumPy."""
Curve = Sequence[float]
"""A figure of every step, NaN where there is none."""
TRUE = "true"
"""Stands for the true gradient among the names of methods."""


@dataclass(frozen=True)
class Watch:
    """Methods to compute beside the ones that move the parameters, at every `every`-th step from the first."""

    calls: tuple[MethodCall, ...] = ()
    every: int = 1

    def due(self, step: int) -> bool:
        """Whether a step, from 0, is compared."""
        return step % self.every == 0

    def columns(self) -> list[str]:
        """The names of all figures: those of each method, then the cosines between two of them."""
        own = [column_of(figure, call.text) for call in self.calls for figure in FIGURES]
        return own + [column_of("cosine", f"{one.text}|{other.text}") for one, other in self.pairs()]

    def pairs(self) -> list[tuple[MethodCall, MethodCall]]:
        """All pairs of two methods."""
        return list(itertools.combinations(self.calls, 2))

    def compare(self, gradient: Callable[[MethodCall], Array], true: Array) -> dict[str, float]:
        """The figures that can be told, by column."""
        found: dict[str, float] = {}
        for call in self.calls:
            for figure, value in compared(gradient(call), true).items():
                found[column_of(figure, call.text)] = value
        for one, other in self.pairs():
            if figures := compared(gradient(one), gradient(other)):
                found[column_of("cosine", f"{one.text}|{other.text}")] = figures["cosine"]
        return found


def column_of(figure: str, method: str) -> str:
    """The name of a column."""
    return f"{figure}[{method}]"


def watch_interval(trained: Sequence[MethodCall], watched: Sequence[MethodCall]) -> int:
    """Steps from one comparison to the next where none are asked for, so that comparisons cost less than training
    three times over: a rule in plain NumPy takes some twenty times as long as compiled code."""
    if any(in_numpy(call) for call in trained):
        return 1
    return max(1, NUMPY_EVERY * sum(in_numpy(call) for call in watched))


def in_numpy(call: MethodCall) -> bool:
    """Whether a method runs in plain NumPy, step by step."""
    return isinstance(call.method, Online) and call.method.compiled is None


def watched_in(columns: Iterable[str]) -> list[str]:
    """The methods that columns compare with the true gradient."""
    named = (c.removeprefix("cosine[").removesuffix("]") for c in columns if c.startswith("cosine["))
    return [name for name in named if "|" not in name]


def between(curve: Mapping[str, Curve], one: str, other: str) -> float | None:
    """The mean cosine of two gradients, each of a watched method or the true one; None where there is none."""
    if one == other:
        return 1.0
    if TRUE in (one, other):
        return mean_of_known(curve[column_of("cosine", other if one == TRUE else one)])
    pairs = (column_of("cosine", f"{a}|{b}") for a, b in ((one, other), (other, one)))
    return next((mean_of_known(curve[pair]) for pair in pairs if pair in curve), None)


def mean_of_known(values: Curve) -> float | None:
    """The mean of what is no NaN; None where nothing is."""
    known = [float(v) for v in values if v == v]
    return sum(known) / len(known) if known else None


def compared(g: Array, true: Array) -> Mapping[str, float]:
    """Cosine, norm ratio and share of equal signs of two vectors; nothing where one is zero or not finite."""
    g, true = np.asarray(g, np.float64), np.asarray(true, np.float64)
    sizes = length(g), length(true)
    if not (min(sizes) > 0 and max(sizes) < np.inf):
        return {}
    there = true != 0
    cosine = float(((g / sizes[0]) * (true / sizes[1])).sum())
    signs = float((np.sign(g[there]) == np.sign(true[there])).mean())
    return {"cosine": min(1.0, max(-1.0, cosine)), "ratio": sizes[0] / sizes[1], "signs": signs}
