"""Optimisers: from a gradient to a step of all parameters, as one vector."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from bpcli.problem.definition import Array

MOMENTUM = 0.9
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
Memory = dict[str, Array]
Rule = Callable[[Array, Memory, int], Array]


def _sgd(g: Array, memory: Memory, count: int) -> Array:
    """g itself."""
    return g


def _momentum(g: Array, memory: Memory, count: int) -> Array:
    """v ← 0.9 v + g (Polyak 1964; Sutskever et al., ICML 2013)."""
    v = memory.setdefault("v", np.zeros_like(g))
    v *= MOMENTUM
    v += g
    return v


def _adam(g: Array, memory: Memory, count: int) -> Array:
    """m̂ / (√v̂ + ε) of the moments m and v (Kingma & Ba, ICLR 2015, algorithm 1)."""
    m, v = (memory.setdefault(name, np.zeros_like(g)) for name in "mv")
    m += (1 - BETA1) * (g - m)
    v += (1 - BETA2) * (g * g - v)
    return np.asarray(m / (1 - BETA1**count) / (np.sqrt(v / (1 - BETA2**count)) + EPSILON), g.dtype)


OPTIMIZERS: Mapping[str, Rule] = {"sgd": _sgd, "momentum": _momentum, "adam": _adam}
RATES: Mapping[str, float] = {"sgd": 0.1, "momentum": 0.02, "adam": 0.01}
"""Learning rates where none is given."""


@dataclass
class Optimizer:
    """A rule with its learning rate `lr` and what it remembers; gradients longer than `clip` are cut to that norm."""

    name: str
    lr: float
    clip: float | None = None
    count: int = 0
    memory: Memory = field(default_factory=dict)

    def move(self, theta: Array, g: Array) -> None:
        """Take a step, in place."""
        if self.clip is not None and (size := length(g)) > self.clip:
            g = g * g.dtype.type(self.clip / size)
        self.count += 1
        theta -= theta.dtype.type(self.lr) * OPTIMIZERS[self.name](g, self.memory, self.count)


def length(g: Array) -> float:
    """The Euclidean norm, in float64 and in an order that does not depend on threads."""
    wide = np.asarray(g, np.float64)
    return float(np.sqrt((wide * wide).sum()))
