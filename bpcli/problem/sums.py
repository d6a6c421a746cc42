"""Sums of losses over steps."""

from __future__ import annotations

import numpy as np

from bpcli.problem.elsewhere import FloatArray, Values
from bpcli.problem.kinks import FREE


@np.errstate(all="ignore")  # a loss that is not finite is no loss, and found to be none by who asked
def total_of(losses: Values, weights: FloatArray) -> Values:
    """The sum (copies, rows) over steps (Kahan: the sum's own rounding is not to be taken for noise)."""
    total, lost = np.zeros(losses.shape[1:], losses.dtype), np.zeros(losses.shape[1:], losses.dtype)
    for step, weight in zip(losses, weights, strict=True):
        term = step * weight - lost
        new = total + term
        lost = (new - total) - term
        total = new
    return total


def marked(total: Values, met: FloatArray) -> Values:
    """NaN, or an imaginary part of NaN, where a kink was met."""
    (total.imag if total.dtype.kind == "c" else total)[met > FREE] = np.nan
    return total
