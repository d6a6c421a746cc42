"""Arithmetic on constants at build time, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence


def _sigmoid(v: float) -> float:
    return 1.0 / (1.0 + math.exp(-v)) if v >= 0 else math.exp(v) / (1.0 + math.exp(v))


_RULES: dict[str, Callable[..., float | complex]] = {
    "negate": lambda v: -v,
    "add": lambda u, v: u + v,
    "subtract": lambda u, v: u - v,
    "multiply": lambda u, v: u * v,
    "divide": lambda u, v: u / v,
    "power": lambda v, p: v**p,
    "tanh": math.tanh,
    "sigmoid": _sigmoid,
    "relu": lambda v: max(v, 0.0),
    "leaky_relu": lambda v, slope: v if v > 0 else slope * v,
    "softplus": lambda v: max(v, 0.0) + math.log1p(math.exp(-abs(v))),
    "exp": math.exp,
    "log": math.log,
    "sqrt": math.sqrt,
    "sin": math.sin,
    "cos": math.cos,
    "abs": abs,
    "sum": lambda v: v,
    "dot": lambda u, v: u * v,
    "logsumexp": lambda v: v,
    "softmax": lambda v: 1.0,
    "log_softmax": lambda v: 0.0,
}


def foldable(op: str) -> bool:
    """Whether `op` on constants is a constant: true of all but copies, joins and slices."""
    return op in _RULES


def fold(op: str, values: Sequence[float]) -> float | None:
    """The value of `op` on constants (its fixed numbers last), or None where it is not a finite real number."""
    try:
        value = _RULES[op](*values)
    except (ArithmeticError, ValueError):
        return None
    return value if isinstance(value, float) and math.isfinite(value) else None
