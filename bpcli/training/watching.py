"""Passive comparisons on a trajectory: gradients of other methods beside the true one, at the current parameters."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from bpcli.methods import MethodCall
from bpcli.problem.definition import Array
from bpcli.training.optimizers import length

FIGURES = ("cosine", "ratio", "signs")
"""Of a gradient and the true one: cosine, norm over the true norm, share of the true gradient's entries whose sign it
has."""


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
        own = [column(figure, call.text) for call in self.calls for figure in FIGURES]
        return own + [column("cosine", f"{one.text}|{other.text}") for one, other in self.pairs()]

    def pairs(self) -> list[tuple[MethodCall, MethodCall]]:
        """All pairs of two methods."""
        return list(itertools.combinations(self.calls, 2))

    def compare(self, gradient: Callable[[MethodCall], Array], true: Array) -> dict[str, float]:
        """The figures that can be told, by column."""
        found: dict[str, float] = {}
        for call in self.calls:
            for figure, value in compared(gradient(call), true).items():
                found[column(figure, call.text)] = value
        for one, other in self.pairs():
            if figures := compared(gradient(one), gradient(other)):
                found[column("cosine", f"{one.text}|{other.text}")] = figures["cosine"]
        return found


def column(figure: str, method: str) -> str:
    """The name of a column."""
    return f"{figure}[{method}]"


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
